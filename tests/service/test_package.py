"""Rules of the package as a whole."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.json_logs import JsonFormatter
from service.settings import host_and_port, is_loopback

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("service.errors", {"grpc", "faiss", "numba", "numpy", "keras", "tensorflow"}),
        ("service.engine", {"grpc", "keras", "tensorflow", "pyspark"}),
        ("service.server", {"keras", "tensorflow", "pyspark", "opentelemetry"}),
        ("service.client", {"faiss", "numba", "keras", "tensorflow", "pyspark"}),
        ("service.decode_worker", {"grpc", "faiss", "numba", "keras", "tensorflow"}),
    ],
)
def test_a_module_loads_only_what_it_needs(module: str, heavy: set[str]) -> None:
    """So that clients are light, decoders are small and embedding-only servers start at once."""
    program = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert result.stdout == "[]\n"


def test_the_generated_code_is_that_of_the_proto(tmp_path: Path) -> None:
    """Whoever changes the .proto runs scripts/protos."""
    pytest.importorskip("grpc_tools")
    options = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    compiler = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *options, "service/neardup.proto"]

    subprocess.run(compiler, check=True, cwd=ROOT)

    generated = sorted((tmp_path / "service").iterdir())
    assert [path.name for path in generated] == ["neardup_pb2.py", "neardup_pb2.pyi", "neardup_pb2_grpc.py"]
    for path in generated:
        assert path.read_text() == (ROOT / "service" / path.name).read_text()


def test_every_part_of_the_protocol_is_explained() -> None:
    """Each message that has fields and each call has a comment above it."""
    lines = (ROOT / "service" / "neardup.proto").read_text().splitlines()
    for above, line in pairwise(lines):
        if line.strip().startswith("rpc "):
            assert above.strip().startswith("//"), line


def test_a_log_line_is_one_json_object() -> None:
    """With time, level, event and whatever was given, tracebacks included."""
    record = logging.makeLogRecord({"msg": "call %s", "args": ("x",), "levelname": "INFO", "request_id": "abc"})

    line = json.loads(JsonFormatter().format(record))

    assert (line["event"], line["level"], line["request_id"]) == ("call x", "info", "abc")
    assert line["time"].endswith("+00:00")


def test_addresses_are_read_strictly() -> None:
    """A server must not listen where nobody meant it to."""
    assert host_and_port("[::1]:50051") == ("::1", 50051)
    assert [is_loopback(listen) for listen in ("127.0.0.1:1", "[::1]:1", "localhost:1", "0.0.0.0:1", "db:1")] == [
        True,
        True,
        True,
        False,
        False,
    ]
    for listen in ("50051", ":50051", "host:", "host:port", "host:99999", "host:-1"):
        with pytest.raises(SettingsError, match="HOST:PORT"):
            host_and_port(listen)
