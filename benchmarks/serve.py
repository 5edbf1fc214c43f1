"""`python -m benchmarks serve`: lookups over gRPC under load, beside an empty call and other indexes behind one shell.

A corpus of synthetic embeddings with the statistics of real ones is written as a generation and served by `neardup
serve`; peers hold the same rows behind the same kind of server (`serve_peers`). A load generator in a process of its
own asks for held-out images, half of them edits of photos that the corpus knows. Each contender takes turns with an
empty call through the same server and call wrapper, so that both see the same machine: `ratio` is its median over the
empty call's. The bare call is what gRPC alone takes, without the wrapper.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.batch_embeddings import plant_embeddings
from benchmarks.lookup import BruteForce, K, held_out_queries, write_index
from benchmarks.results import versions, write_json
from benchmarks.serve_load import Load, LoadGenerator, Sent, write_requests
from benchmarks.serve_peers import BARE_METHOD, EMPTY_METHOD, PEERS, PeerJob, first_rows, recall_at_1
from cli.tables import show_table
from lsh.codes import pair_cosines, quantize
from lsh.index.generation import Generation, open_generation, read_manifest
from lsh.index.manifest import MANIFEST_NAME
from lsh.index.publishing import generation_folder, new_generation, promote
from service import neardup_pb2 as pb
from service.client import NearDupClient, lookup_request, query_message

OURS, EMPTY, BARE = "ours", "empty call", "bare call"
LOOKUP_METHOD, REGISTER_METHOD = "/neardup.v1.NearDup/Lookup", "/neardup.v1.NearDup/Register"
MAX_IMAGES = {"datasketch": 100_000, "datasketch-redis": 20_000}
IN_FLIGHT = (1, 16)
REGISTERS_IN_FLIGHT = 64
NUM_PROBES = 192
ROUNDS = 10
START_S = 3600.0
LONGEST_LOAD_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender in one case.

    `in_flight` is what a closed loop was given, or the mean that an open loop came to. `ratio` and `p99_ratio` are over
    an empty call in the same case, in turns with it; of a promote, over the time around it. Times are those of calls
    that succeeded, `errors` counts the others.
    """

    case: str
    contender: str
    images: int
    in_flight: float
    p50_us: float
    p99_us: float
    calls_per_s: float
    recall: float | None = None
    ratio: float = 1.0
    p99_ratio: float = 1.0
    calls_ratio: float = 1.0
    errors: int = 0
    setting: str = ""

    def over(self, other: Row) -> Row:
        """With ratios over another row."""
        return replace(
            self,
            ratio=self.p50_us / other.p50_us,
            p99_ratio=self.p99_us / other.p99_us,
            calls_ratio=self.calls_per_s / other.calls_per_s if other.calls_per_s else math.nan,
        )


@dataclass(frozen=True, slots=True)
class Traffic:
    """How calls arrive: a closed loop with `in_flight`, or an open one with `rate_per_s`."""

    case: str
    in_flight: int = 0
    rate_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Address:
    """A running server and the setting that it chose."""

    address: str
    setting: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """A workspace in `folder` and what is asked of it: held-out `queries` `(n, DIM)`, and the requests made of them."""

    num_images: int
    seed: int
    generation_id: str
    queries: NDArray[np.float32]
    folder: Path
    requests: str

    @property
    def index(self) -> Path:
        """The workspace's index."""
        return self.folder / "index"

    @property
    def generation_folder(self) -> Path:
        """The generation that is served first."""
        return generation_folder(self.index, self.generation_id)


