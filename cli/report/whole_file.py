"""A text file that appears whole or not at all.

Written beside its target under a hidden name, flushed to disk, then renamed over it: a full disk, an exception or
Ctrl-C leaves the target as it was and nothing beside it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cli.report.errors import ReportError


def write_whole_file(path: Path, pieces: Iterable[str]) -> None:
    """Write `pieces` to `path` in UTF-8 as they come.

    Raises ReportError where the disk or the path refuses; an error of `pieces` itself passes through as it is.
    """
    target = path.resolve()
    if target.is_dir():
        raise ReportError(f"cannot write the report to {path}: it is a directory; name a file in it")
    partial = target.with_name(f".report-{secrets.token_hex(8)}.partial")
    try:
        _write(partial, pieces, path)
        with _refusals(path):
            partial.replace(target)
            _sync_folder(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def _write(partial: Path, pieces: Iterable[str], path: Path) -> None:
    with _refusals(path):
        file = partial.open("x", encoding="utf-8", newline="\n")
    try:
        for piece in pieces:
            with _refusals(path):
                file.write(piece)
        with _refusals(path):
            file.flush()
            os.fsync(file.fileno())
    finally:
        # Nothing is left to flush by now, except after an error that already says what went wrong.
        with suppress(OSError):
            file.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ReportError(
            f"cannot write the report to {path}: {error.strerror or error};"
            " pass --report a path in a folder that exists, is writable and has room"
        ) from error
