"""Callers that send nonsense, giants or bombs, that leave or never read: the server answers everybody else."""

from __future__ import annotations

import asyncio
import errno
import io
import resource
import signal
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from embed.decoding import ImageLimits, ImageRejected
from embed.embedder_dir import describe_embedder
from lsh.index.publishing import promote
from service import neardup_pb2 as pb
from service import neardup_pb2_grpc
from service.client import lookup_request
from service.decoding_pool import DecodingLimits, DecodingPool
from service.errors import CallFailed, Overloaded
from service.settings import Limits
from tests.photos import synthetic_photo
from tests.service.conftest import RunningServer, Serve
from tests.service.corpora import DIM, add_generation, image_ids, near, random_embeddings

EMBEDDINGS = random_embeddings(200)
SIZE = 32
CALLER_ERRORS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION}


def still_serves(running: RunningServer) -> bool:
    with running.client() as client:
        return str(client.lookup(EMBEDDINGS[0]).matches[0].image_id) == "image-0"


def malformed_requests(num: int) -> Iterator[bytes]:
    """Random bytes, damaged requests, and well-formed ones with nonsense in every field."""
    generator = np.random.default_rng(11)
    whole = lookup_request(EMBEDDINGS[0], k=3, min_score=0.5).SerializeToString()
    for number in range(num):
        kind = number % 4
        if kind == 0:
            yield generator.bytes(int(generator.integers(0, 400)))
        elif kind == 1:
            damaged = bytearray(whole)
            for _ in range(int(generator.integers(1, 6))):
                damaged[int(generator.integers(len(damaged)))] = int(generator.integers(256))
            yield bytes(damaged[: int(generator.integers(len(damaged) + 1))])
        elif kind == 2:
            values = generator.choice(np.array([0, np.nan, np.inf, -np.inf, 1e-45, 3e38], np.float32), DIM)
            query = pb.Query(embedding=pb.Embedding(float32=values.astype("<f4").tobytes()))
            yield pb.LookupRequest(query=query, k=int(generator.integers(2**32))).SerializeToString()
        else:
            name = "".join(map(chr, generator.integers(1, 0xD7FF, int(generator.integers(0, 900)))))
            yield pb.LookupRequest(
                query=pb.Query(image_id=name), min_score=float(generator.normal())
            ).SerializeToString()


def test_malformed_requests_get_an_error_of_the_caller(serve: Serve) -> None:
    """Thousands of them: no internal error, no crash, and nobody else notices."""
    codes: Counter[grpc.StatusCode] = Counter()
    with serve() as running, grpc.insecure_channel(running.address) as channel:
        methods = [
            channel.unary_unary(f"/neardup.v1.NearDup/{name}")
            for name in ("Lookup", "Register", "LookupOrRegister", "Remove", "GetCluster")
        ]
        in_flight = []
        for number, request in enumerate(malformed_requests(3000)):
            in_flight.append(methods[number % 5 if number % 2 else 0].future(request, timeout=30))
            if len(in_flight) == 200:
                codes.update(call.code() for call in in_flight)
                in_flight.clear()
        assert still_serves(running)
    assert codes.keys() <= CALLER_ERRORS | {grpc.StatusCode.OK}


def test_a_stream_of_nonsense_is_ended(serve: Serve) -> None:
    """Bytes that are no message end the stream with INVALID_ARGUMENT."""
    with serve() as running, grpc.insecure_channel(running.address) as channel:
        stream = channel.stream_stream("/neardup.v1.NearDup/LookupStream")(iter([b"\xff\xff"]))
        with pytest.raises(grpc.RpcError) as failed:
            next(stream)
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_giant_message_is_refused_before_it_is_read(serve: Serve) -> None:
    """RESOURCE_EXHAUSTED from gRPC's own limit."""
    with serve() as running, running.client() as client:
        with pytest.raises(CallFailed) as failed:
            client.lookup(bytes(40 << 20))
        assert failed.value.code == "RESOURCE_EXHAUSTED"
        assert still_serves(running)


