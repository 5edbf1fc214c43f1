"""The clients against a server that fails in ways of its own, and their settings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from service import neardup_pb2 as pb
from service import neardup_pb2_grpc
from service.client import AsyncNearDupClient, Connection, NearDupClient
from service.errors import CallFailed, SettingsError


@dataclass
class FailingServer:
    """Answers Status with each of `codes` in turn, then with its version."""

    address: str = ""
    codes: list[grpc.StatusCode] = field(default_factory=list)
    num_calls: int = 0

    def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:  # noqa: N802 - gRPC's name
        self.num_calls += 1
        if self.codes:
            context.abort(self.codes.pop(0), "not now")
        return pb.StatusResponse(version="1")


@pytest.fixture
def failing() -> Iterator[FailingServer]:
    """A gRPC server with one call that works."""
    servicer = FailingServer()
    for name in ("Lookup", "LookupStream", "Register", "LookupOrRegister", "Remove", "GetCluster"):
        setattr(servicer, name, servicer.Status)
    server = grpc.server(ThreadPoolExecutor(2))
    neardup_pb2_grpc.add_NearDupServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    server.stop(None).wait()


def test_unavailable_is_retried(failing: FailingServer) -> None:
    """Both clients try again and have their answer."""

    async def ask() -> str:
        async with AsyncNearDupClient(failing.address) as client:
            return (await client.status()).version

    failing.codes = [grpc.StatusCode.UNAVAILABLE] * 2
    with NearDupClient(failing.address) as client:
        assert client.status().version == "1"
    failing.codes = [grpc.StatusCode.UNAVAILABLE] * 2
    assert asyncio.run(ask()) == "1"
    assert failing.num_calls == 6


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_nothing_else_is_retried(failing: FailingServer, code: grpc.StatusCode) -> None:
    """A wrong request stays wrong, and an overloaded server is not asked more."""
    failing.codes = [code]

    with NearDupClient(failing.address) as client, pytest.raises(CallFailed, match="not now") as failed:
        client.status()

    assert (failed.value.code, failing.num_calls) == (code.name, 1)


def test_a_server_that_stays_away_is_named(failing: FailingServer) -> None:
    """After the last attempt the error says which server, and why."""
    failing.codes = [grpc.StatusCode.UNAVAILABLE] * 20

    with NearDupClient(failing.address) as client, pytest.raises(CallFailed, match=failing.address) as failed:
        client.status()

    assert (failed.value.code, failing.num_calls) == ("UNAVAILABLE", 5)


def test_a_token_is_never_shown() -> None:
    """Not in the repr that ends up in a log or a traceback."""
    assert "secret-token" not in repr(Connection(token="secret-token"))


def test_credentials_must_be_whole(tmp_path: Path) -> None:
    """A certificate without its key, or a file that is not there, is told before any call."""
    with pytest.raises(SettingsError, match="together"):
        NearDupClient(Connection(certificate=tmp_path / "a"))
    with pytest.raises(SettingsError, match="missing"):
        NearDupClient(Connection(authority=tmp_path / "missing"))
