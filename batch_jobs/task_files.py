"""Tables whose files tasks write themselves: blocks and codes never pass through the JVM.

Each task writes whole files under names that its work alone decides, aside first. So a task that is run again, or twice
at once, leaves the same files; one that dies leaves nothing but what the driver removes at the end.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batch_jobs.errors import WorkspaceError

ASIDE = ".aside"
_OTHER_FILES = 256
"""What a worker has open beside the files of its task: libraries, sockets, tables that it reads."""


@contextmanager
def parquet_file(path: Path, schema: pa.Schema, *, compression: str = "zstd") -> Iterator[pq.ParquetWriter]:
    """A Parquet file that appears at `path` when the block ends without an error; its folder must be there.

    Statistics are kept of integers alone: of binary values they would hold whole blocks.
    """
    encodings = integer_encodings(schema)
    with (
        new_file(path) as aside,
        pq.ParquetWriter(
            aside,
            schema,
            compression=compression,
            use_dictionary=False,
            column_encoding=encodings,
            write_statistics=list(encodings) or False,
        ) as writer,
    ):
        yield writer


def integer_encodings(schema: pa.Schema) -> dict[str, str]:
    """How the integers of a table without dictionaries are written: as differences, which are read twice as fast."""
    return {field.name: "DELTA_BINARY_PACKED" for field in schema if pa.types.is_integer(field.type)}


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Where to write a file that appears at `path` when the block ends without an error; its folder must be there."""
    aside = path.with_name(f".{path.name}.{_attempt()}{ASIDE}")
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def allow_open_files(number: int) -> None:
    """Let this process hold `number` files open at once; raises WorkspaceError where the machine forbids it."""
    wanted = number + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise WorkspaceError(
            f"a task writes {number:,} files at once, one for each part, and this machine allows a process {hard:,} in "
            f"all; raise `ulimit -Hn` to {wanted:,}, or ask for fewer --partitions"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _attempt() -> int:
    """A number that no other attempt of the job has; 0 outside of a task of Spark."""
    if "pyspark" not in sys.modules:
        return 0
    from pyspark import TaskContext

    context = TaskContext.get()
    return context.taskAttemptId() if context else 0