class Comparison:
    """Contenders in turns with an empty call."""

    def __init__(self, generator: LoadGenerator, corpus: Corpus, empty: Address, *, seconds: float) -> None:
        self._generator = generator
        self._corpus = corpus
        self._seconds = seconds
        self._empty = Load(
            address=empty.address,
            method=EMPTY_METHOD,
            requests=write_requests(corpus.folder / "empty.npy", [b""]),
            seconds=seconds / ROUNDS,
        )
        self._empty_sent: dict[Traffic, list[Sent]] = {}

    def lookups(self, contender: str, server: Address, traffic: Traffic, *, images: int, recall: float) -> Row:
        """Held-out images over and over."""
        load = Load(
            address=server.address, method=LOOKUP_METHOD, requests=self._corpus.requests, seconds=self._empty.seconds
        )
        return replace(self._in_turns(contender, load, traffic, images), recall=recall, setting=server.setting)

    def bare(self, traffic: Traffic) -> Row:
        """An empty call without the call wrapper."""
        return self._in_turns(BARE, replace(self._empty, method=BARE_METHOD), traffic, 0)

    def registers(self, server: Address, requests: str, *, images: int) -> Row:
        """New images, each registered once and on disk before its answer."""
        traffic = Traffic("register", in_flight=REGISTERS_IN_FLIGHT)
        load = Load(
            address=server.address,
            method=REGISTER_METHOD,
            requests=requests,
            seconds=LONGEST_LOAD_S,
            in_flight=traffic.in_flight,
            once=True,
        )
        empty = _row([self._send_empty(traffic, seed=0)], traffic, EMPTY, 0)
        return _row([self._generator.run(load)], traffic, OURS, images).over(empty)

    def promote(self, server: Address, generation_id: str, *, rate_per_s: float, images: int) -> list[Row]:
        """Lookups at a rate around and during a switch to another generation."""
        self._generator.begin(
            Load(
                address=server.address,
                method=LOOKUP_METHOD,
                requests=self._corpus.requests,
                seconds=LONGEST_LOAD_S,
                rate_per_s=rate_per_s,
            )
        )
        with NearDupClient(server.address) as client:
            client.status()
            time.sleep(self._seconds)
            began_s = time.monotonic()
            client.promote(generation_id)
            ended_s = time.monotonic()
        time.sleep(self._seconds)
        self._generator.stop()
        sent = self._generator.finish()
        is_during = (sent.began_s + sent.latency_us / 1e6 >= began_s) & (sent.began_s <= ended_s)
        switch_s = ended_s - began_s
        steady = _row([_part(sent, ~is_during, sent.wall_s - switch_s)], Traffic("promote, around"), OURS, images)
        during = _row([_part(sent, is_during, switch_s)], Traffic("promote, during"), OURS, images)
        return [steady, replace(during.over(steady), setting=f"{switch_s:.1f} s")]

    def uploads_beside_lookups(
        self, server: Address, uploads: str, *, rate_per_s: float, seconds: float, images: int
    ) -> list[Row]:
        """New images and lookups, each at a rate: each upload once, held-out images over and over."""
        lookups = Load(
            address=server.address,
            method=LOOKUP_METHOD,
            requests=self._corpus.requests,
            seconds=seconds,
            rate_per_s=rate_per_s,
        )
        registers = replace(lookups, method=REGISTER_METHOD, requests=uploads, once=True, seed=1)
        with LoadGenerator() as uploader:
            uploader.begin(registers)
            looked_up = self._generator.run(lookups)
            registered = uploader.finish()
        rows = [
            _row([sent], Traffic(f"{what}, beside each other", rate_per_s=rate_per_s), OURS, images)
            for what, sent in (("lookups", looked_up), ("uploads", registered))
        ]
        return [replace(row, setting=f"{seconds:.0f} s") for row in rows]

    def empty_rows(self) -> list[Row]:
        """The empty call itself, over all rounds of each case."""
        return [_row(sent, traffic, EMPTY, 0) for traffic, sent in self._empty_sent.items()]

    def _in_turns(self, contender: str, load: Load, traffic: Traffic, images: int) -> Row:
        """A row over as many rounds of the empty call."""
        load = replace(load, in_flight=traffic.in_flight, rate_per_s=traffic.rate_per_s)
        sent, empty = [], []
        for number in range(ROUNDS):
            empty.append(self._send_empty(traffic, seed=number))
            sent.append(self._generator.run(replace(load, seed=number)))
        return _row(sent, traffic, contender, images).over(_row(empty, traffic, EMPTY, 0))

    def _send_empty(self, traffic: Traffic, *, seed: int) -> Sent:
        sent = self._generator.run(
            replace(self._empty, in_flight=traffic.in_flight, rate_per_s=traffic.rate_per_s, seed=seed)
        )
        self._empty_sent.setdefault(traffic, []).append(sent)
        return sent


