"""Real servers for the service's tests: in a thread of their own where a test looks inside, else as processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from service.client import Connection, NearDupClient
from service.server import Server
from service.settings import ServeSettings
from tests.service.corpora import add_current_generation


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server in a thread; `run` runs a coroutine on its loop."""

    server: Server
    loop: asyncio.AbstractEventLoop

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def client(self, **options: Any) -> NearDupClient:
        return NearDupClient(Connection(address=f"localhost:{self.server.port}", **options))

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=60)


Serve = Callable[..., AbstractContextManager[RunningServer]]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """The index folder of a workspace whose current generation has 200 images."""
    add_current_generation(tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def serve(index: Path) -> Serve:
    """A function that serves the workspace of `index`, with settings changed by name."""

    @contextmanager
    def running(**changes: Any) -> Iterator[RunningServer]:
        settings = ServeSettings(
            index=index,
            log=index.parent / "live" / "uploads.sqlite",
            listen="127.0.0.1:0",
            watch_s=0.1,
            announce_drain_s=0.0,
            drain_s=1.0,
        )
        loop = uvloop.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="server")
        thread.start()
        try:
            server = asyncio.run_coroutine_threadsafe(_started(replace(settings, **changes)), loop).result(timeout=120)
            try:
                yield RunningServer(server, loop)
            finally:
                asyncio.run_coroutine_threadsafe(server.stop(), loop).result(timeout=60)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    return running


async def _started(settings: ServeSettings) -> Server:
    server = Server(settings)
    await server.start()
    return server


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """`neardup serve` as an operator runs it."""

    process: subprocess.Popen[str]
    started: dict[str, Any]

    @property
    def address(self) -> str:
        return str(self.started["listen"])


def server_process(workspace: Path, *options: str) -> AbstractContextManager[ServerProcess]:
    """Start `neardup serve --insecure` and wait for its first line; killed at the end if it still runs."""
    return _server_process("--workspace", str(workspace), *options)


def store_process(store: str, *options: str) -> AbstractContextManager[ServerProcess]:
    """The same without a workspace: embeddings only, index and uploads in a store."""
    return _server_process("--embedding-only", "--store", store, *options)


@contextmanager
def _server_process(*options: str) -> Iterator[ServerProcess]:
    command = [sys.executable, "-m", "cli", "serve", "--insecure", "--listen", "127.0.0.1:0"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith("{"), line + process.stderr.read()
            yield ServerProcess(process, json.loads(line))
        finally:
            process.kill()
            process.communicate()