def test_callers_that_leave_are_forgotten(serve: Serve) -> None:
    """Cancelled calls and broken connections leave nothing waiting behind."""
    with serve() as running:
        for _ in range(20):
            with grpc.insecure_channel(running.address) as channel:
                stub = neardup_pb2_grpc.NearDupStub(channel)
                calls = [stub.Lookup.future(lookup_request(row)) for row in EMBEDDINGS[:30]]
                stream = stub.LookupStream(lookup_request(row) for row in EMBEDDINGS)
                next(iter(stream))
                for call in calls[::2]:
                    call.cancel()
        assert still_serves(running)
        deadline = time.monotonic() + 20
        lookups = running.server.metrics.registry.get_sample_value
        while lookups("neardup_lookup_queue") != 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_caller_that_never_reads_holds_a_bounded_window(serve: Serve, index: Path) -> None:
    """The server stops reading its requests, answers everybody else, and ends the stream after a while."""
    alike = np.stack([near(EMBEDDINGS[0], 0.99, seed=number) for number in range(200)])
    promote(index, add_generation(index, image_ids(200), alike))
    asked = lookup_request(EMBEDDINGS[0], k=200)
    limits = Limits(max_stream_idle_s=1.0, stream_window=8)
    with serve(limits=limits) as running, grpc.insecure_channel(running.address) as channel:
        count = running.server.metrics.registry.get_sample_value
        stream = neardup_pb2_grpc.NearDupStub(channel).LookupStream(asked for _ in range(100_000))
        deadline = time.monotonic() + 30
        while not count("neardup_calls_total", {"method": "LookupStream", "code": "DEADLINE_EXCEEDED"}):
            with running.client() as client:
                client.status()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert (count("neardup_candidates_count") or 0) < 10_000
        stream.cancel()


@pytest.mark.parametrize("num_connections", [400, pytest.param(5000, marks=pytest.mark.long)])
def test_idle_connections_cost_little(serve: Serve, num_connections: int) -> None:
    """Hundreds of connections that say nothing leave the server as it was; thousands cost 64 KiB each at most."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    if most_files < 3 * num_connections:
        pytest.skip(f"this process may open {most_files} files")
    with serve() as running:
        before = psutil.Process().memory_info().rss
        connections = [socket.create_connection(("127.0.0.1", running.server.port)) for _ in range(num_connections)]
        try:
            assert still_serves(running)
            assert psutil.Process().memory_info().rss - before < (100 << 20) + num_connections * (64 << 10)
        finally:
            for connection in connections:
                connection.close()
        assert still_serves(running)


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG with any size in its header and any compressed data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg(seed: int = 0, *, quality: int = 90) -> bytes:
    file = io.BytesIO()
    synthetic_photo(seed).save(file, "JPEG", quality=quality)
    return file.getvalue()


BOMB = png(7000, 7000, zlib.compress(bytes(7000 * (7000 * 3 + 1)), 9))
DECODING = DecodingLimits(image=ImageLimits(max_pixels=50_000_000), memory_bytes=512 << 20, num_processes=1)


@pytest.fixture
def serve_pool(serve: Serve) -> Iterator[RunningServer]:
    """A running server, for its event loop."""
    with serve() as running:
        yield running


@asynccontextmanager
async def started_pool(limits: DecodingLimits) -> AsyncIterator[DecodingPool]:
    """A pool for the block; what it leaves running would keep its event loop from closing."""
    pool = DecodingPool(size=SIZE, limits=limits)
    try:
        await pool.start()
        yield pool
    finally:
        await pool.close()


def decode_all(running: RunningServer, contents: list[bytes], limits: DecodingLimits) -> tuple[list[object], int]:
    """What a pool makes of each file, one after the other, and how many of its processes were replaced."""

    async def decode() -> tuple[list[object], int]:
        results: list[object] = []
        async with started_pool(limits) as pool:
            for content in contents:
                try:
                    (square,) = await pool.decode(content)
                    results.append(square)
                except ImageRejected as rejected:
                    results.append(rejected.reason.value)
            return results, pool.num_restarts

    results: tuple[list[object], int] = running.run(decode())
    return results


def test_files_that_are_no_whole_image_are_rejected(serve_pool: RunningServer) -> None:
    """Truncated, empty, polyglot and unknown files have their reasons, and their decoder lives on."""
    polyglot = b"GIF89a" + jpeg()
    contents = [jpeg()[:-200], b"", b"%PDF-1.7 " + jpeg(), polyglot, b"\x00" * 1000, jpeg()]

    results, num_restarts = decode_all(serve_pool, contents, DECODING)

    *rejected, decoded = results
    assert all(isinstance(reason, str) for reason in rejected)
    assert isinstance(decoded, np.ndarray)
    assert decoded.shape == (SIZE, SIZE, 3)
    assert num_restarts == 0


def test_a_decompression_bomb_ends_at_its_limits(serve_pool: RunningServer) -> None:
    """Too many pixels are refused by the header; what exhausts memory or time costs at most its process."""
    declared = png(100_000, 100_000, zlib.compress(bytes(1000)))
    tight = DecodingLimits(image=ImageLimits(max_pixels=50_000_000), memory_bytes=300 << 20, num_processes=1)
    results, _ = decode_all(serve_pool, [declared, BOMB, jpeg()], tight)
    assert results[0] == "too_many_pixels"
    assert results[1] == "unreadable"
    assert isinstance(results[2], np.ndarray)

    hasty = DecodingLimits(image=DECODING.image, time_s=0.15, num_processes=1)
    results, num_restarts = decode_all(serve_pool, [BOMB, jpeg()], hasty)
    assert results[0] == "unreadable"
    assert num_restarts >= 1


def test_a_decoder_that_is_killed_while_it_decodes_is_replaced(serve_pool: RunningServer) -> None:
    """As by the kernel when memory is short: the image is rejected, the next one decoded."""

    async def kill_and_decode() -> tuple[str, object]:
        async with started_pool(DECODING) as pool:
            (process,) = pool._processes
            process.send_signal(signal.SIGSTOP)
            first = asyncio.ensure_future(pool.decode(jpeg()))
            while not pool._idle.empty():
                await asyncio.sleep(0)
            process.kill()
            with pytest.raises(ImageRejected) as rejected:
                await first
            return rejected.value.detail, (await pool.decode(jpeg()))[0]

    first, second = serve_pool.run(kill_and_decode())

    assert first == "the image ended its decoder"
    assert isinstance(second, np.ndarray)


def test_a_decoder_that_is_killed_while_it_waits_costs_no_image(serve_pool: RunningServer) -> None:
    """Its image was not there yet, so the next one is decoded by another process."""

    async def kill_and_decode() -> tuple[object, int]:
        async with started_pool(DECODING) as pool:
            (process,) = pool._processes
            process.kill()
            await process.wait()
            return (await pool.decode(jpeg()))[0], pool.num_restarts

    pixels, num_restarts = serve_pool.run(kill_and_decode())

    assert isinstance(pixels, np.ndarray)
    assert num_restarts > 0


def test_a_decoder_that_cannot_be_started_is_started_later(
    serve_pool: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without room for a process costs the images of that moment, not the decoder."""
    start = asyncio.create_subprocess_exec

    async def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    async def kill_and_decode() -> object:
        async with started_pool(DECODING) as pool:
            (process,) = pool._processes
            process.kill()
            await process.wait()
            monkeypatch.setattr(asyncio, "create_subprocess_exec", no_room)
            with pytest.raises(Overloaded, match="temporarily unavailable"):
                await pool.decode(jpeg())
            monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
            return (await pool.decode(jpeg()))[0]

    assert isinstance(serve_pool.run(kill_and_decode()), np.ndarray)


