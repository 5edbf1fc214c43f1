"""Rules of what runs tasks; that tables are the same whoever runs them is tested beside the nights."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from batch_jobs import schemas
from batch_jobs.task_runners import DriverRunner, SparkRunner, TaskRunner

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DRIVER = DriverRunner(2, lambda _: None)


def numbered(number: int) -> pa.Table:
    return pa.table([[number]], schema=schemas.arrow("number int"))


def numbers_of(runner: TaskRunner, num_tasks: int, folder: Path) -> list[int]:
    rows = runner.run(num_tasks, numbered, returns="number int", folder=folder)
    assert rows.schema == schemas.arrow("number int")
    return sorted(rows["number"].to_pylist())


@pytest.mark.spark
def test_spark_returns_the_rows_and_leaves_nothing_aside(spark: SparkSession, tmp_path: Path) -> None:
    """Each number is worked on once, and what a task that died has left is removed."""
    (tmp_path / ".part-0.parquet.7.aside").write_bytes(b"half a file")
    assert numbers_of(SparkRunner(spark), 5, tmp_path) == [0, 1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.spark
def test_no_tasks_of_spark_return_no_rows(spark: SparkSession, tmp_path: Path) -> None:
    """The table has its columns all the same."""
    assert numbers_of(SparkRunner(spark), 0, tmp_path) == []


def test_the_driver_returns_what_spark_does(tmp_path: Path) -> None:
    """Each number is worked on once, and without any the table has its columns all the same."""
    assert numbers_of(DRIVER, 5, tmp_path) == [0, 1, 2, 3, 4]
    assert numbers_of(DRIVER, 0, tmp_path) == []


def test_the_driver_tells_each_task_that_is_done(tmp_path: Path) -> None:
    """Shares rise to one, whichever task ends first."""
    shares: list[float] = []

    def late(number: int) -> pa.Table:
        time.sleep(0.02 * (3 - number))
        return numbered(number)

    DriverRunner(2, shares.append).run(4, late, returns="number int", folder=tmp_path)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_the_driver_raises_what_a_task_raises(tmp_path: Path) -> None:
    """Tasks that have not begun are not waited for."""
    begun: list[int] = []

    def fail(number: int) -> pa.Table:
        begun.append(number)
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        DRIVER.run(1000, fail, returns="number int", folder=tmp_path)
    assert len(begun) < 1000
