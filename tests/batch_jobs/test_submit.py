"""Tests of the `spark-submit` entry points, by the real `spark-submit`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).parents[2]
SPARK_SUBMIT = Path(sys.executable).with_name("spark-submit")


def spark_submit(file: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SPARK_SUBMIT, "--master", "local[2]", REPOSITORY / "batch_jobs" / file, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable, "PATH": f"{SPARK_SUBMIT.parent}:{os.environ['PATH']}"},
        check=False,
    )


@pytest.mark.spark
def test_steps_can_be_submitted_one_after_the_other(tmp_path: Path) -> None:
    """A later file goes on from what an earlier one committed."""
    generator = np.random.default_rng(0)
    rows = np.repeat(generator.normal(size=(5, 64)), 2, axis=0).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    given = tmp_path / "given.npz"
    np.savez(given, image_ids=np.array([f"i{row}" for row in range(10)]), embeddings=rows, digest=np.array("x"))
    arguments = ("--source", str(given), "--workspace", str(tmp_path / "ws"), "--min-score", "0.9")
    first = spark_submit("make_terms.py", *arguments)
    assert first.returncode == 0, first.stderr
    posting_lists = Path(json.loads(first.stdout)["outputs"]["posting_lists"])
    written = posting_lists.stat().st_mtime_ns
    second = spark_submit("pipeline.py", *arguments)
    assert second.returncode == 0, second.stderr
    assert posting_lists.stat().st_mtime_ns == written
    clusters = pq.read_table(json.loads(second.stdout)["outputs"]["clusters"]).to_pylist()
    assert sorted((row["image_id"], row["size"]) for row in clusters) == [(f"i{row}", 2) for row in range(10)]


def test_an_error_is_one_sentence(tmp_path: Path) -> None:
    """A missing source ends the job with a message, not a traceback."""
    done = spark_submit("catalogue.py", "--source", str(tmp_path / "none"), "--workspace", str(tmp_path / "ws"))
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "neardup: error: source" in said
    assert "Traceback" not in said