def _row(sent: Sequence[Sent], traffic: Traffic, contender: str, images: int) -> Row:
    latency_us = np.concatenate([one.latency_us[one.is_ok] for one in sent])
    p50, p99 = np.quantile(latency_us, [0.5, 0.99]).tolist() if latency_us.size else (math.nan, math.nan)
    wall_s = sum(one.wall_s for one in sent)
    return Row(
        case=traffic.case,
        contender=contender,
        images=images,
        # Little's law: calls in progress are their rate times their length.
        in_flight=traffic.in_flight or float(latency_us.sum()) / 1e6 / wall_s,
        p50_us=p50,
        p99_us=p99,
        calls_per_s=latency_us.size / wall_s,
        errors=sum(int((~one.is_ok).sum()) for one in sent),
    )


def _part(sent: Sent, mask: NDArray[np.bool_], wall_s: float) -> Sent:
    return replace(
        sent, began_s=sent.began_s[mask], latency_us=sent.latency_us[mask], codes=sent.codes[mask], wall_s=wall_s
    )


def answer_cosines(
    responses: Sequence[bytes], queries: NDArray[np.float32], generation: Generation
) -> NDArray[np.float32]:
    """The cosine of each query with the first match of its response, by the generation's codes; -1 without a match."""
    best = [next(iter(pb.LookupResponse.FromString(response).matches), None) for response in responses]
    asked = np.flatnonzero([match is not None for match in best])
    docs = generation.docs_of([match.image_id for match in best if match is not None])
    cosines = np.full(len(queries), -1.0, dtype=np.float32)
    cosines[asked] = pair_cosines(quantize(queries), generation.all_codes, asked, docs)
    return cosines


@contextmanager
def running_server(command: Sequence[str], log: Path) -> Iterator[Address]:
    """Start a server and wait until its output says where it listens; ended on the way out."""
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=output, stderr=subprocess.STDOUT)
    try:
        started = _first_json_line(process, log)
        yield Address(str(started["listen"]), str(started.get("setting", "")))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _first_json_line(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n"):
                value: dict[str, Any] = json.loads(line)
                return value
        time.sleep(0.05)
    raise click.ClickException(f"a server did not start:\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}")


@contextmanager
def running_redis(folder: Path) -> Iterator[int]:
    """A Redis of our own that keeps nothing on disk; gives its port."""
    if shutil.which("redis-server") is None:
        raise click.ClickException("datasketch-redis needs redis-server; install it, or leave that peer out of --peers")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL)
    try:
        _wait_for_redis(port)
        yield port
    finally:
        process.terminate()
        process.wait()


def _wait_for_redis(port: int) -> None:
    import redis

    until = time.monotonic() + 30
    with redis.Redis(port=port) as client:
        while True:
            try:
                client.ping()
                return
            except redis.ConnectionError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)


@contextmanager
def running_peer(
    name: str, corpus: Corpus, best: NDArray[np.float32], *, num_kept: int, target_recall: float
) -> Iterator[Address]:
    """A peer over the first `num_kept` rows, of which `best` `(n,)` holds each query's largest cosine."""
    truth = corpus.folder / f"{name}.npz"
    np.savez(truth, queries=corpus.queries, best=best)
    with running_redis(corpus.folder) if name == "datasketch-redis" else nullcontext(0) as redis_port:
        job = PeerJob(
            name=name,
            num_images=corpus.num_images,
            num_kept=num_kept,
            num_queries=len(corpus.queries),
            seed=corpus.seed,
            queries=str(truth),
            target_recall=target_recall,
            redis_port=redis_port,
        )
        command = ["benchmarks.serve_peers", json.dumps(asdict(job))]
        with running_server(command, corpus.folder / f"{name}.log") as server:
            yield server


def best_cosines(corpus: Corpus, num_kept: int) -> NDArray[np.float32]:
    """Each query's largest cosine with the first `num_kept` rows, by brute force."""
    truth = BruteForce(corpus.queries)
    for rows in first_rows(corpus.num_images, len(corpus.queries), num_kept, seed=corpus.seed):
        truth.add(rows)
    return truth.cosines


