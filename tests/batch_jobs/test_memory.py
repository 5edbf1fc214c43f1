"""Tests of the memory of executors."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from batch_jobs.find_candidates import fitting_parts
from batch_jobs.memory import executor_settings, task_memory


def mebibytes(settings: dict[str, str], key: str) -> int:
    found = re.fullmatch(r"(\d+)m", settings[key])
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("num_cores", [1, 4, 16])
def test_the_overhead_holds_the_largest_step_of_every_task(num_cores: int) -> None:
    """Python workers live outside the JVM: their arrays are counted there, once for each task at a time."""
    settings = executor_settings(num_cores=num_cores, dim=256, num_tables=48)
    peak = task_memory(dim=256, num_tables=48).peak
    assert mebibytes(settings, "spark.executor.memoryOverhead") << 20 >= num_cores * peak
    assert settings["spark.executor.cores"] == str(num_cores)
    assert "spark.executor.pyspark.memory" not in settings


def test_larger_embeddings_ask_for_more() -> None:
    """The step whose batches grew decides."""
    plain, larger = task_memory(dim=256, num_tables=48), task_memory(dim=4096, num_tables=48)
    assert larger.peak == larger.select > plain.peak


def test_more_tables_ask_for_more_parts() -> None:
    """Joining a part takes as much memory however many tables there are; there are more parts to join."""
    plain, larger = task_memory(dim=256, num_tables=48), task_memory(dim=256, num_tables=400)
    assert plain.candidates == larger.candidates
    assert fitting_parts(10_000_000, num_tables=400) > fitting_parts(10_000_000, num_tables=48)


def test_the_settings_are_printed_for_spark_submit() -> None:
    """Each line is an argument and its value, ready for a command substitution."""
    done = subprocess.run(
        [sys.executable, "-m", "batch_jobs.memory", "--cores", "4"], capture_output=True, text=True, check=True
    )
    assert dict(re.findall(r"^--conf (\S+)=(\S+)$", done.stdout, re.MULTILINE)) == executor_settings(num_cores=4)


def test_an_impossible_number_of_cores_is_refused() -> None:
    """The message has the value and the range."""
    done = subprocess.run(
        [sys.executable, "-m", "batch_jobs.memory", "--cores", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--cores 0 is out of range" in done.stderr
