"""Clients of the service, for threads and for asyncio.

Both connect at the first call, retry UNAVAILABLE with growing pauses inside gRPC, and raise `CallFailed` with the
server's own words. Make one and keep it: its connection carries any number of calls at once.

    with NearDupClient("localhost:50051") as client:
        response = client.lookup(Path("upload.jpg").read_bytes())
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from service import neardup_pb2 as pb
from service import neardup_pb2_grpc
from service.errors import CallFailed, SettingsError

Response = TypeVar("Response")
Image = bytes
Embedding = NDArray[np.float32]
Query = Image | Embedding | str
"""The bytes of an image file, a `(dim,)` float32 embedding, or the image id of a known image."""

_MAX_MESSAGE_BYTES: Final = 256 << 20
_SWITCH_S: Final = 3600.0
_SERVICE_CONFIG: Final = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach a server. Without an `authority` and without `tls` the connection is not encrypted.

    `authority` is a PEM file of the authority that signed the server's certificate; with `tls` and none, the system's
    authorities count. `certificate` and `key` are the client's own, for mutual TLS.
    """

    address: str = "127.0.0.1:50051"
    tls: bool = False
    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 30.0

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What is sent with every call."""
        return [] if self.token is None else [("authorization", f"Bearer {self.token}")]

    @property
    def options(self) -> list[tuple[str, Any]]:
        """Options of the channel."""
        return [
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.enable_retries", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
        ]

    def credentials(self) -> grpc.ChannelCredentials | None:
        """The credentials of the channel, None for an open one; raises SettingsError."""
        if not (self.tls or self.authority or self.certificate):
            return None
        if (self.certificate is None) != (self.key is None):
            raise SettingsError("a client's certificate and its key are given together or not at all")
        try:
            authority, key, certificate = (
                None if path is None else path.read_bytes() for path in (self.authority, self.key, self.certificate)
            )
        except OSError as error:
            raise SettingsError(f"{error.filename} cannot be read: {error.strerror}") from error
        return grpc.ssl_channel_credentials(authority, key, certificate)


class NearDupClient:
    """The service for threads; safe to share between them."""

    def __init__(self, connection: Connection | str = Connection()) -> None:
        self.connection = _connection(connection)
        credentials = self.connection.credentials()
        if credentials is None:
            self._channel = grpc.insecure_channel(self.connection.address, self.connection.options)
        else:
            self._channel = grpc.secure_channel(self.connection.address, credentials, self.connection.options)
        self._neardup: Any = neardup_pb2_grpc.NearDupStub(self._channel)
        self._admin: Any = neardup_pb2_grpc.AdminStub(self._channel)

    def lookup(self, query: Query, *, k: int = 10, min_score: float | None = None) -> pb.LookupResponse:
        """The known images most similar to a query; raises CallFailed."""
        return self._call(self._neardup.Lookup, lookup_request(query, k=k, min_score=min_score), pb.LookupResponse)

    def lookup_many(self, requests: Iterable[pb.LookupRequest]) -> Iterator[pb.LookupStreamResponse]:
        """Answers in the order of the requests, on one stream; `lookup_request` makes them."""
        try:
            yield from self._neardup.LookupStream(iter(requests), metadata=self.connection.metadata)
        except grpc.RpcError as error:
            raise call_failed(error, self.connection) from error

    def register(self, image_id: str, query: Query) -> pb.RegisterResponse:
        """Make an image findable under a key of yours; raises CallFailed."""
        return self._call(
            self._neardup.Register,
            pb.RegisterRequest(image_id=image_id, query=query_message(query)),
            pb.RegisterResponse,
        )

    def lookup_or_register(
        self, image_id: str, query: Query, *, k: int = 10, min_score: float | None = None
    ) -> pb.LookupOrRegisterResponse:
        """Register an image unless a near-duplicate is known; raises CallFailed."""
        request = pb.LookupOrRegisterRequest(image_id=image_id, query=query_message(query), k=k, min_score=min_score)
        return self._call(self._neardup.LookupOrRegister, request, pb.LookupOrRegisterResponse)

    def remove(self, image_id: str) -> pb.RemoveResponse:
        """Take an image out of every later answer; raises CallFailed."""
        return self._call(self._neardup.Remove, pb.RemoveRequest(image_id=image_id), pb.RemoveResponse)

    def cluster(self, image_id: str, *, page_size: int = 1000) -> Iterator[str]:
        """The image ids of the cluster of an image, page after page; raises CallFailed."""
        request = pb.GetClusterRequest(image_id=image_id, page_size=page_size)
        while True:
            page = self._call(self._neardup.GetCluster, request, pb.GetClusterResponse)
            yield from page.image_ids
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def status(self) -> pb.StatusResponse:
        """What is being served; raises CallFailed."""
        return self._call(self._neardup.Status, pb.StatusRequest(), pb.StatusResponse)

    def generations(self) -> list[pb.GenerationEntry]:
        """The generations of the workspace, oldest first; raises CallFailed."""
        return list(
            self._call(self._admin.ListGenerations, pb.ListGenerationsRequest(), pb.ListGenerationsResponse).generations
        )

    def promote(self, generation_id: str) -> pb.PromoteResponse:
        """Serve another generation; raises CallFailed."""
        return self._call(
            self._admin.Promote, pb.PromoteRequest(generation_id=generation_id), pb.PromoteResponse, _SWITCH_S
        )

    def rollback(self) -> pb.PromoteResponse:
        """Serve the generation before; raises CallFailed."""
        return self._call(self._admin.Rollback, pb.RollbackRequest(), pb.PromoteResponse, _SWITCH_S)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Any, _: type[Response], timeout_s: float | None = None) -> Response:
        try:
            response: Response = method(
                request, timeout=timeout_s or self.connection.timeout_s, metadata=self.connection.metadata
            )
            return response
        except grpc.RpcError as error:
            raise call_failed(error, self.connection) from error


class AsyncNearDupClient:
    """The service for asyncio; belongs to the event loop that it was made in."""

    def __init__(self, connection: Connection | str = Connection()) -> None:
        self.connection = _connection(connection)
        credentials = self.connection.credentials()
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(self.connection.address, self.connection.options)
        else:
            self._channel = grpc.aio.secure_channel(self.connection.address, credentials, self.connection.options)
        self._neardup: Any = neardup_pb2_grpc.NearDupStub(self._channel)
        self._admin: Any = neardup_pb2_grpc.AdminStub(self._channel)

    async def lookup(self, query: Query, *, k: int = 10, min_score: float | None = None) -> pb.LookupResponse:
        """The known images most similar to a query; raises CallFailed."""
        return await self._call(
            self._neardup.Lookup, lookup_request(query, k=k, min_score=min_score), pb.LookupResponse
        )

    async def lookup_many(self, requests: AsyncIterable[pb.LookupRequest]) -> AsyncIterator[pb.LookupStreamResponse]:
        """Answers in the order of the requests, on one stream; `lookup_request` makes them."""
        try:
            async for response in self._neardup.LookupStream(requests, metadata=self.connection.metadata):
                yield response
        except grpc.RpcError as error:
            raise call_failed(error, self.connection) from error

    async def register(self, image_id: str, query: Query) -> pb.RegisterResponse:
        """Make an image findable under a key of yours; raises CallFailed."""
        request = pb.RegisterRequest(image_id=image_id, query=query_message(query))
        return await self._call(self._neardup.Register, request, pb.RegisterResponse)

    async def lookup_or_register(
        self, image_id: str, query: Query, *, k: int = 10, min_score: float | None = None
    ) -> pb.LookupOrRegisterResponse:
        """Register an image unless a near-duplicate is known; raises CallFailed."""
        request = pb.LookupOrRegisterRequest(image_id=image_id, query=query_message(query), k=k, min_score=min_score)
        return await self._call(self._neardup.LookupOrRegister, request, pb.LookupOrRegisterResponse)

    async def remove(self, image_id: str) -> pb.RemoveResponse:
        """Take an image out of every later answer; raises CallFailed."""
        return await self._call(self._neardup.Remove, pb.RemoveRequest(image_id=image_id), pb.RemoveResponse)

    async def cluster(self, image_id: str, *, page_size: int = 1000) -> AsyncIterator[str]:
        """The image ids of the cluster of an image, page after page; raises CallFailed."""
        request = pb.GetClusterRequest(image_id=image_id, page_size=page_size)
        while True:
            page = await self._call(self._neardup.GetCluster, request, pb.GetClusterResponse)
            for member in page.image_ids:
                yield member
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def status(self) -> pb.StatusResponse:
        """What is being served; raises CallFailed."""
        return await self._call(self._neardup.Status, pb.StatusRequest(), pb.StatusResponse)

    async def generations(self) -> list[pb.GenerationEntry]:
        """The generations of the workspace, oldest first; raises CallFailed."""
        return list(
            (
                await self._call(self._admin.ListGenerations, pb.ListGenerationsRequest(), pb.ListGenerationsResponse)
            ).generations
        )

    async def promote(self, generation_id: str) -> pb.PromoteResponse:
        """Serve another generation; raises CallFailed."""
        return await self._call(
            self._admin.Promote, pb.PromoteRequest(generation_id=generation_id), pb.PromoteResponse, _SWITCH_S
        )

    async def rollback(self) -> pb.PromoteResponse:
        """Serve the generation before; raises CallFailed."""
        return await self._call(self._admin.Rollback, pb.RollbackRequest(), pb.PromoteResponse, _SWITCH_S)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: Any, request: Any, _: type[Response], timeout_s: float | None = None) -> Response:
        try:
            response: Response = await method(
                request, timeout=timeout_s or self.connection.timeout_s, metadata=self.connection.metadata
            )
            return response
        except grpc.RpcError as error:
            raise call_failed(error, self.connection) from error


def lookup_request(query: Query, *, k: int = 10, min_score: float | None = None) -> pb.LookupRequest:
    """A request for `lookup_many`."""
    return pb.LookupRequest(query=query_message(query), k=k, min_score=min_score)


def query_message(query: Query) -> pb.Query:
    """A query in the words of the protocol."""
    if isinstance(query, str):
        return pb.Query(image_id=query)
    if isinstance(query, bytes):
        return pb.Query(image=query)
    return pb.Query(embedding=pb.Embedding(float32=np.ascontiguousarray(query, dtype="<f4").tobytes()))


def call_failed(error: Any, connection: Connection) -> CallFailed:
    """The error of a call: gRPC's status code, where, and what was said there."""
    code = error.code().name
    return CallFailed(code, f"the call to {connection.address} failed with {code}: {error.details()}")


def _connection(given: Connection | str) -> Connection:
    return Connection(address=given) if isinstance(given, str) else given
