"""`python -m benchmarks serve`: lookups over gRPC under load, beside an empty call and other indexes behind one shell.

A corpus of synthetic embeddings with the statistics of real ones is written as a generation and served by `neardup
serve`; peers hold the same rows behind the same kind of server (`serve_peers`). A load generator in a process of its
own asks for held-out images, half of them edits of photos that the corpus knows. Each contender takes turns with an
empty call through the same server and call wrapper, so that both see the same machine: `ratio` is its median over the
empty call's. The bare call is what gRPC alone takes, without the wrapper.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.results import versions, write_json
from benchmarks.serve_comparison import LONGEST_LOAD_S, LOOKUP_METHOD, OURS, Comparison, Row, Traffic
from benchmarks.serve_corpus import Corpus, add_next_generation, best_cosines, register_requests, write_corpus
from benchmarks.serve_load import Load, LoadGenerator
from benchmarks.serve_peers import PEERS, PeerJob, recall_at_1
from benchmarks.servers import Address, running_redis, running_server
from cli.tables import show_table
from lsh.codes import pair_cosines, quantize
from lsh.index.generation import Generation, open_generation
from service import neardup_pb2 as pb

MAX_IMAGES = {"datasketch": 100_000, "datasketch-redis": 20_000}
IN_FLIGHT = (1, 16)


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