def write_corpus(folder: Path, num_images: int, num_queries: int, *, seed: int) -> tuple[Corpus, NDArray[np.float32]]:
    """A workspace in `folder` whose current generation has the corpus; with each query's largest cosine."""
    index, queries = folder / "index", held_out_queries(num_images, num_queries, seed=seed)
    with new_generation(index) as generation:
        best = write_index(generation, num_images, queries, seed=seed, num_probes=NUM_PROBES)
        generation_id = read_manifest(generation).generation_id
    promote(index, generation_id)
    requests = [lookup_request(query, k=K).SerializeToString() for query in queries]
    path = write_requests(folder / "lookups.npy", requests)
    return Corpus(num_images, seed, generation_id, queries, folder, path), best


def add_next_generation(corpus: Corpus) -> str:
    """A whole second generation: the first one's files copied, under another threshold; returns its id."""
    with new_generation(corpus.index) as folder:
        shutil.copytree(corpus.generation_folder, folder, dirs_exist_ok=True)
        manifest = read_manifest(folder)
        changed = replace(manifest, min_score=manifest.min_score + 1e-6)
        (folder / MANIFEST_NAME).write_bytes(changed.to_bytes())
        return changed.generation_id


def compare(
    corpus: Corpus,
    best: NDArray[np.float32],
    generator: LoadGenerator,
    *,
    peers: Sequence[str],
    seconds: float,
    rate_per_s: float,
    promote_rate_per_s: float,
    num_registers: int,
    beside_s: float,
) -> list[Row]:
    """All rows: ours, each peer, and the empty call."""
    traffics = [
        *(Traffic("closed loop", in_flight=number) for number in IN_FLIGHT),
        Traffic("open loop", rate_per_s=rate_per_s),
    ]
    generation = open_generation(corpus.generation_folder)
    images = corpus.num_images
    with running_server(["benchmarks.serve_peers", ""], corpus.folder / "empty.log") as empty:
        comparison = Comparison(generator, corpus, empty, seconds=seconds)

        def rows_of(contender: str, server: Address, best: NDArray[np.float32], images: int) -> list[Row]:
            cosines = answer_cosines(_all_answers(generator, corpus, server), corpus.queries, generation)
            recall = recall_at_1(best, cosines)
            return [comparison.lookups(contender, server, one, images=images, recall=recall) for one in traffics]

        with running_server(_serve_command(corpus.folder), corpus.folder / "ours.log") as server:
            rows = rows_of(OURS, server, best, images)
            next_id = add_next_generation(corpus)
            rows += comparison.promote(server, next_id, rate_per_s=promote_rate_per_s, images=images)
            requests = register_requests(corpus, num_registers)
            rows.append(comparison.registers(server, requests, images=images))
            uploads = register_requests(corpus, max(1, round(rate_per_s * beside_s)), name="beside")
            rows += comparison.uploads_beside_lookups(
                server, uploads, rate_per_s=rate_per_s, seconds=beside_s, images=images
            )
        target_recall = rows[0].recall or 0.0
        for name in peers:
            num_kept = min(images, MAX_IMAGES.get(name, images))
            truth = best if num_kept == images else best_cosines(corpus, num_kept)
            with running_peer(name, corpus, truth, num_kept=num_kept, target_recall=target_recall) as server:
                rows += rows_of(name, server, truth, num_kept)
        return [*rows, *(comparison.bare(traffic) for traffic in traffics), *comparison.empty_rows()]


def register_requests(corpus: Corpus, num_registers: int, *, name: str = "uploads") -> str:
    """Requests that register images which the corpus does not know, half of them copies of each other."""
    seed = np.random.SeedSequence([corpus.seed, *name.encode()]).generate_state(1)[0]
    embeddings = plant_embeddings(num_registers, seed=int(seed)).embeddings
    requests = [
        pb.RegisterRequest(image_id=f"{name}/{number:09d}", query=query_message(row)).SerializeToString()
        for number, row in enumerate(embeddings)
    ]
    return write_requests(corpus.folder / f"{name}.npy", requests)


