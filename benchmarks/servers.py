"""Servers that benchmarks start, each a process of its own, ended on the way out."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

START_S = 3600.0


@dataclass(frozen=True, slots=True)
class Address:
    """A running server and the setting that it chose."""

    address: str
    setting: str = ""


@contextmanager
def running_server(command: Sequence[str], log: Path) -> Iterator[Address]:
    """Start a server and wait until its output says where it listens; ended on the way out."""
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=output, stderr=subprocess.STDOUT)
    try:
        started = _first_json_line(process, log)
        yield Address(str(started["listen"]), str(started.get("setting", "")))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _first_json_line(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n"):
                value: dict[str, Any] = json.loads(line)
                return value
        time.sleep(0.05)
    raise click.ClickException(f"a server did not start:\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}")


@contextmanager
def running_redis(folder: Path) -> Iterator[int]:
    """A Redis of our own that keeps nothing on disk; gives its port."""
    if shutil.which("redis-server") is None:
        raise click.ClickException("datasketch-redis needs redis-server; install it, or leave that peer out of --peers")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL)
    try:
        _wait_for_redis(port)
        yield port
    finally:
        process.terminate()
        process.wait()


def _wait_for_redis(port: int) -> None:
    import redis

    until = time.monotonic() + 30
    with redis.Redis(port=port) as client:
        while True:
            try:
                client.ping()
                return
            except redis.ConnectionError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
