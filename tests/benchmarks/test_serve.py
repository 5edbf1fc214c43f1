"""Rules of the serving benchmark: the load generator's clock, the peers, and a whole run with real servers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import serve_comparison
from benchmarks.lookup import BruteForce, held_out_queries
from benchmarks.serve import command
from benchmarks.serve_load import Load, LoadGenerator, write_requests
from benchmarks.serve_peers import BARE_METHOD, EMPTY_METHOD, PEERS, PeerJob, first_rows, recall_at_1
from benchmarks.servers import Address, running_server

NUM_IMAGES, NUM_QUERIES = 1000, 80


@pytest.fixture(scope="module")
def generator() -> Iterator[LoadGenerator]:
    with LoadGenerator() as running:
        yield running


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    log = tmp_path_factory.mktemp("empty") / "server.log"
    with running_server(["benchmarks.serve_peers", ""], log) as server:
        yield server


def load_of(server: Address, folder: Path, **changes: object) -> Load:
    requests = write_requests(folder / "requests.npy", [b"%03d" % number for number in range(100)])
    given = {"address": server.address, "method": EMPTY_METHOD, "requests": requests, "seconds": 0.3, **changes}
    return Load(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [EMPTY_METHOD, BARE_METHOD])
def test_requests_sent_once_come_back_in_order(
    method: str, generator: LoadGenerator, empty: Address, tmp_path: Path
) -> None:
    """Responses stand in the order of the requests, however many are in flight."""
    sent = generator.run(load_of(empty, tmp_path, method=method, in_flight=7, once=True, seconds=60.0))
    assert sent.responses == [b"%03d" % number for number in range(100)]
    assert sent.is_ok.all()


def test_a_closed_loop_keeps_as_many_calls_in_flight_as_asked_for(
    generator: LoadGenerator, empty: Address, tmp_path: Path
) -> None:
    """One at a time means that a call begins when the one before it has ended."""
    sent = generator.run(load_of(empty, tmp_path, in_flight=1))
    ends = sent.began_s + sent.latency_us / 1e6
    assert len(ends) > 10
    assert (sent.began_s[1:] >= ends[:-1]).all()


def test_an_open_loop_follows_its_rate_and_not_the_server(
    generator: LoadGenerator, empty: Address, tmp_path: Path
) -> None:
    """Arrivals are those of the seed, whatever the calls take."""
    load = load_of(empty, tmp_path, rate_per_s=200.0, seconds=1.0, seed=5)
    began = [np.sort(generator.run(load).began_s) for _ in range(2)]
    assert 140 <= len(began[0]) <= 260
    np.testing.assert_allclose(np.diff(began[0]), np.diff(began[1]), atol=1e-6)


def test_a_load_can_be_stopped(generator: LoadGenerator, empty: Address, tmp_path: Path) -> None:
    """It ends early and the generator takes the next one."""
    generator.begin(load_of(empty, tmp_path, rate_per_s=100.0, seconds=600.0))
    generator.stop()
    assert generator.finish().wall_s < 60
    assert generator.run(load_of(empty, tmp_path, in_flight=1)).is_ok.all()


def test_failed_calls_are_counted_by_their_code(generator: LoadGenerator, empty: Address, tmp_path: Path) -> None:
    """A method that the server lacks is UNIMPLEMENTED, 12, and no success."""
    sent = generator.run(load_of(empty, tmp_path, method="/benchmarks.Shell/None", in_flight=1))
    assert set(sent.codes.tolist()) == {12}
    assert not sent.is_ok.any()


@pytest.mark.parametrize("name", ["hnsw", "flat", "multi-hash", "datasketch"])
def test_a_peer_finds_what_brute_force_finds(name: str, tmp_path: Path) -> None:
    """Over the first rows of a corpus, nearly every query with a near-duplicate has its best doc first."""
    num_kept = 600
    queries = held_out_queries(NUM_IMAGES, NUM_QUERIES, seed=0)
    truth = BruteForce(queries)
    for rows in first_rows(NUM_IMAGES, NUM_QUERIES, num_kept, seed=0):
        truth.add(rows)
    np.savez(tmp_path / "truth.npz", queries=queries, best=truth.cosines)
    peer = PEERS[name](
        PeerJob(
            name=name,
            num_images=NUM_IMAGES,
            num_kept=num_kept,
            num_queries=NUM_QUERIES,
            seed=0,
            queries=str(tmp_path / "truth.npz"),
            target_recall=0.95,
        )
    )
    docs, similarities = peer.nearest(queries)
    assert docs.max() < num_kept
    assert recall_at_1(truth.cosines, similarities[:, 0]) >= 0.95


def test_recall_counts_answers_that_are_as_similar_as_the_best() -> None:
    """A query without a near-duplicate is left out; another doc of equal cosine is as good."""
    best = np.array([0.8, 0.9, 0.95, 0.5], np.float32)
    assert recall_at_1(best, np.array([0.798, 0.85, 0.95, -1.0], np.float32)) == pytest.approx(2 / 3)
    assert recall_at_1(best[3:], np.array([-1.0], np.float32)) == 1.0


def test_the_benchmark_measures_every_contender_in_every_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small run with real servers, and a real Redis where there is one: no call fails, nearly everything is found."""
    monkeypatch.setattr(serve_comparison, "ROUNDS", 1)
    peers = ["flat", *(["datasketch-redis"] if shutil.which("redis-server") else [])]
    path = tmp_path / "serve.json"
    options = ["--seconds", "0.3", "--rate", "50", "--promote-rate", "100", "--registers", "100"]
    options += ["--beside-seconds", "1"]
    size = ["--images", str(NUM_IMAGES), "--queries", str(NUM_QUERIES), "--peers", ",".join(peers)]
    result = CliRunner().invoke(command, [*size, *options, "--json", str(path)])
    assert result.exit_code == 0, result.output
    rows = json.loads(path.read_text())["rows"]
    lookups = {"closed loop", "open loop"}
    for contender in ("ours", *peers):
        own = [row for row in rows if row["contender"] == contender and row["case"] in lookups]
        assert [row["in_flight"] for row in own[:2]] == [1, 16]
        assert own[2]["case"] == "open loop"
        assert all(row["recall"] > 0.9 and row["ratio"] > 0 and row["p99_us"] >= row["p50_us"] for row in own)
    beside = {"lookups, beside each other", "uploads, beside each other"}
    assert {row["case"] for row in rows} == {*lookups, *beside, "promote, around", "promote, during", "register"}
    assert all(row["errors"] == 0 for row in rows)
    assert {row["ratio"] for row in rows if row["contender"] == "empty call"} == {1.0}


def test_an_unknown_peer_is_named() -> None:
    """With those that there are."""
    result = CliRunner().invoke(command, ["--peers", "hnsw,milvus"])
    assert result.exit_code == 2
    assert "milvus; choose from hnsw, flat" in result.output
