"""What every call has in common: its request id, its caller's scope, its time, its status code, its line in the log.

`Calls.unary` and `Calls.stream` wrap the methods of a servicer. A wrapper instead of gRPC interceptors: it sees the
typed errors of this package, and costs a call nothing but what it does.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

import grpc

from embed.errors import ImageRejected
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
_CODES: Final[tuple[tuple[type[BaseException], grpc.StatusCode], ...]] = (
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (ImageRejected, grpc.StatusCode.INVALID_ARGUMENT),
    (UnknownImage, grpc.StatusCode.NOT_FOUND),
    (ImageIdTaken, grpc.StatusCode.ALREADY_EXISTS),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (LogFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (LogError, grpc.StatusCode.UNAVAILABLE),
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
    caller: str


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

        async def handle(request: Any, context: Any) -> Any:
            async def answer(call: Call) -> Any:
                async with asyncio.timeout(self._max_call_s):
                    return await method(request, call)

            return await self._run(name, scope, context, answer)

        return handle

    def stream(
        self, name: str, scope: Scope, method: Callable[[Any, Call], Awaitable[None]]
    ) -> Callable[[Any, Any], Awaitable[None]]:
        """A handler of a bidirectional stream; the method reads and writes the context itself."""

        async def handle(_: Any, context: Any) -> None:
            await self._run(name, scope, context, lambda call: method(context, call))

        return handle

    async def _run(self, name: str, scope: Scope, context: Any, answer: Callable[[Call], Awaitable[Any]]) -> Any:
        started = perf_counter()
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        request_id = request_id_of(metadata)
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        code, message = grpc.StatusCode.OK, ""
        try:
            with self._traces.span(name, metadata):
                grant = self._tokens.admit(metadata.get("authorization"), scope)
                return await answer(Call(request_id, grant.name))
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            code, message = status_of(error, request_id)
        finally:
            seconds = perf_counter() - started
            self._metrics.calls.labels(name, code.name).inc()
            self._metrics.call_seconds.labels(name).observe(seconds)
            if log.isEnabledFor(logging.DEBUG):
                ms = round(seconds * 1000, 3)
                line = {"method": name, "request_id": request_id, "code": code.name, "ms": ms, "reason": message}
                log.debug("call", extra=line)
        return await context.abort(code, message)


def request_id_of(metadata: dict[str, str]) -> str:
    """The caller's request id, or a new one when it gave none that can be logged."""
    given = metadata.get(REQUEST_ID, "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def status_of(error: Exception, request_id: str) -> tuple[grpc.StatusCode, str]:
    """The status code of an error and a message for the caller; one of our own bugs is logged, and named by its id."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code, str(error) or "the call took longer than this server allows; try again, or ask for less"
    log.error("internal error", exc_info=error, extra={"request_id": request_id})
    return grpc.StatusCode.INTERNAL, f"internal error; the server's log has it under request id {request_id}"
