"""What every call has in common: its request id, its caller's scope, its time, its status code, its line in the log.

`Calls.unary` and `Calls.stream` wrap the methods of a servicer. A wrapper instead of gRPC interceptors: it sees the
typed errors of this package, and costs a call nothing but what it does.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from embed.errors import ImageRejected
from lsh.errors import StoreError
from service import neardup_pb2 as pb
from service.errors import (
    GenerationChanged,
    GenerationRefused,
    ImageIdTaken,
    InvalidRequest,
    LogError,
    LogFull,
    NotAuthenticated,
    NotPermitted,
    NotServed,
    Overloaded,
    UnknownImage,
)
from service.metrics import Metrics
from service.tokens import Scope, Tokens
from service.traces import Traces

log = logging.getLogger(__name__)

REQUEST_ID: Final = "x-request-id"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROCESS_ID: Final = uuid.uuid4().hex[:20]
_call_numbers: Final = itertools.count()
_CODES: Final[tuple[tuple[type[BaseException], grpc.StatusCode], ...]] = (
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (ImageRejected, grpc.StatusCode.INVALID_ARGUMENT),
    (UnknownImage, grpc.StatusCode.NOT_FOUND),
    (ImageIdTaken, grpc.StatusCode.ALREADY_EXISTS),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (LogFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (LogError, grpc.StatusCode.UNAVAILABLE),
    (StoreError, grpc.StatusCode.UNAVAILABLE),
    (NotAuthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (NotPermitted, grpc.StatusCode.PERMISSION_DENIED),
    (NotServed, grpc.StatusCode.FAILED_PRECONDITION),
    (GenerationRefused, grpc.StatusCode.FAILED_PRECONDITION),
    (GenerationChanged, grpc.StatusCode.ABORTED),
    (TimeoutError, grpc.StatusCode.DEADLINE_EXCEEDED),
)


@dataclass(frozen=True, slots=True)
class Call:
    """One call in progress."""

    request_id: str


class Calls:
    """Wraps methods `(request, call) -> response` into gRPC handlers."""

    def __init__(self, tokens: Tokens, metrics: Metrics, traces: Traces, *, max_call_s: float) -> None:
        self._tokens = tokens
        self._metrics = metrics
        self._traces = traces
        self._max_call_s = max_call_s

    def unary(
        self, name: str, scope: Scope, method: Callable[[Any, Call], Awaitable[Any]]
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        """A handler of a call with one request and one response."""

        async def answer(call: Call, request: Any) -> Any:
            check_parsed(request)
            async with asyncio.timeout(self._max_call_s):
                return await method(request, call)

        return self._wrapped(name, scope, lambda call, request, _: answer(call, request))

    def stream(
        self, name: str, scope: Scope, method: Callable[[Any, Call], Awaitable[None]]
    ) -> Callable[[Any, Any], Awaitable[None]]:
        """A handler of a bidirectional stream; the method reads and writes the context itself."""
        return self._wrapped(name, scope, lambda call, _, context: method(context, call))

    def _wrapped(
        self, name: str, scope: Scope, answer: Callable[[Call, Any, Any], Awaitable[Any]]
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        async def handle(request: Any, context: Any) -> Any:
            started = perf_counter()
            metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
            request_id = request_id_of(metadata)
            context.set_trailing_metadata(((REQUEST_ID, request_id),))
            code, message, caller = grpc.StatusCode.OK, "", ""
            try:
                with self._traces.span(name, metadata):
                    caller = self._tokens.admit(metadata.get("authorization"), scope).name
                    return await answer(Call(request_id), request, context)
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:
                code, message = status_of(error, request_id)
            finally:
                seconds = perf_counter() - started
                self._metrics.finish_call(name, code.name, seconds)
                if log.isEnabledFor(logging.DEBUG):
                    line = {"method": name, "request_id": request_id, "caller": caller, "ms": f"{seconds * 1000:.3f}"}
                    log.debug("call", extra={**line, "code": code.name, "reason": message})
            return await context.abort(code, message)

        return handle


def rpc_handler(service: Any, servicer: object) -> grpc.GenericRpcHandler:
    """The methods of a servicer under the names of a service's descriptor.

    As the generated code would make it, but bytes that are no message reach `check_parsed` as the error they gave,
    where gRPC would answer UNKNOWN and log a traceback for each.
    """
    handlers = {}
    for method in service.methods:
        kind = grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_unary_rpc_method_handler
        request, response = getattr(pb, method.input_type.name), getattr(pb, method.output_type.name)
        handlers[method.name] = kind(
            getattr(servicer, method.name),
            request_deserializer=partial(_parse, request),
            response_serializer=response.SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _parse(message: Any, content: bytes) -> Any:
    try:
        return message.FromString(content)
    except DecodeError as error:
        return error


def check_parsed(request: Any) -> None:
    """Raises InvalidRequest for what `rpc_handler` could not parse."""
    if isinstance(request, DecodeError):
        raise InvalidRequest(f"the request is no message of this protocol; generate the client anew ({request})")


def request_id_of(metadata: dict[str, str]) -> str:
    """The caller's request id, or a new one when it gave none that can be logged."""
    given = metadata.get(REQUEST_ID, "")
    return given if given and _REQUEST_ID.fullmatch(given) else f"{_PROCESS_ID}{next(_call_numbers):012x}"


def status_of(error: Exception, request_id: str) -> tuple[grpc.StatusCode, str]:
    """The status code of an error and a message for the caller; one of our own bugs is logged, and named by its id."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code, str(error) or "the call took longer than this server allows; try again, or ask for less"
    log.error("internal error", exc_info=error, extra={"request_id": request_id})
    return grpc.StatusCode.INTERNAL, f"internal error; the server's log has it under request id {request_id}"
