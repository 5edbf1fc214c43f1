"""Rules of `neardup tune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from cli.dedup import command as dedup
from cli.tune import command

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


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


@pytest.mark.spark
@pytest.mark.parametrize("options", [[], ["--unverified", "--target-recall", "0.7"]])
def test_dedup_hashes_as_the_plan_says(
    options: list[str], embeddings: Path, tmp_path: Path, spark: SparkSession
) -> None:
    """A run with a plan finds the planted copies, whether their codes are compared or not."""
    output = tmp_path / "plan.json"
    arguments = ["--min-score", "0.8", "--target-recall", "0.95", *options, "--output", str(output)]
    CliRunner().invoke(command, [str(embeddings), *arguments], catch_exceptions=False)
    workspace = tmp_path / "workspace"
    result = CliRunner().invoke(
        dedup,
        [str(embeddings), "--workspace", str(workspace), "--min-score", "0.8", "--plan", str(output), "--json"],
        catch_exceptions=False,
    )

    assert json.loads(result.stdout)["clusters"] > 300
    plan, bound = json.loads(output.read_text()), json.loads((workspace / "workspace.json").read_text())
    assert bound["terms"] == plan["terms"]
    assert plan["verified"] is not bool(options)


def test_a_file_that_is_no_plan_is_refused(embeddings: Path, tmp_path: Path) -> None:
    """`dedup --plan` names the file and says where plans come from."""
    (tmp_path / "plan.json").write_text("{}")
    result = CliRunner().invoke(dedup, [str(embeddings), "--plan", str(tmp_path / "plan.json")])

    assert result.exit_code == 2
    assert "this is no plan of `neardup tune`" in result.output
