"""The server over real gRPC: what its calls answer, and with which codes."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from lsh.index.publishing import current, generation_folder, promote
from service import neardup_pb2 as pb
from service import neardup_pb2_grpc
from service.client import AsyncNearDupClient, NearDupClient, lookup_request
from service.errors import CallFailed, GenerationRefused, SettingsError
from service.settings import Limits
from tests.service.conftest import Serve
from tests.service.corpora import DIM, add_generation, image_ids, near, random_embeddings

EMBEDDINGS = random_embeddings(200)
NEW = random_embeddings(600, seed=77)


def test_an_image_is_looked_up_registered_and_removed(serve: Serve) -> None:
    """The life of an upload through the sync client."""
    with serve() as running, running.client() as client:
        assert list(client.lookup(NEW[0]).matches) == []
        assert client.register("new", NEW[0]).canonical_id == "new"
        match = client.lookup(near(NEW[0], 0.95)).matches[0]
        assert (match.image_id, match.canonical_id, match.source) == ("new", "new", pb.SOURCE_LIVE)
        assert match.score == pytest.approx(0.95, abs=0.01)
        copy = client.lookup_or_register("copy", near(NEW[0], 0.95))
        assert (copy.registered, copy.canonical_id, copy.matches[0].image_id) == (False, "new", "new")
        assert client.register("second", near(NEW[0], 0.9)).canonical_id == "new"
        assert list(client.cluster("second", page_size=1)) == ["new", "second"]
        assert client.lookup("second").matches[0].image_id == "new"
        assert client.remove("new").was_known
        assert not client.remove("new").was_known
        status = client.status()
        assert (status.num_live, status.embedding_only, status.generation.num_docs) == (1, True, 200)


def test_the_async_client_does_the_same(serve: Serve) -> None:
    """The life of an upload through the asyncio client."""

    async def use(address: str) -> None:
        async with AsyncNearDupClient(address) as client:
            assert (await client.register("new", NEW[0])).canonical_id == "new"
            assert (await client.lookup(NEW[0])).matches[0].image_id == "new"
            assert not (await client.lookup_or_register("copy", NEW[0])).registered
            assert [member async for member in client.cluster("new")] == ["new"]
            assert (await client.remove("new")).was_known
            assert (await client.status()).num_live == 0
            assert [entry.is_current for entry in await client.generations()] == [True]
            with pytest.raises(CallFailed, match="not known"):
                await client.lookup("nobody")

            async def requests() -> object:
                for row in EMBEDDINGS[:20]:
                    yield lookup_request(row, k=1)

            answers = client.lookup_many(requests())  # type: ignore[arg-type]
            assert [answer.response.matches[0].image_id async for answer in answers] == image_ids(20)

    with serve() as running:
        asyncio.run(use(running.address))


def test_a_stream_answers_in_order_and_a_wrong_request_fails_alone(serve: Serve) -> None:
    """More requests than the window; the failure says what an own call would."""
    requests = [lookup_request(row, k=1) for row in EMBEDDINGS]
    requests.insert(100, lookup_request(EMBEDDINGS[0][:5]))
    with serve() as running, running.client() as client:
        answers = list(client.lookup_many(requests))

    failure = answers.pop(100).failure
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "20 bytes" in failure.message
    assert [answer.response.matches[0].image_id for answer in answers] == image_ids(200)


def test_a_stream_answers_before_the_next_request(serve: Serve) -> None:
    """A client may wait for each answer before it asks again."""
    with serve() as running, running.client() as client:
        answered = threading.Semaphore(0)

        def one_by_one() -> object:
            for row in EMBEDDINGS[:5]:
                yield lookup_request(row, k=1)
                assert answered.acquire(timeout=10)

        found = []
        for answer in client.lookup_many(one_by_one()):  # type: ignore[arg-type]
            found.append(answer.response.matches[0].image_id)
            answered.release()

    assert found == image_ids(5)


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        (pb.LookupRequest, "query is empty"),
        (lambda: lookup_request(NEW[0][:10]), "40 bytes"),
        (lambda: lookup_request(np.full(DIM, np.nan, np.float32)), "NaN or infinity"),
        (lambda: lookup_request(np.full(DIM, np.inf, np.float32)), "NaN or infinity"),
        (lambda: lookup_request(np.full(DIM, 3e38, np.float32), k=4_000_000_000), "k=4000000000 is out of range"),
        (lambda: lookup_request(np.zeros(DIM, np.float32)), "length 0"),
        (lambda: lookup_request(NEW[0], min_score=float("nan")), "min_score=nan"),
        (lambda: lookup_request(NEW[0], min_score=7.0), "min_score=7"),
        (lambda: lookup_request(""), "image_id has 0 bytes"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    serve: Serve, request_of: Callable[[], pb.LookupRequest], message: str
) -> None:
    """INVALID_ARGUMENT, with the value and the range."""
    with serve() as running, grpc.insecure_channel(running.address) as channel:
        with pytest.raises(grpc.RpcError) as failed:
            neardup_pb2_grpc.NearDupStub(channel).Lookup(request_of(), timeout=10)

        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert message in failed.value.details()


def test_codes_tell_errors_apart(serve: Serve) -> None:
    """Unknown images, taken ids, images without an embedder, foreign page tokens and unknown generations."""
    with serve() as running, running.client() as client:
        client.register("new", NEW[0])
        expected: dict[str, Callable[[], object]] = {
            "NOT_FOUND": lambda: client.lookup("nobody"),
            "ALREADY_EXISTS": lambda: client.register("new", NEW[1]),
            "INVALID_ARGUMENT": lambda: client.register("newer", "new"),
        }
        for code, call in expected.items():
            with pytest.raises(CallFailed) as failed:
                call()
            assert failed.value.code == code
        refused: list[Callable[[], object]] = [
            lambda: client.lookup(b"\xff\xd8"),
            lambda: client.promote("nope"),
            client.rollback,
        ]
        for call in refused:
            with pytest.raises(CallFailed) as failed:
                call()
            assert failed.value.code == "FAILED_PRECONDITION"


def test_a_request_id_is_given_back(serve: Serve) -> None:
    """The caller's own when it can be logged, otherwise a new one."""
    with serve() as running, grpc.insecure_channel(running.address) as channel:
        status = neardup_pb2_grpc.NearDupStub(channel).Status
        for given, is_kept in (("upload-17.a_b", True), ("x" * 65, False), ("a b", False)):
            _, call = status.with_call(pb.StatusRequest(), metadata=[("x-request-id", given)])
            answered = dict(call.trailing_metadata())["x-request-id"]
            assert (answered == given) is is_kept
            assert len(answered) in (len("upload-17.a_b"), 32)


