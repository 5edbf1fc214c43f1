"""What goes wrong in a run, told in an operator's words."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from batch_jobs.errors import SessionError, WorkspaceError
from batch_jobs.workspace import disk_full

_LAST_OF_LOG_BYTES = 1 << 18


@contextmanager
def operator_errors(workspace: Path) -> Iterator[None]:
    """Spark's errors and those of a full disk in an operator's words; the whole story stays in the log."""
    try:
        yield
    except _spark_errors() as error:
        if _began_with_an_interrupt(error):
            raise KeyboardInterrupt from error
        log = workspace / "spark.log"
        said = _said(error, log)
        if "No space left on device" in said or "Disk quota exceeded" in said:
            raise WorkspaceError(disk_full(workspace)) from error
        if "java.lang.OutOfMemoryError" in said:
            raise SessionError(
                "Spark's Java process ran out of memory; raise --partitions, or run the step by spark-submit with more "
                f"--driver-memory; the whole log is {log}"
            ) from error
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        cause = next((line for line in reversed(lines) if "Error: " in line or "Exception: " in line), lines[0])
        raise SessionError(f"Spark failed: {cause}; the whole log is {log}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WorkspaceError(disk_full(workspace)) from error
        raise


def _spark_errors() -> tuple[type[BaseException], ...]:
    """What Spark raises, nothing where no step has loaded it."""
    if "py4j" not in sys.modules:
        return ()
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    return (PySparkException, Py4JError, ConnectionError)


def _said(error: BaseException, log: Path) -> str:
    """What Spark says of an error; where its Java process has died, what that wrote last."""
    from py4j.protocol import Py4JError, Py4JNetworkError

    with suppress(Py4JError, OSError):  # the message of a Java exception is asked of Java
        said = str(error)
        if not isinstance(error, (Py4JNetworkError, ConnectionError)):
            return said
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LAST_OF_LOG_BYTES))
        return file.read().decode(errors="replace") or "its Java process ended"
    return "its Java process ended"


def _began_with_an_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C came first: what is cleaned up after it may meet a JVM that is still answering."""
    before = error.__context__
    while before is not None and not isinstance(before, KeyboardInterrupt):
        before = before.__context__
    return before is not None