def _all_answers(generator: LoadGenerator, corpus: Corpus, server: Address) -> list[bytes]:
    """The response to each held-out query; it warms the server up, too."""
    sent = generator.run(
        Load(
            address=server.address,
            method=LOOKUP_METHOD,
            requests=corpus.requests,
            seconds=LONGEST_LOAD_S,
            in_flight=IN_FLIGHT[-1],
            once=True,
        )
    )
    if not sent.is_ok.all():
        raise click.ClickException(f"{(~sent.is_ok).sum()} of {len(sent.codes)} lookups failed on an idle server")
    return sent.responses


def _serve_command(workspace: Path) -> list[str]:
    options = ["--insecure", "--embedding-only", "--listen", "127.0.0.1:0"]
    return ["cli", "serve", *options, "--workspace", str(workspace)]


def _peers(_: click.Context, __: click.Parameter, value: str) -> list[str]:
    names = [name for name in value.split(",") if name]
    if unknown := [name for name in names if name not in PEERS]:
        raise click.BadParameter(f"{', '.join(unknown)}; choose from {', '.join(PEERS)}")
    return names


@click.command()
@click.option("--images", "num_images", type=click.IntRange(min=100), default=1_000_000, show_default=True)
@click.option("--peers", default=",".join(PEERS), show_default=True, callback=_peers, help="Comma-separated, or none.")
@click.option("--queries", "num_queries", type=click.IntRange(min=10), default=2000, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="For each case.")
@click.option("--rate", type=click.FloatRange(min=1), default=200.0, show_default=True, help="Lookups/s, open loop.")
@click.option(
    "--promote-rate", type=click.FloatRange(min=1), default=1000.0, show_default=True, help="Lookups/s at a promote."
)
@click.option("--registers", "num_registers", type=click.IntRange(min=2), default=20_000, show_default=True)
@click.option(
    "--beside-seconds",
    "beside_s",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    help="Of --rate lookups/s beside as many uploads/s.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(
    *,
    num_images: int,
    peers: list[str],
    num_queries: int,
    seconds: float,
    rate: float,
    promote_rate: float,
    num_registers: int,
    beside_s: float,
    seed: int,
    json_path: Path | None,
) -> None:
    """Lookups over gRPC under load: latency, calls a second and recall, over those of an empty call.

    Example: python -m benchmarks serve --images 1000000 --peers hnsw,flat --json serve.json
    """
    with tempfile.TemporaryDirectory(prefix="neardup-benchmark-") as scratch, LoadGenerator() as generator:
        corpus, best = write_corpus(Path(scratch), num_images, num_queries, seed=seed)
        rows = compare(
            corpus,
            best,
            generator,
            peers=peers,
            seconds=seconds,
            rate_per_s=rate,
            promote_rate_per_s=promote_rate,
            num_registers=num_registers,
            beside_s=beside_s,
        )
    packages = versions("grpcio", "uvloop", "numba", "numpy", "faiss-cpu", "datasketch", "redis")
    _show(rows, num_images, seed)
    click.echo("  ".join(f"{name} {version}" for name, version in packages.items()))
    figures = {"benchmark": "serve", "seed": seed, "versions": packages, "rows": [asdict(row) for row in rows]}
    write_json(json_path, figures)


def _show(rows: Sequence[Row], num_images: int, seed: int) -> None:
    show_table(
        f"{num_images:,} images, seed {seed}; ratios over an empty call in turns, of a promote over the time around it",
        [
            "",
            "",
            "images",
            "flying",
            "p50 µs",
            "p99 µs",
            "calls/s",
            "recall",
            "p50 x",
            "p99 x",
            "calls x",
            "errors",
            "",
        ],
        [
            [
                row.case,
                row.contender,
                f"{row.images:,}" if row.images else "",
                f"{row.in_flight:.3g}",
                *(f"{value:,.0f}" for value in (row.p50_us, row.p99_us, row.calls_per_s)),
                "" if row.recall is None else f"{row.recall:.3f}",
                *(f"{value:.2f}" for value in (row.ratio, row.p99_ratio, row.calls_ratio)),
                str(row.errors),
                row.setting,
            ]
            for row in rows
        ],
    )
