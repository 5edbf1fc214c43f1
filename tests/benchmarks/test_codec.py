"""Rules of the codec benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import codec


def test_gaps_have_their_average_and_are_at_least_one() -> None:
    """Random gaps are positive, average what was asked for, and depend on the seed alone."""
    gaps = codec.random_gaps(60, 50_000, seed=3)

    assert gaps.min() >= 1
    assert abs(gaps.mean() / 60 - 1) < 0.03
    np.testing.assert_array_equal(gaps, codec.random_gaps(60, 50_000, seed=3))


def test_the_figures_name_every_gap_and_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table and the JSON hold a ratio for every average gap, with the seed and the versions behind them."""
    pytest.importorskip("pyfastpfor", reason="the peer of this benchmark is not installed")
    small = codec.measure(1_000, num_values=2_000, num_rounds=3)
    monkeypatch.setattr(codec, "measure", lambda _: small)
    codec.run(tmp_path / "codec.json")
    figures = json.loads((tmp_path / "codec.json").read_text())

    assert len(figures["gaps"]) == len(codec.AVERAGE_GAPS)
    assert set(figures["gaps"][0]["speed_ratio"]) == set(codec.PEERS)
    assert figures["gaps"][0]["ours_over_vbyte"] * figures["gaps"][0]["speed_ratio"]["vbyte"] == pytest.approx(1.0)
    assert {"numba", "numpy", "pyfastpfor"} <= set(figures["versions"])
    assert "seed 0" in capsys.readouterr().out


def test_a_decoder_that_is_wrong_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ratio is shown for a decoder whose output is not the input."""
    pytest.importorskip("pyfastpfor", reason="the peer of this benchmark is not installed")
    monkeypatch.setattr(codec, "decode", lambda _, count: np.zeros(count, dtype=np.uint64))

    with pytest.raises(RuntimeError, match="ours does not decode gaps of 3"):
        codec.measure(3, num_values=100, num_rounds=1)
