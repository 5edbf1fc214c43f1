"""Tables whose files Spark's tasks write themselves: blocks and codes never pass through the JVM.

Each task writes whole files under names that its work alone decides, aside first. So a task that is run again, or twice
at once, leaves the same files; one that dies leaves nothing but what the driver removes at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from batch_jobs import schemas

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_ASIDE = ".aside"

Work = Callable[[int], pa.Table]
"""What a task does, by its number; what it returns is small and goes to the driver."""


def run_tasks(spark: SparkSession, num_tasks: int, work: Work, *, returns: str, folder: Path) -> pa.Table:
    """Run `work(0) .. work(num_tasks - 1)` as tasks that write below `folder`; their rows of the schema `returns`."""
    numbers = spark.range(num_tasks, numPartitions=max(1, num_tasks))
    rows = numbers.mapInArrow(partial(_work_on, work=work), returns).collect()
    for left_behind in folder.rglob(f"*{_ASIDE}"):
        left_behind.unlink()
    return pa.Table.from_pylist([row.asDict() for row in rows], schema=schemas.arrow(returns))


def _work_on(batches: Iterator[pa.RecordBatch], *, work: Work) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for number in batch["id"].to_pylist():
            yield from work(number).to_batches()


@contextmanager
def parquet_file(path: Path, schema: pa.Schema, *, compression: str = "zstd") -> Iterator[pq.ParquetWriter]:
    """A Parquet file that appears at `path` when the block ends without an error; its folder must be there.

    Statistics are kept of integers alone: of binary values they would hold whole blocks.
    """
    aside = path.with_name(f".{path.name}.{_attempt()}{_ASIDE}")
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    try:
        with pq.ParquetWriter(
            aside, schema, compression=compression, use_dictionary=False, write_statistics=integers or False
        ) as writer:
            yield writer
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def _attempt() -> int:
    """A number that no other attempt of the job has; 0 outside of a task."""
    from pyspark import TaskContext

    context = TaskContext.get()
    return context.taskAttemptId() if context else 0
