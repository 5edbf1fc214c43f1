"""Where the tasks of a step run: on Spark, or on threads of the driver's own process where little is new.

On one machine a small step waits longer for Spark than for its work. As many tasks run at once in the driver as in a
local session, each of the same size, and the kernels release the interpreter, so that threads keep all cores busy.
Whoever names a master, or submits, gets Spark for all steps. Tables hold the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from batch_jobs import schemas
from batch_jobs.task_files import ASIDE

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MAX_DRIVER_DOCS = 1 << 18
"""New docs up to which a step is small: one that Spark's start would make three times as long, in a gigabyte or so."""

Work = Callable[[int], pa.Table]
"""What a task does, by its number; what it returns is small and goes to the driver."""


class TaskRunner(Protocol):
    """Runs the tasks of a step."""

    def run(self, num_tasks: int, work: Work, *, returns: str, folder: Path) -> pa.Table:
        """Run `work(0) .. work(num_tasks - 1)`, which write below `folder`; their rows of the schema `returns`."""
        ...


@dataclass(frozen=True, slots=True)
class SparkRunner:
    """Each task on a Python worker of Spark."""

    spark: SparkSession

    def run(self, num_tasks: int, work: Work, *, returns: str, folder: Path) -> pa.Table:
        numbers = self.spark.range(num_tasks, numPartitions=max(1, num_tasks))
        rows = numbers.mapInArrow(partial(_work_on, work=work), returns).collect()
        for left_behind in folder.rglob(f"*{ASIDE}"):
            left_behind.unlink()
        return pa.Table.from_pylist([row.asDict() for row in rows], schema=schemas.arrow(returns))


@dataclass(frozen=True, slots=True)
class DriverRunner:
    """`num_threads` tasks at once in this process; `progress` is told the share of those that are done, in 0..1."""

    num_threads: int
    progress: Callable[[float], None]

    def run(self, num_tasks: int, work: Work, *, returns: str, folder: Path) -> pa.Table:  # noqa: ARG002
        tables = [schemas.arrow(returns).empty_table()]
        with ThreadPoolExecutor(self.num_threads) as pool:
            for table in pool.map(work, range(num_tasks)):
                tables.append(table)
                self.progress((len(tables) - 1) / num_tasks)
        return pa.concat_tables(tables)


def _work_on(batches: Iterator[pa.RecordBatch], *, work: Work) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for number in batch["id"].to_pylist():
            yield from work(number).to_batches()