def test_health_and_reflection_answer(serve: Serve) -> None:
    """What balancers and grpcurl ask."""
    with serve() as running, grpc.insecure_channel(running.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "neardup.v1.NearDup", "neardup.v1.Admin"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflected = ProtoReflectionDescriptorDatabase(channel)
        assert {"neardup.v1.NearDup", "neardup.v1.Admin", "grpc.health.v1.Health"} <= set(reflected.get_services())
        file = reflected.FindFileContainingSymbol("neardup.v1.NearDup")
        assert "LookupOrRegister" in [method.name for method in file.service[0].method]


def test_metrics_are_shown(serve: Serve) -> None:
    """Calls by code, stages, candidates, hits by source, the live index and the generation's age."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics_listen = f"127.0.0.1:{free.getsockname()[1]}"
    with serve(metrics_listen=metrics_listen) as running, running.client() as client:
        client.register("new", NEW[0])
        client.lookup(NEW[0])
        client.lookup(EMBEDDINGS[0])
        client.lookup(NEW[1])
        with pytest.raises(CallFailed):
            client.lookup("nobody")
        with urlopen(f"http://{metrics_listen}/metrics") as page:
            lines = page.read().decode().splitlines()
    for line in (
        'neardup_calls_total{code="OK",method="Lookup"} 3.0',
        'neardup_calls_total{code="NOT_FOUND",method="Lookup"} 1.0',
        'neardup_lookups_total{found_in="live"} 1.0',
        'neardup_lookups_total{found_in="hash_tables"} 1.0',
        'neardup_lookups_total{found_in="none"} 1.0',
        'neardup_stage_seconds_count{stage="log"} 1.0',
        "neardup_candidates_count 3.0",
        "neardup_live_images 1.0",
        "neardup_generation_docs 200.0",
        "neardup_lookup_queue 0.0",
    ):
        assert line in lines
    assert any(line.startswith("neardup_generation_age_seconds ") for line in lines)


def test_a_promoted_generation_is_served_and_rolled_back(serve: Serve, index: Path) -> None:
    """Promote and rollback switch the server and move the workspace's pointer."""
    first = current(index)
    second = add_generation(index, image_ids(10, prefix="other"), NEW[:10])
    with serve() as running, running.client() as client:
        promoted = client.promote(second)
        assert (promoted.generation.generation_id, promoted.previous_generation_id) == (second, first)
        assert client.lookup(NEW[0]).matches[0].image_id == "other-0"
        assert current(index) == second
        assert {entry.generation_id: entry.is_current for entry in client.generations()} == {
            first: False,
            second: True,
        }
        assert client.rollback().generation.generation_id == first
        assert client.lookup(EMBEDDINGS[0]).matches[0].image_id == "image-0"
        assert current(index) == first


def test_a_generation_promoted_by_another_process_is_followed(serve: Serve, index: Path) -> None:
    """The server sees the pointer move."""
    target = add_generation(index, image_ids(10, prefix="other"), NEW[:10])
    with serve() as running, running.client() as client:
        promote(index, target)
        deadline = time.monotonic() + 20
        while client.status().generation.generation_id != target:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_damaged_generation_is_refused_and_the_pointer_stays(serve: Serve, index: Path) -> None:
    """FAILED_PRECONDITION names the file; the old generation answers on."""
    before = current(index)
    target = add_generation(index, image_ids(10, prefix="other"), NEW[:10])
    damaged = next(path for path in generation_folder(index, target).iterdir() if "code" in path.name)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with serve() as running, running.client() as client:
        with pytest.raises(CallFailed, match=damaged.name) as failed:
            client.promote(target)
        assert failed.value.code == "FAILED_PRECONDITION"
        assert current(index) == before
        assert client.lookup(EMBEDDINGS[0]).matches[0].image_id == "image-0"


def test_no_call_fails_while_generations_are_switched(serve: Serve, index: Path) -> None:
    """Promotions under load from several threads: every lookup is answered, by either generation."""
    first = current(index)
    assert first is not None
    second = add_generation(index, image_ids(200), EMBEDDINGS, min_score=0.7)
    failures: list[BaseException] = []
    stop = threading.Event()
    generations: set[str] = set()

    def load(client: NearDupClient, seed: int) -> None:
        generator = np.random.default_rng(seed)
        try:
            while not stop.is_set():
                number = int(generator.integers(200))
                answer = client.lookup(EMBEDDINGS[number])
                assert answer.matches[0].image_id == f"image-{number}"
                generations.add(answer.generation_id)
        except BaseException as error:
            failures.append(error)

    with serve() as running, running.client() as client:
        threads = [threading.Thread(target=load, args=(client, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for target in (second, first, second):
            client.promote(target)
        stop.set()
        for thread in threads:
            thread.join()

    assert failures == []
    assert generations == {first, second}


def test_a_full_queue_refuses_at_once(serve: Serve) -> None:
    """RESOURCE_EXHAUSTED instead of waiting without end; afterwards the server answers as before."""
    limits = Limits(max_lookup_queue=4, max_lookup_batch=1, lookup_threads=1)
    with serve(limits=limits) as running, running.client() as client:
        lookup = client._neardup.Lookup
        calls = [lookup.future(lookup_request(row)) for row in np.concatenate([EMBEDDINGS] * 3)]
        codes = {call.code() for call in calls}
        assert codes == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert client.lookup(EMBEDDINGS[0]).matches[0].image_id == "image-0"


def test_deadlines_end_calls(serve: Serve) -> None:
    """A call without time left fails with DEADLINE_EXCEEDED, also on a server that is stuck."""
    with serve(limits=Limits(max_call_s=0.2)) as running, running.client() as client:
        lock = running.server._engine._changing
        with lock, pytest.raises(CallFailed) as failed:
            client.register("new", NEW[0])
        assert failed.value.code == "DEADLINE_EXCEEDED"
        with lock, pytest.raises(grpc.RpcError) as late:
            client._neardup.Register(pb.RegisterRequest(image_id="a", query=lookup_request(NEW[1]).query), timeout=0.05)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_workspace_without_a_generation_says_what_to_do(serve: Serve, tmp_path: Path) -> None:
    """The operator learns the next command."""
    with pytest.raises(SettingsError, match="neardup index"), serve(index=tmp_path / "nothing"):
        pass


def test_a_damaged_current_generation_is_not_served(serve: Serve, index: Path) -> None:
    """Start fails by name instead of serving wrong answers."""
    folder = generation_folder(index, str(current(index)))
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(GenerationRefused, match=r"manifest\.json"), serve():
        pass


def test_a_port_that_is_taken_is_an_error_of_settings(serve: Serve, index: Path) -> None:
    """No traceback for an operator."""
    with (
        serve() as running,
        pytest.raises(SettingsError, match="cannot listen"),
        serve(listen=running.address, log=index.parent / "other"),
    ):
        pass
