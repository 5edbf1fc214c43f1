"""Rules of measuring the geometric verifier."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks.geometry import command
from embed.evaluation.edits import ALL_EDITS


@pytest.mark.tensorflow
def test_verdicts_are_counted_for_edits_hard_pairs_and_labels(tmp_path: Path, tiny_embedder: str) -> None:
    """Every kind of pair has all its verdicts; copies come out the same and random pictures do not."""
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        coarse.resize((300, 200), Image.Resampling.BICUBIC).save(photos / f"{number}.png")
    (tmp_path / "pairs.csv").write_text("a,b,label\n0.png,1.png,0\n0.png,2.png,0\n1.png,2.png,1\n")
    figures = tmp_path / "figures.json"
    arguments = [str(photos), "--pairs", str(tmp_path / "pairs.csv"), "--images", str(photos), "--num-hardest", "3"]
    result = CliRunner().invoke(
        command,
        [*arguments, "--num-photos", "2", "--embedder", tiny_embedder, "--json", str(figures)],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    verdicts = json.loads(figures.read_text())["verdicts"]
    assert {edit: sum(verdicts[edit].values()) for edit in ALL_EDITS} == dict.fromkeys(ALL_EDITS, 2)
    assert verdicts["JPEG 30"] == {"same": 2}
    assert verdicts["hardest different photos"] == {"different": 3}
    assert (verdicts["labelled 0, pairs"], verdicts["labelled 1, pairs"]) == ({"different": 2}, {"different": 1})
