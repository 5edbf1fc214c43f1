"""The servers behind a store: one, the master that sentinels elect, or the masters of a cluster.

Pages are fetched by MGET, all of one server in one round trip and all servers at once, past redis-py's pipelines:
packing a command in Python costs more than Redis takes to answer it. What a hash tag names lies on one server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel

from lsh.errors import StoreError, StoreFullError
from lsh.redis_store.url import StoreUrl

T = TypeVar("T")

NUM_SLOTS: Final = 16_384
_ELSEWHERE: Final = (
    redis.ConnectionError,
    redis.TimeoutError,
    MovedError,
    AskError,
    ClusterDownError,
    TryAgainError,
    ReadOnlyError,
    SlotNotCoveredError,
    OSError,
)
"""Errors after which another connection, or another server, may know better."""
_FAILURES: Final = (RedisError, RedisClusterException, OSError)
_REFUSED: Final = (AuthenticationError, AuthorizationError, NoPermissionError)


class Servers:
    """Connections to the servers of a store; safe to use from several threads. Close it at the end."""

    def __init__(self, url: StoreUrl) -> None:
        """Connects on first use, but to a cluster at once; raises StoreError when none of its nodes answers."""
        self.url = url
        self.num_losses = 0
        """How often a connection was lost, or a server was not the one to ask any more."""
        self._cluster: RedisCluster | None = None
        self._client: redis.Redis | None = None
        options = _options(url)
        if url.kind == "single":
            host, port = url.servers[0]
            self._client = redis.Redis(host=host, port=port, db=url.database, **options)
        elif url.kind == "sentinel":
            sentinel: Any = Sentinel
            known = sentinel(url.servers, sentinel_kwargs=_sentinel_options(url), db=url.database, **options)
            self._client = known.master_for(url.service, redis_class=redis.Redis)
        else:
            node: Any = ClusterNode
            nodes = [node(host, port) for host, port in url.servers]
            try:
                self._cluster = RedisCluster(startup_nodes=nodes, **options)
            except _FAILURES as error:
                raise store_error(url, error) from error

    @property
    def num_masters(self) -> int:
        """How many servers keep a share of the keys."""
        return 1 if self._cluster is None else len(self._cluster.nodes_manager.get_nodes_by_server_type("primary"))

    def call(self, tag: bytes, ask: Callable[[redis.Redis], T]) -> T:
        """What `ask` returns for the server that keeps the keys of a hash tag; asked again once when that one is gone.

        `ask` may be called twice, so it only reads, or writes what may be written twice. Raises StoreError.
        """
        try:
            try:
                return ask(self._client_of(tag))
            except _ELSEWHERE:
                self._refresh()
                return ask(self._client_of(tag))
        except _FAILURES as error:
            raise store_error(self.url, error) from error

    def fetch(self, keys: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[list[bytes | None]]:
        """The values of `(tag, keys)` groups, None for a key that is not there: one round trip to each server."""
        try:
            try:
                return self._fetch(keys)
            except _ELSEWHERE:
                self._refresh()
                return self._fetch(keys)
        except _FAILURES as error:
            raise store_error(self.url, error) from error

    def close(self) -> None:
        """Close every connection that no thread is using."""
        for client in (self._client, self._cluster):
            if client is not None:
                client.close()

    def _client_of(self, tag: bytes) -> redis.Redis:
        if self._cluster is None:
            assert self._client is not None  # noqa: S101 - one of both
            return self._client
        node = self._cluster.nodes_manager.get_node_from_slot(key_slot(tag), read_from_replicas=False)
        return self._cluster.get_redis_connection(node)

    def _refresh(self) -> None:
        """Look where the keys of a cluster are now, or drop connections that a restart has closed."""
        self.num_losses += 1
        if self._cluster is not None:
            self._cluster.nodes_manager.initialize()
        elif self._client is not None:
            self._client.connection_pool.disconnect(inuse_connections=False)

    def _fetch(self, groups: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[list[bytes | None]]:
        asked: dict[int, tuple[redis.ConnectionPool, list[int]]] = {}
        for position, (tag, _) in enumerate(groups):
            pool = self._client_of(tag).connection_pool
            asked.setdefault(id(pool), (pool, []))[1].append(position)
        values: list[list[bytes | None]] = [[] for _ in groups]
        opened: list[tuple[redis.ConnectionPool, Any]] = []
        connection: Any
        is_whole = False
        try:
            for pool, positions in asked.values():
                connection = pool.get_connection()
                opened.append((pool, connection))
                connection.send_packed_command([b"".join([_mget(groups[one][1]) for one in positions])])
            for (_, connection), (_, positions) in zip(opened, asked.values(), strict=True):
                for position in positions:
                    values[position] = connection.read_response(disable_decoding=True)
            is_whole = True
        finally:
            for pool, connection in opened:
                if not is_whole:
                    connection.disconnect()
                pool.release(connection)
        return values


def store_error(url: StoreUrl, error: Exception) -> StoreError:
    """The error of the store `url` that stands for one of redis-py."""
    if isinstance(error, OutOfMemoryError):
        return StoreFullError(f"the store {url} is full (maxmemory); give it more memory, or remove old generations")
    if isinstance(error, _REFUSED):
        return StoreError(f"the store {url} refused the credentials: {error}; check user, password and its ACL")
    if isinstance(error, ResponseError) and not isinstance(error, _ELSEWHERE):
        return StoreError(f"the store {url} refused a command: {error}")
    if isinstance(error, RedisClusterException):
        return StoreError(f"the store {url} has no whole cluster: {error}; check `redis-cli cluster info`")
    return StoreError(f"the store {url} cannot be reached: {error}; check that it runs and can be reached from here")


def _mget(keys: Sequence[bytes]) -> bytes:
    """The bytes of one MGET in Redis' protocol."""
    head = b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1)
    return head + b"".join([b"$%d\r\n%b\r\n" % (len(key), key) for key in keys])


def _options(url: StoreUrl) -> dict[str, Any]:
    return {
        "username": url.username,
        "password": url.password,
        "socket_timeout": url.timeout_s,
        "socket_connect_timeout": url.timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        **_tls(url),
    }


def _sentinel_options(url: StoreUrl) -> dict[str, Any]:
    return {
        "username": url.sentinel_username,
        "password": url.sentinel_password,
        "socket_timeout": url.timeout_s,
        "socket_connect_timeout": url.timeout_s,
        **_tls(url),
    }


def _tls(url: StoreUrl) -> dict[str, Any]:
    if not url.is_encrypted:
        return {}
    return {
        "ssl": True,
        "ssl_ca_certs": url.authority,
        "ssl_certfile": url.certificate,
        "ssl_keyfile": url.key,
    }
