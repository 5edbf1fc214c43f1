"""Traces, sent to a real collector."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from service import neardup_pb2 as pb
from service import neardup_pb2_grpc
from service.traces import Traces
from tests.service.conftest import Serve

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")


def test_calls_are_spans_under_the_caller_s_trace(serve: Serve) -> None:
    """The span carries the trace id that the caller sent and the call's name."""
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

    received: list[Any] = []

    class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
            received.extend(
                span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans
            )
            return trace_service_pb2.ExportTraceServiceResponse()

    collector = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    try:
        with serve(traces=f"http://127.0.0.1:{port}") as running, grpc.insecure_channel(running.address) as channel:
            parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
            neardup_pb2_grpc.NearDupStub(channel).Status(pb.StatusRequest(), metadata=[("traceparent", parent)])
    finally:
        collector.stop(None)

    assert [(span.name, span.trace_id.hex(), span.parent_span_id.hex()) for span in received] == [
        ("Status", "ab" * 16, "cd" * 8)
    ]


def test_without_an_endpoint_nothing_is_traced() -> None:
    """A span is then free, and an invalid one is never looked at."""
    traces = Traces(None)

    with traces.span("Lookup", {"traceparent": "nonsense"}) as span:
        assert span is None
    traces.close()
