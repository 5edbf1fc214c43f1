"""The upload log of many replicas: one Redis stream that every replica follows and any may append to.

A replica decides on the state that it has read up to its position, and appends under the condition that nobody has
written since: one script compares the position with the last entry's and appends, or says that the replica was
overtaken. It then reads what is new and decides again, so concurrent uploads of one image at two replicas are decided
one after the other.

    <prefix>:{live}:entries      stream of entries: i image id, o canonical id, c code, which a removal lacks
    <prefix>:{live}:last         stream id of the last entry that was ever appended
    <prefix>:{live}:forgotten    the last entry up to which some were forgotten
    <prefix>:{live}:meta         hash: log_id (random, made once), format_version, embedder_digest, dim
    <prefix>:{live}:replicas     hash: replica -> JSON of what it serves, its position and when it said so

Entries that no generation needs any more are deleted, so what is left is what a new replica has to read. A replica
whose position is before what was forgotten, or is not in the stream after Redis was away, reads everything again.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from operator import methodcaller
from typing import Any, Final

import redis

from lsh.errors import StoreError, StoreFullError
from lsh.redis_store.connection import Servers
from lsh.redis_store.url import StoreUrl
from service.errors import LogError, LogFull, Overtaken
from service.upload_log import LogEntry, Unread

log = logging.getLogger(__name__)

FORMAT_VERSION: Final = 1
_TAG: Final = b"live"
_NOWHERE: Final = b"0-0"
_BLOCK_MS: Final = 500
_ENTRIES_AT_ONCE: Final = 2048
_COPIES_MS: Final = 1000
_PAUSE_S: Final = 0.1
_REPORT_S: Final = 1.0
_FORGET_REPLICA_S: Final = 86_400
_APPEND: Final = """
if redis.call('HGET', KEYS[3], 'log_id') ~= ARGV[1] then return 'lost' end
if (redis.call('GET', KEYS[2]) or '0-0') ~= ARGV[2] then return 'overtaken' end
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
redis.call('SET', KEYS[2], id)
return id
"""


class RedisLog:
    """An open log. `append`, `unread` and `go_to_end` by one thread at a time, the rest from any."""

    def __init__(self, url: StoreUrl, *, embedder_digest: str, dim: int) -> None:
        """Open or create the log of a store; raises LogError when it is of another embedder, or Redis is away."""
        self.url = url
        self.replica = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self.unreachable_since: float | None = None
        self._identity = {
            "format_version": str(FORMAT_VERSION),
            "embedder_digest": embedder_digest,
            "dim": str(dim),
        }
        self._entries, self._last, self._forgotten, self._meta, self._replicas = (
            f"{url.prefix}:{{{_TAG.decode()}}}:{name}".encode()
            for name in ("entries", "last", "forgotten", "meta", "replicas")
        )
        self._position = _NOWHERE
        self._seen_losses = 0
        self._closing = threading.Event()
        self._follower: threading.Thread | None = None
        try:
            self._servers = Servers(url)
        except StoreError as error:
            raise LogError(str(error)) from error
        try:
            self._log_id = self._checked_identity()
            self.go_to_end()
        except LogError:
            self._servers.close()
            raise

    def append(self, entry: LogEntry) -> Future[None]:
        """Write an entry that was decided on all up to the position; the future is done.

        Raises Overtaken when another replica wrote since, LogError when Redis cannot write. After a LogError the
        entry may have been written all the same; then it is read as everybody else's.
        """
        fields: list[bytes | str] = ["i", entry.image_id, "o", entry.canonical_id]
        if entry.code is not None:
            fields += ["c", entry.code]
        result = self._call(lambda client: self._append(client, fields))
        if result == b"lost":
            raise self._lost()
        if result == b"overtaken":
            raise Overtaken
        self._position = result
        written: Future[None] = Future()
        written.set_result(None)
        return written

    def unread(self) -> Unread:
        """What was written since the position, which moves on; raises LogError."""
        position = self._position

        def read(client: redis.Redis) -> list[Any]:
            with client.pipeline(transaction=True) as pipeline:
                pipeline.hget(self._meta, "log_id")
                pipeline.get(self._forgotten)
                pipeline.xrange(self._entries, position, position)
                pipeline.xrange(self._entries, b"(" + position, "+", count=_ENTRIES_AT_ONCE)
                return pipeline.execute()

        losses_before = self._servers.num_losses
        log_id, forgotten, at_position, found = self._call(read)
        if log_id != self._log_id:
            raise self._lost()
        is_gap = self._servers.num_losses != self._seen_losses and position != _NOWHERE and not at_position
        self._seen_losses = losses_before
        if is_gap or _number(forgotten or _NOWHERE) > _number(position):
            self.go_to_end()
            return Unread([], is_broken=True)
        if found:
            self._position = found[-1][0]
        return Unread([_entry(fields) for _, fields in found], is_broken=False)

    def go_to_end(self) -> None:
        """Move the position to the last entry: all until there is read by `removed_ids` and `registered`."""
        self._position = self._call(lambda client: client.get(self._last)) or _NOWHERE

    def last_seq(self) -> int:
        """The number of the last entry."""
        return _number(self._call(lambda client: client.get(self._last)) or _NOWHERE)

    def removed_ids(self) -> list[str]:
        """Every image id that was ever removed."""
        return list({entry.image_id: None for _, entry in self._all() if entry.code is None})

    def registered(self, *, block_size: int = 8192) -> Iterator[list[LogEntry]]:
        """The images whose last entry registers them, oldest first, in blocks."""
        last = {entry.image_id: stream_id for stream_id, entry in self._all()}
        block: list[LogEntry] = []
        for stream_id, entry in self._all():
            if entry.code is not None and last.get(entry.image_id, stream_id) == stream_id:
                block.append(entry)
            if len(block) == block_size:
                yield block
                block = []
        if block:
            yield block

    def forget(self, image_ids: Iterable[str], *, until_seq: int) -> None:
        """Delete the entries of these images up to a number; raises LogError."""
        forgotten = set(image_ids)
        doomed = [
            stream_id
            for stream_id, entry in self._all()
            if entry.image_id in forgotten and _number(stream_id) <= until_seq
        ]
        for start in range(0, len(doomed), _ENTRIES_AT_ONCE):
            batch = doomed[start : start + _ENTRIES_AT_ONCE]
            self._call(partial(self._delete, stream_ids=batch))

    def follow(self, catch_up: Callable[[], str]) -> None:
        """Call `catch_up`, which returns what is served, from a thread of the log's whenever there is something new."""
        self._follower = threading.Thread(target=self._follow, args=(catch_up,), name="redis-log", daemon=True)
        self._follower.start()

    def close(self) -> None:
        """Stop following and close the connections."""
        self._closing.set()
        if self._follower is not None:
            self._follower.join()
            try:
                self._call(lambda client: client.hdel(self._replicas, self.replica))
            except LogError as error:
                log.info("the replica could not sign off", extra={"reason": str(error)})
        self._servers.close()

    def _follow(self, catch_up: Callable[[], str]) -> None:
        reported = 0.0
        while not self._closing.is_set():
            try:
                self._call(lambda client: client.xread({self._entries: self._position}, count=1, block=_BLOCK_MS))
                serves = catch_up()
                if time.monotonic() - reported > _REPORT_S:
                    self._report(serves)
                    reported = time.monotonic()
            except LogError as error:
                if self.unreachable_since is None:
                    self.unreachable_since = time.time()
                    log.error("the upload log is away: writes fail until it is back", extra={"reason": str(error)})
                self._closing.wait(_PAUSE_S)
                continue
            except Exception:
                log.exception("the upload log cannot be followed")
                self._closing.wait(_PAUSE_S)
                continue
            if self.unreachable_since is not None:
                seconds = round(time.time() - self.unreachable_since, 3)
                self.unreachable_since = None
                log.info("the upload log is back", extra={"seconds": seconds})

    def _report(self, serves: str) -> None:
        """Say where this replica is, and take those out that were silent for a day."""
        now = time.time()
        said = json.dumps({"position": self._position.decode(), "at": round(now, 3), "generation_id": serves})
        replicas = self._call(lambda client: client.hgetall(self._replicas))
        silent = [name for name, text in replicas.items() if now - json.loads(text)["at"] > _FORGET_REPLICA_S]

        def write(client: redis.Redis) -> None:
            client.hset(self._replicas, self.replica, said)
            if silent:
                client.hdel(self._replicas, *silent)

        self._call(write)

    def _append(self, client: redis.Redis, fields: list[bytes | str]) -> bytes:
        with client.pipeline(transaction=False) as pipeline:
            pipeline.eval(_APPEND, 3, self._entries, self._last, self._meta, self._log_id, self._position, *fields)
            if self.url.copies:
                pipeline.wait(self.url.copies, _COPIES_MS)
            result, *copied = pipeline.execute()
        if copied and result not in (b"lost", b"overtaken") and copied[0] < self.url.copies:
            raise LogError(
                f"the entry has {copied[0]} copies in {self.url}, copies={self.url.copies} are asked for; "
                "check the Redis replicas and try again"
            )
        appended: bytes = result
        return appended

    def _delete(self, client: redis.Redis, stream_ids: list[bytes]) -> None:
        """First the mark, so that no replica misses a removal that it has not read."""
        with client.pipeline(transaction=True) as pipeline:
            pipeline.set(self._forgotten, stream_ids[-1])
            pipeline.xdel(self._entries, *stream_ids)
            pipeline.execute()

    def _all(self) -> Iterator[tuple[bytes, LogEntry]]:
        """Every entry with its stream id, oldest first; those written meanwhile come last."""
        position = _NOWHERE
        read = partial(methodcaller, "xrange", self._entries, max="+", count=_ENTRIES_AT_ONCE)
        while found := self._call(read(min=b"(" + position)):
            yield from ((stream_id, _entry(fields)) for stream_id, fields in found)
            position = found[-1][0]

    def _checked_identity(self) -> bytes:
        """The log's id; makes the log if there is none."""

        def meet(client: redis.Redis) -> dict[bytes, bytes]:
            with client.pipeline(transaction=True) as pipeline:
                for name, value in {**self._identity, "log_id": secrets.token_hex(16)}.items():
                    pipeline.hsetnx(self._meta, name, value)
                pipeline.hgetall(self._meta)
                found: dict[bytes, bytes] = pipeline.execute()[-1]
                return found

        found = {name.decode(): value.decode() for name, value in self._call(meet).items()}
        for name, value in self._identity.items():
            if found[name] != value:
                raise LogError(
                    f"the upload log in {self.url} has {name} {found[name]}, this server {value}; serve a generation "
                    "of the same embedder, or give the store another prefix to start without its uploads"
                )
        log_id: str = found["log_id"]
        return log_id.encode()

    def _lost(self) -> LogError:
        return LogError(
            f"{self.url} has not the upload log that this replica follows: Redis lost its data; restore its files, or "
            "start the replicas again to go on without the uploads since"
        )

    def _call(self, ask: Callable[[redis.Redis], Any]) -> Any:
        try:
            return self._servers.call(_TAG, ask)
        except StoreFullError as error:
            raise LogFull(f"uploads cannot be written: {error}") from error
        except StoreError as error:
            raise LogError(f"uploads cannot be written or followed: {error}") from error


