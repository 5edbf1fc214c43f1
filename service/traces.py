"""OpenTelemetry traces: spans of calls, sent to a collector when one is configured and costing nothing otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from service.errors import SettingsError


class Traces:
    """Spans around calls; without an endpoint it does nothing and imports nothing."""

    def __init__(self, endpoint: str | None) -> None:
        """`endpoint` is an OTLP/gRPC collector, `http://host:4317` or `https://...`; raises SettingsError."""
        self._provider: Any = None
        if endpoint is None:
            return
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415
        except ImportError as error:
            raise SettingsError(
                "--traces needs OpenTelemetry; install it with `pip install 'neardup[traces]'`"
            ) from error
        self._provider = TracerProvider(resource=Resource.create({"service.name": "neardup"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("neardup")
        self._propagator = TraceContextTextMapPropagator()

    def span(self, name: str, metadata: Mapping[str, str] | None = None) -> AbstractContextManager[Any]:
        """A span under the current one, or under the caller's `traceparent` when its metadata is given."""
        if self._provider is None:
            return nullcontext()
        parent = None if metadata is None else self._propagator.extract(metadata)
        span: AbstractContextManager[Any] = self._tracer.start_as_current_span(name, context=parent)
        return span

    def close(self) -> None:
        """Send what is waiting."""
        if self._provider is not None:
            self._provider.shutdown()
