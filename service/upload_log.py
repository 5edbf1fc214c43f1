"""The upload log: what was registered and removed since the generations were cut, in one SQLite file.

An append log with group commit: one thread writes all that is waiting in one transaction (WAL, synchronous=FULL) and
only then reports it as written, so a hundred registers at once cost one flush of the disk. The last entry of an image
id counts. The file belongs to one server at a time and to one embedder.

    entries(seq INTEGER PRIMARY KEY AUTOINCREMENT, image_id TEXT, code BLOB, canonical_id TEXT, logged_at REAL)

`code` is NULL in the entry of a removal, else `dim` int8 values, and behind them those of each view of the image where
a thorough server registered it.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from embed.views import NUM_VIEWS
from service.errors import LogError, LogFull

log = logging.getLogger(__name__)

FORMAT_VERSION: Final = 1
_MAX_TRANSACTION: Final = 4096
_PRAGMAS: Final = ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL")
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entries(
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    image_id TEXT NOT NULL, code BLOB, canonical_id TEXT NOT NULL, logged_at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_of_image ON entries(image_id);
"""
_INSERT: Final = "INSERT INTO entries(image_id, code, canonical_id, logged_at) VALUES (?, ?, ?, ?)"
_REGISTERED: Final = """
SELECT seq, image_id, code, canonical_id FROM entries AS entry
WHERE seq > ? AND code IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM entries WHERE image_id = entry.image_id AND seq > entry.seq)
ORDER BY seq LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """`code` is the bytes of the int8 code, and of those of its views, or None when the entry removes the image."""

    image_id: str
    code: bytes | None
    canonical_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Registrations:
    """Registered images, oldest first: their ids, `codes` `(n, dim)` int8 and what they named as their canonical.

    `views` has the codes `(NUM_VIEWS, dim)` of the views of some of them, by position.
    """

    image_ids: Sequence[str]
    codes: NDArray[np.int8]
    canonical_ids: Sequence[str]
    views: Mapping[int, NDArray[np.int8]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[tuple[str, bytes, str]], *, dim: int, log: object) -> Registrations:
        """From image id, code and canonical of each; raises LogError for a code that has not `dim` bytes.

        Views of another number, as another version made them, are left out.
        """
        image_ids, codes, canonical_ids = zip(*rows, strict=True)
        views: dict[int, NDArray[np.int8]] = {}
        if any(map(dim.__ne__, map(len, codes))):
            if not all(code and len(code) % dim == 0 for code in codes):
                raise LogError(f"the upload log {log} holds a code that has not {dim} bytes; it is damaged")
            views = {
                position: np.frombuffer(code, dtype=np.int8, offset=dim).reshape(NUM_VIEWS, dim)
                for position, code in enumerate(codes)
                if len(code) == (1 + NUM_VIEWS) * dim
            }
            codes = tuple(code[:dim] for code in codes)
        whole = np.frombuffer(b"".join(codes), dtype=np.int8).reshape(len(codes), dim)
        return cls(image_ids, whole, canonical_ids, views)

    def some(self, is_wanted: NDArray[np.bool_]) -> Registrations:
        """Those of them that are wanted, `(n,)`."""
        position = np.cumsum(is_wanted) - 1
        return Registrations(
            list(compress(self.image_ids, is_wanted)),
            self.codes[is_wanted],
            list(compress(self.canonical_ids, is_wanted)),
            {int(position[old]): views for old, views in self.views.items() if is_wanted[old]},
        )


class Unread(NamedTuple):
    """Entries that others wrote since; when `is_broken`, everything has to be read again."""

    entries: list[LogEntry]
    is_broken: bool


class Log(Protocol):
    """A log of uploads: `UploadLog` of one server, or `redis_log.RedisLog` that many follow."""

    unreachable_since: float | None
    """When it went away (seconds since 1970), None while it is there."""

    def append(self, entry: LogEntry) -> Future[None]:
        """The future is done once the entry is durable; raises Overtaken when others wrote since `unread`."""
        ...

    def unread(self) -> Unread: ...

    def follow(self, catch_up: Callable[[], str]) -> None:
        """Call `catch_up`, which reads what is unread and returns what is served, whenever others wrote."""
        ...

    def last_seq(self) -> int: ...

    def removed_ids(self) -> list[str]: ...

    def registered(self) -> Iterator[Registrations]: ...

    def forget(self, image_ids: Iterable[str], *, until_seq: int) -> None: ...

    def close(self) -> None: ...


class UploadLog:
    """An open log. Safe to use from several threads."""

    unreachable_since: float | None = None

    def __init__(self, path: Path, *, embedder_digest: str, dim: int) -> None:
        """Open or create the log at `path`; raises LogError when it is in use, damaged or of another embedder."""
        self.path = path
        self._dim = dim
        self._using_database = threading.Lock()
        identity = {"format_version": str(FORMAT_VERSION), "embedder_digest": embedder_digest, "dim": str(dim)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=0.2)
        except (OSError, sqlite3.Error) as error:
            raise _log_error(path, error) from error
        try:
            self._prepare(identity)
        except sqlite3.Error as error:
            self._database.close()
            raise _log_error(path, error) from error
        except LogError:
            self._database.close()
            raise
        self._waiting: queue.SimpleQueue[tuple[LogEntry, Future[None]] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="upload-log", daemon=True)
        self._writer.start()

    def append(self, entry: LogEntry) -> Future[None]:
        """Returns at once; the future is done when the entry and all before it are on disk, or has a LogError."""
        written: Future[None] = Future()
        self._waiting.put((entry, written))
        return written

    def unread(self) -> Unread:
        """Nothing: nobody else writes to it."""
        return Unread([], is_broken=False)

    def follow(self, catch_up: Callable[[], str]) -> None:
        """Nobody else writes to it."""

    def last_seq(self) -> int:
        """The sequence number of the last entry on disk."""
        return int(self._query("SELECT coalesce(max(seq), 0) FROM entries")[0][0])

    def removed_ids(self) -> list[str]:
        """Every image id that was ever removed."""
        return [image_id for (image_id,) in self._query("SELECT DISTINCT image_id FROM entries WHERE code IS NULL")]

    def registered(self, *, block_size: int = 8192) -> Iterator[Registrations]:
        """The images whose last entry registers them, oldest first, in blocks; the log can be written between them."""
        with ThreadPoolExecutor(1) as reader:
            block = reader.submit(self._query, _REGISTERED, (0, block_size))
            while rows := block.result():
                block = reader.submit(self._query, _REGISTERED, (rows[-1][0], block_size))
                yield Registrations.of((row[1:] for row in rows), dim=self._dim, log=self.path.name)

    def forget(self, image_ids: Iterable[str], *, until_seq: int) -> None:
        """Delete the entries of these images up to a sequence number; raises LogError."""
        rows = [(image_id, until_seq) for image_id in image_ids]
        self._transaction("DELETE FROM entries WHERE image_id = ? AND seq <= ?", rows)

    def close(self) -> None:
        """Write what is waiting, then close."""
        self._waiting.put(None)
        self._writer.join()
        self._database.close()

    def _prepare(self, identity: dict[str, str]) -> None:
        for pragma in _PRAGMAS:
            self._database.execute(f"PRAGMA {pragma}")
        self._database.executescript(_SCHEMA)
        for name, value in identity.items():
            self._database.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (name, value))
        found = dict(self._database.execute("SELECT name, value FROM meta"))
        for name, value in identity.items():
            if found[name] != value:
                raise LogError(
                    f"the upload log {self.path} has {name} {found[name]}, this server {value}; serve a generation "
                    "of the same embedder, or give another --log to start without its uploads"
                )

    def _write(self) -> None:
        while batch := self._next_batch():
            rows = [(entry.image_id, entry.code, entry.canonical_id, time.time()) for entry, _ in batch]
            try:
                self._transaction(_INSERT, rows)
            except LogError as error:
                for _, written in batch:
                    written.set_exception(error)
            else:
                for _, written in batch:
                    written.set_result(None)

    def _next_batch(self) -> list[tuple[LogEntry, Future[None]]]:
        """All that is waiting, at least one; empty when the log is closed and everything is written."""
        batch = []
        item = self._waiting.get()
        while item is not None:
            batch.append(item)
            if len(batch) == _MAX_TRANSACTION:
                return batch
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                return batch
        if batch:
            self._waiting.put(None)
        return batch

    def _failed(self, error: sqlite3.Error) -> LogError:
        """The error of a log in use; callers from afar learn its file's name, this machine's log its place."""
        log.error("the upload log failed", extra={"path": str(self.path), "reason": str(error)})
        return _log_error(self.path.name, error)

    def _query(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._using_database:
            try:
                return self._database.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise self._failed(error) from error

    def _transaction(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        with self._using_database:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany(statement, rows)
                self._database.execute("COMMIT")
            except sqlite3.Error as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise self._failed(error) from error


def _log_error(path: Path | str, error: Exception) -> LogError:
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return LogFull(f"the disk of the upload log {path} is full; free some space, nothing acknowledged is lost")
    if code == sqlite3.SQLITE_BUSY:
        return LogError(f"the upload log {path} is in use by another server; stop that one or give another --log")
    return LogError(f"the upload log {path} cannot be used: {error}; check the file and its disk")
