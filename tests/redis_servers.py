"""Real Redis servers for tests, on free ports: one, a cluster of three, a master with a replica and sentinels."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis


def free_port() -> int:
    """A port that is free, with room for a cluster's bus 10,000 above it."""
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
        if port < 55_000:
            return port


@dataclass
class RedisServer:
    """A `redis-server` that can be killed and started again on the same port with the same files."""

    folder: Path
    options: Sequence[str] = ()
    conf: Path | None = None
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)

    def start(self, *, sentinel: bool = False) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        at = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--loglevel", "warning"]
        kind = [str(self.folder / "sentinel.conf"), "--sentinel"] if sentinel else [str(self.conf)] if self.conf else []
        self.process = subprocess.Popen(["redis-server", *kind, *at, *self.options], stdout=subprocess.DEVNULL)
        wait_for(self._answers)

    def kill(self) -> None:
        """SIGKILL, as when a machine is lost."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError as error:
            return isinstance(error, redis.AuthenticationError)


def wait_for(holds: Callable[[], object], *, timeout_s: float = 30.0) -> None:
    """Wait until a condition holds; fails when it never does."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


@contextmanager
def redis_server(
    folder: Path, *options: str, append_only: bool = False, conf: Path | None = None
) -> Iterator[RedisServer]:
    """One server, with its settings in `conf` if given; with `append_only` every write is on disk when acknowledged."""
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server")
    durable = ["--appendonly", "yes", "--appendfsync", "always"] if append_only else []
    server = RedisServer(folder, options if conf else ["--save", "", *durable, *options], conf=conf)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def redis_cluster(folder: Path, *, num_replicas: int = 0) -> Iterator[list[RedisServer]]:
    """Three masters that share the slots, then `num_replicas` for each."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-replica-validity-factor", "0")
    with ExitStack() as stack:
        servers = [stack.enter_context(redis_server(folder / str(i), *options)) for i in range(3 * (1 + num_replicas))]
        create = ["redis-cli", "--cluster", "create", *(server.url.removeprefix("redis://") for server in servers)]
        subprocess.run(
            [*create, "--cluster-replicas", str(num_replicas), "--cluster-yes"], check=True, stdout=subprocess.DEVNULL
        )
        for server in servers:
            wait_for(lambda server=server: server.client().cluster("INFO")["cluster_state"] == "ok")  # type: ignore[misc]
        yield servers
