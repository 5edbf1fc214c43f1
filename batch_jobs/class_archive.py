"""Spark's classes as they lie in Java's memory, so that a local session starts in half the time.

    python -m batch_jobs.class_archive

makes the archive once for an installation, 190 MB beside its packages, from a session that catalogues a few pictures.
Java compares it with its own version and with the jars, and starts without one that does not fit.

Source: JEP 350, https://openjdk.org/jeps/350.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from batch_jobs.errors import BatchError

WRITE_S = 300.0
"""Java has this long to write the archive once Spark has stopped."""
_QUIET = ("-Xlog:disable", "-Xlog:all=error:stderr")
"""What Java says of an archive that does not fit would stand in the output of `--json`."""


def java_options() -> tuple[str, ...]:
    """What Java is told to use the archive; nothing where there is none that is whole."""
    for path in _folder().glob(_name("*")):
        with suppress(FileNotFoundError):  # one that is made anew takes its place
            if path.name == _name(path.stat().st_size):
                return (f"-XX:SharedArchiveFile={path}", "-XX:+VerifySharedSpaces", *_QUIET)
    return ()


def make_archive() -> Path:
    """Make the archive of this installation, or make it anew; whoever starts Spark meanwhile has the old one or none.

    Raises BatchError where Spark does not run, OSError and TimeoutExpired where Java does not write the archive.
    """
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    before = list(folder.glob(_name("*")))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch, "classes")
        _dump(Path(scratch), made)
        path = made.replace(folder / _name(made.stat().st_size))
    for old in before:
        if old != path:
            old.unlink(missing_ok=True)
    return path


def _folder() -> Path:
    return Path(sys.prefix, "share", "neardup")


def _name(size_bytes: int | str) -> str:
    """Java does not survive an archive that was cut short, so the name says how long it is."""
    return f"spark-classes-{size_bytes}.jsa"


def _dump(scratch: Path, archive: Path) -> None:
    """Catalogue a few pictures by a Spark whose Java writes `archive` when it ends, and wait for that."""
    from PIL import Image
    from pyspark import SparkContext

    from batch_jobs.catalogue import STEP
    from batch_jobs.pipeline import run_pipeline
    from batch_jobs.session import spark_session
    from batch_jobs.settings import RunSettings

    photos = scratch / "photos"
    photos.mkdir()
    for number in range(4):
        Image.new("L", (8, 8), number).save(photos / f"{number}.png")
    with spark_session(
        master="local[2]", log=scratch / "spark.log", java_options=(f"-XX:ArchiveClassesAtExit={archive}", *_QUIET)
    ):
        run_pipeline(RunSettings(source=str(photos), workspace=scratch / "workspace", master="local[2]"), until=STEP)
        gateway: Any = SparkContext._gateway
    gateway.shutdown()
    java: subprocess.Popen[bytes] = gateway.proc
    if java.stdin is not None:
        java.stdin.close()
    java.wait(timeout=WRITE_S)


def main() -> None:
    """Make the archive and say where it is."""
    try:
        path = make_archive()
    except (BatchError, OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"neardup: error: the archive of Spark's classes was not made ({error}); Spark starts without one")
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
