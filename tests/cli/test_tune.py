"""Rules of `neardup tune`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cli.tune import command


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """1,500 embeddings of 32 dimensions, half of them edits of the other half."""
    rng = np.random.default_rng(0)
    photos = rng.standard_normal((750, 32))
    rows = np.concatenate([photos, photos + 0.5 * rng.standard_normal((750, 32))])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    path = tmp_path / "photos.npz"
    image_ids = np.arange(1500).astype(np.str_)
    np.savez(path, image_ids=image_ids, embeddings=rows.astype(np.float32), digest=np.array("tests"))
    return path


def test_the_plan_is_printed_written_and_checked(embeddings: Path, tmp_path: Path) -> None:
    """The best plan is written as JSON, and what it did stands beside what was predicted."""
    output = tmp_path / "plan.json"
    arguments = [str(embeddings), "--min-score", "0.8", "--target-recall", "0.9", "--check", "--json"]
    result = CliRunner().invoke(command, [*arguments, "--output", str(output)], catch_exceptions=False)
    printed = json.loads(result.stdout)

    assert json.loads(output.read_text()) == printed["plans"][0]
    assert printed["measured"]["recall"] >= 0.85
    assert printed["measured"]["candidates"] == pytest.approx(printed["plans"][0]["prediction"]["candidates"], rel=0.2)


def test_a_check_of_another_size_is_refused(embeddings: Path) -> None:
    """Only a corpus that is there can be measured."""
    result = CliRunner().invoke(command, [str(embeddings), "--images", "5000", "--check"])

    assert result.exit_code == 2
    assert "--check measures the 1,500 images" in result.output