def read_replicas(url: StoreUrl) -> dict[str, dict[str, Any]]:
    """What replicas said last: `generation_id`, `position`, `seconds_ago`, `behind_s`; raises StoreError."""
    servers = Servers(url)
    prefix = f"{url.prefix}:{{{_TAG.decode()}}}:"
    try:
        replicas: dict[bytes, bytes] = servers.call(_TAG, methodcaller("hgetall", prefix + "replicas"))
        last: bytes | None = servers.call(_TAG, methodcaller("get", prefix + "last"))
    finally:
        servers.close()
    now, found = time.time(), {}
    for name, text in sorted(replicas.items()):
        said = json.loads(text)
        missing_ms = (_number(last or _NOWHERE) >> 32) - (_number(said["position"].encode()) >> 32)
        found[name.decode()] = {
            "generation_id": said["generation_id"],
            "position": said["position"],
            "seconds_ago": round(max(0.0, now - said["at"]), 1),
            "behind_s": max(0, missing_ms) / 1000,
        }
    return found


def _entry(fields: dict[bytes, bytes]) -> LogEntry:
    return LogEntry(fields[b"i"].decode(), fields.get(b"c"), fields[b"o"].decode())


def _number(stream_id: bytes) -> int:
    """A stream id `milliseconds-number` as one integer that sorts alike.

    >>> _number(b"1-2") == (1 << 32) + 2
    True
    """
    milliseconds, _, number = stream_id.partition(b"-")
    return (int(milliseconds) << 32) + int(number)
