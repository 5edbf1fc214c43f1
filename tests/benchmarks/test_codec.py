"""Rules of the codec benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import codec


@pytest.fixture(autouse=True)
def peers() -> None:
    for package in ("pyfastpfor", "pyroaring"):
        pytest.importorskip(package, reason="a peer of this benchmark is not installed")


def test_gaps_have_their_average_and_are_at_least_one() -> None:
    """Random gaps are positive, average what was asked for, and depend on the seed alone."""
    gaps = codec.random_gaps(60, 50_000, seed=3)

    assert gaps.min() >= 1
    assert abs(gaps.mean() / 60 - 1) < 0.03
    np.testing.assert_array_equal(gaps, codec.random_gaps(60, 50_000, seed=3))


def test_real_lists_hold_every_image_once_a_table() -> None:
    """The lists of two tables hold each doc twice, ascending within a list, and most of them are short."""
    lists = codec.real_lists(5000, num_tables=2)

    assert sorted(np.concatenate(lists).tolist()) == sorted([*range(5000), *range(5000)])
    assert all((docs[1:] > docs[:-1]).all() for docs in lists)
    assert np.median([docs.size for docs in lists]) <= 3


def test_every_codec_is_measured_on_every_length() -> None:
    """Shares add up to one, ours takes at least a byte a posting, and raw arrays take four."""
    lists = [np.arange(start, start + size, dtype=np.uint64) for size in (1, 1, 5, 40, 600) for start in (3, 70_000)]
    figures = codec.measure_lists(lists, num_rounds=1)

    assert sum(row.share_of_lists for row in figures) == pytest.approx(1.0)
    assert sum(row.share_of_postings for row in figures) == pytest.approx(1.0)
    assert all(set(row.bytes_per_posting) == set(row.speed_ratio) == set(codec.CODECS) for row in figures)
    assert all(row.bytes_per_posting["raw uint32"] == 4.0 for row in figures)
    assert figures[-1].bytes_per_posting["ours"] == pytest.approx(1.0, abs=0.01)


def test_the_figures_name_every_gap_and_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tables and the JSON hold a ratio for every average gap and length, with the seed and the versions."""
    small = codec.measure_run(1_000, num_values=2_000, num_rounds=3)
    monkeypatch.setattr(codec, "measure_run", lambda _: small)
    codec.run(tmp_path / "codec.json", num_images=2_000)
    figures = json.loads((tmp_path / "codec.json").read_text())

    assert len(figures["gaps"]) == len(codec.AVERAGE_GAPS)
    assert figures["gaps"][0]["speed_ratio"]["ours"] == 1.0
    assert figures["lists"][0]["shortest"] == 1
    assert figures["hash_table_bytes_per_image"] > 1.0
    assert {"numba", "numpy", "pyfastpfor", "pyroaring"} <= set(figures["versions"])
    assert "seed 0" in capsys.readouterr().out


def test_a_decoder_that_is_wrong_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ratio is shown for a decoder whose output is not the input."""
    monkeypatch.setattr(codec, "decode", lambda _, count: np.zeros(count, dtype=np.uint64))

    with pytest.raises(RuntimeError, match="ours does not decode 100 values"):
        codec.measure_run(3, num_values=100, num_rounds=1)