def test_a_full_decoder_queue_refuses_at_once(serve_pool: RunningServer) -> None:
    """More images than may wait are told so instead of being kept in memory."""

    async def decode_many() -> Counter[str]:
        async with started_pool(replace(DECODING, max_queue=3)) as pool:
            results = await asyncio.gather(*(pool.decode(jpeg()) for _ in range(12)), return_exceptions=True)
        return Counter(type(result).__name__ for result in results)

    counts = serve_pool.run(decode_many())

    assert counts == {"list": 12 - counts["Overloaded"], "Overloaded": counts["Overloaded"]}
    assert counts["Overloaded"] >= 8


@pytest.mark.tensorflow
def test_images_are_served_and_bombs_rejected_over_grpc(serve: Serve, tmp_path: Path, tiny_embedder: str) -> None:
    """The whole way of an image: registered, found by a recompressed copy; hostile ones refused meanwhile."""
    workspace = tmp_path / "tiny"
    digest = describe_embedder(tiny_embedder).digest
    embeddings = np.eye(256, dtype=np.float32)[:20]
    promote(workspace / "index", add_generation(workspace / "index", image_ids(20), embeddings, digest=digest))
    codes: Counter[str] = Counter()
    stop = threading.Event()

    def attack(running: RunningServer) -> None:
        with running.client() as attacker:
            while not stop.is_set():
                for content in (BOMB, jpeg()[:-100], b"GIF89a", b""):
                    try:
                        attacker.lookup(content)
                    except CallFailed as failed:
                        codes[failed.code] += 1

    with (
        serve(index=workspace / "index", log=workspace / "log", embedder=tiny_embedder, decoding=DECODING) as running,
        running.client() as client,
    ):
        assert client.register("photo", jpeg(3)).canonical_id == "photo"
        attacker = threading.Thread(target=attack, args=(running,))
        attacker.start()
        try:
            copies = [client.lookup(jpeg(3, quality=60)).matches[0].image_id for _ in range(5)]
        finally:
            stop.set()
            attacker.join()
        assert copies == ["photo"] * 5
        assert client.lookup_or_register("again", jpeg(3, quality=60)).canonical_id == "photo"
    assert set(codes) == {"INVALID_ARGUMENT"}
