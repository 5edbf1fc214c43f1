"""The report's file: whole at its path, or not there at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from batch_jobs.workspace import published_file
from cli.report.errors import ReportError


def write_whole_file(path: Path, pieces: Iterable[str]) -> None:
    """Write `pieces` to `path` in UTF-8 as they come; raises ReportError where the disk or the path refuses."""
    if path.is_dir():
        raise ReportError(f"cannot write the report to {path}: it is a directory; name a file in it")
    try:
        with published_file(path) as file:
            for piece in pieces:
                file.write(piece.encode("utf-8"))
    except OSError as error:
        raise ReportError(
            f"cannot write the report to {path}: {error.strerror or error}; "
            "pass --report a path in a folder that exists, is writable and has room"
        ) from error
