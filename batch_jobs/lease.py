"""A lease: who may write, and until when, on any shared folder: local, NFS, or an object store that is mounted.

    .leases/run/00000007.json     the seventh holder: host, process, what it does, since when, until when
    .lock                         locked by the holder's process, where the file system has locks

The holder is the highest number. It renews its own file in the background, and nobody else writes that file. When the
holder has released it or it has expired, the next number is created exclusively, so of all who try one wins; a holder
that slept through its expiry finds the higher number and stops. The only thing asked of the file system is that a file
is created by one of two who try (POSIX `O_EXCL`, NFS 3 and later). On one machine `flock` tells at once that a holder
was killed, and nobody waits for the expiry.

Source: Gray and Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file cache consistency",
SOSP 1989.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from batch_jobs.errors import LeaseHeldError, LeaseLostError

LEASE_S = 120.0
HEARTBEAT_S = 20.0
MAX_CLOCK_SKEW_S = 10.0
POLL_S = 0.1
_NUMBER = re.compile(r"(\d{8})\.json")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease. Times are seconds since 1970; `released` tells that it was given back."""

    host: str
    machine: str
    pid: int
    what: str
    taken_at: float
    expires_at: float
    released: bool = False

    def describe(self) -> str:
        """The holder for an operator."""
        return (
            f"{self.what} (host {self.host}, process {self.pid}, since {_clock(self.taken_at)}), "
            f"whose lease lasts until {_clock(self.expires_at)} and is renewed while it works"
        )


def this_machine() -> str:
    """A name that two processes share exactly when one kernel runs both."""
    with suppress(OSError):
        return _BOOT_ID.read_text("ascii").strip()
    return socket.gethostname()


class Lease:
    """A lease whose files are in `folder`, held inside the `with` block; `lock` is the file to lock on one machine.

    Entering raises LeaseHeldError where another holds it for longer than `wait_s`; OSError where `folder` cannot be
    written.
    """

    def __init__(
        self,
        folder: Path,
        what: str,
        *,
        lock: Path,
        wait_s: float = 0.0,
        lease_s: float = LEASE_S,
        heartbeat_s: float = HEARTBEAT_S,
        machine: str | None = None,
    ) -> None:
        self.folder = folder
        self.number = 0
        self._lock_path = lock
        self._wait_s = wait_s
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._holder = Holder(socket.gethostname(), machine or this_machine(), os.getpid(), what, 0.0, 0.0)
        self._lock: IO[str] | None = None
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Lease:
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                self._take()
                break
            except LeaseHeldError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(POLL_S)
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._heart is not None:
            self._heart.join()
        with suppress(OSError, LeaseLostError):
            self._release()
        self._unlock()

    def check(self) -> None:
        """Renew the lease; raises LeaseLostError when another has taken it over, OSError when it could not be renewed.

        A full disk, or a server that is away, is no loss until the lease has expired.
        """
        self._renew()

    def describe(self, what: str) -> None:
        """Say more exactly what the holder does."""
        self._holder = replace(self._holder, what=what)
        self._renew()

    def _take(self) -> None:
        has_lock = self._lock_file()
        try:
            number, holder = _latest(self.folder, lease_s=self._lease_s)
            # Whoever of this machine held it would hold the lock as well: it was killed.
            is_dead = has_lock and holder is not None and holder.machine == self._holder.machine
            if holder is not None and not is_dead and not _is_over(holder):
                raise LeaseHeldError(holder.describe())
            self._create(number + 1)
        except BaseException:
            self._unlock()
            raise
        self.number = number + 1
        for old in _numbers(self.folder):
            if old < self.number:
                _path(self.folder, old).unlink(missing_ok=True)

    def _create(self, number: int) -> None:
        now = time.time()
        self._holder = replace(self._holder, taken_at=now, expires_at=now + self._lease_s)
        try:
            descriptor = os.open(_path(self.folder, number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError as error:
            _, holder = _latest(self.folder, lease_s=self._lease_s)
            raise LeaseHeldError(holder.describe() if holder else "another process") from error
        # On a full disk the file stays empty and its age counts: who comes to free some space can hold the lease.
        with suppress(OSError), os.fdopen(descriptor, "wb") as file:
            file.write(_encoded(self._holder))
            file.flush()
            os.fsync(file.fileno())

    def _renew(self) -> None:
        with self._writing:
            self._require_latest()
            renewed = replace(self._holder, expires_at=time.time() + self._lease_s)
            try:
                self._write(renewed)
            except OSError:
                if time.time() >= self._holder.expires_at:
                    raise
                return
            self._holder = renewed

    def _release(self) -> None:
        with self._writing:
            self._require_latest()
            try:
                self._write(replace(self._holder, released=True))
            except OSError:
                path = _path(self.folder, self.number)
                path.write_bytes(b"")
                os.utime(path, (0, 0))

    def _require_latest(self) -> None:
        latest, holder = _latest(self.folder, lease_s=self._lease_s)
        if latest > self.number:
            raise LeaseLostError(holder.describe() if holder else "another process")

    def _write(self, holder: Holder) -> None:
        path = _path(self.folder, self.number)
        aside = path.with_name(f".{path.name}")
        try:
            aside.write_bytes(_encoded(holder))
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_s):
            try:
                self._renew()
            except LeaseLostError:
                return  # `check` tells the run, before it commits anything
            except OSError:
                continue  # the disk may have room again, or the server come back

    def _lock_file(self) -> bool:
        """Lock out others that see our locks, this machine's at least; False where the file system has none."""
        self._lock = self._lock_path.open("a")
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(POLL_S)  # somebody may only be looking whether it is free
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._unlock()
            _, holder = _latest(self.folder, lease_s=self._lease_s)
            raise LeaseHeldError(holder.describe() if holder else "another process") from error
        except OSError:
            return False
        return True

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def current_holder(folder: Path, *, lock: Path) -> Holder | None:
    """Who holds the lease on `folder`, None when it is free or its holder was killed on this machine."""
    _, holder = _latest(folder, lease_s=LEASE_S)
    if holder is None or _is_over(holder):
        return None
    return None if holder.machine == this_machine() and _is_free(lock) else holder


def _is_free(lock: Path) -> bool:
    """Whether nobody has locked a file; False where the file system cannot tell."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def _is_over(holder: Holder) -> bool:
    return holder.released or time.time() >= holder.expires_at + MAX_CLOCK_SKEW_S


def _latest(folder: Path, *, lease_s: float) -> tuple[int, Holder | None]:
    """The highest number with its holder; a file that is just being written is held until its age says otherwise."""
    number = max(_numbers(folder), default=0)
    if number == 0:
        return 0, None
    path = _path(folder, number)
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
        return number, Holder(**value)
    except FileNotFoundError:
        return _latest(folder, lease_s=lease_s)  # a newer holder has just cleaned up
    except (ValueError, TypeError):
        created_at = path.stat().st_mtime
        return number, Holder("unknown", "unknown", 0, "a run that is starting", created_at, created_at + lease_s)


def _numbers(folder: Path) -> list[int]:
    try:
        return [int(match[1]) for path in folder.iterdir() if (match := _NUMBER.fullmatch(path.name))]
    except FileNotFoundError:
        return []


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.json"


def _encoded(holder: Holder) -> bytes:
    return (json.dumps(asdict(holder), sort_keys=True) + "\n").encode()


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
