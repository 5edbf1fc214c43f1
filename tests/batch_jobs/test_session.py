"""Tests of the settings of our own sessions."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batch_jobs.memory import executor_settings
from batch_jobs.session import (
    BYTES_PER_ARROW_BATCH,
    ROWS_PER_SHUFFLE_PART,
    SHUFFLE_PARTITIONS,
    Session,
    own_settings,
    runs_locally,
    sized_shuffles,
    spark_session,
)
from lsh.numpy_dispatch import DISABLED

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.mark.parametrize(
    ("master", "locally"),
    [("local", True), ("local[*]", True), ("local[2]", True), ("local-cluster[2,1,1024]", False), ("yarn", False)],
)
def test_only_a_master_without_other_processes_is_local(master: str, locally: bool) -> None:
    """`local-cluster` starts executors of its own."""
    assert runs_locally(master) is locally


def test_executors_of_a_cluster_get_the_memory_of_one_task(tmp_path: Path) -> None:
    """One core each, so that every machine can run some; nothing that holds on this machine alone is sent there."""
    settings = own_settings("spark://host:7077", tmp_path / "spark.log")
    assert executor_settings(num_cores=1).items() <= settings.items()
    assert not {"spark.driver.host", "spark.driver.bindAddress", "spark.local.dir"} & settings.keys()


def test_a_local_session_listens_on_this_machine_alone(tmp_path: Path) -> None:
    """No port is open to others, and temporary files stay in the workspace."""
    settings = own_settings("local[2]", tmp_path / "spark.log")
    assert settings["spark.driver.host"] == settings["spark.driver.bindAddress"] == "127.0.0.1"
    assert settings["spark.local.dir"] == str(tmp_path / ".spark")
    assert "spark.executor.memory" not in settings


def test_spark_is_optional_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a master, this machine's own too, or by `spark-submit`: whoever names resources gets them."""
    log = tmp_path / "spark.log"
    assert Session(master=None, log=log).is_optional
    assert not Session(master="local[2]", log=log).is_optional
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    assert not Session(master=None, log=log).is_optional


def test_a_session_that_nobody_needs_is_never_started(tmp_path: Path) -> None:
    """Neither asking how many tasks would run nor watching them starts Java."""
    with Session(master=None, log=tmp_path / "spark.log") as session, session.watched(print, print):
        assert session.parallelism >= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.spark
def test_a_session_is_started_once(spark: SparkSession, tmp_path: Path) -> None:
    """All steps of a run share it, and one that was there before goes on."""
    with Session(master="local[2]", log=tmp_path / "spark.log") as session:
        assert session.spark is session.spark
        assert session.parallelism == 2
    assert spark.range(3).count() == 3


@pytest.mark.spark
def test_a_session_that_runs_is_left_running_by_any_thread(spark: SparkSession, tmp_path: Path) -> None:
    """Java forgets which session a thread has with the thread's connection, and a new thread has none."""

    def count() -> int:
        with spark_session(master="local[2]", log=tmp_path / "spark.log") as session:
            return session.range(4).count()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(count).result() == 4
    assert spark.range(3).count() == 3


@pytest.mark.spark
def test_rows_are_shuffled_in_as_many_parts_as_they_need(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless whoever started Spark has said how many; afterwards a program finds its session as it was."""
    before = spark.conf.get(SHUFFLE_PARTITIONS)
    for num_rows, parts in ((1000, "4"), (100 * ROWS_PER_SHUFFLE_PART + 1, "101")):
        with sized_shuffles(spark, num_rows, at_least=4):
            assert spark.conf.get(SHUFFLE_PARTITIONS) == parts
        assert spark.conf.get(SHUFFLE_PARTITIONS) == before
    told = spark.sparkContext.getConf().set(SHUFFLE_PARTITIONS, "101")
    monkeypatch.setattr(spark.sparkContext, "_conf", told)
    with sized_shuffles(spark, 1000, at_least=4):
        assert spark.conf.get(SHUFFLE_PARTITIONS) == before


@pytest.mark.spark
def test_workers_sort_as_the_driver_does(spark: SparkSession) -> None:
    """A worker loads numpy before it could choose, so it is told, wherever its executor was started."""
    assert spark.sparkContext.environment.get(DISABLED) == os.environ.get(DISABLED)


@pytest.mark.spark
def test_spark_hands_python_a_bounded_number_of_bytes(spark: SparkSession) -> None:
    """A table of large images must not fill a worker with one batch of two thousand rows."""
    import pyarrow as pa

    def sizes(batches):  # type: ignore[no-untyped-def]
        for batch in batches:
            yield pa.RecordBatch.from_pylist([{"num_bytes": batch.nbytes}])

    rows = spark.sql("SELECT repeat('x', 8000000) AS content FROM range(0, 40, 1, 1)")
    num_bytes = [row["num_bytes"] for row in rows.mapInArrow(sizes, "num_bytes long").collect()]
    assert sum(num_bytes) > 40 * 8_000_000
    assert max(num_bytes) <= 1.25 * BYTES_PER_ARROW_BATCH
