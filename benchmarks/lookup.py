"""`python -m benchmarks lookup`: the lookup engine alone, one query at a time on one thread, beside FAISS HNSW.

A corpus of synthetic embeddings with the statistics of real ones is written as a generation, batch by batch, and asked
for held-out images: half of them edits of photos that the corpus knows. Recall@1 is the share of queries whose answer
is as similar as the best that brute force finds, within the rounding of int8 codes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.batch_embeddings import DIM, draw_topics, plant_embeddings
from benchmarks.results import versions, write_json
from cli.tables import show_table
from lsh.index.generation import open_generation
from lsh.index.layout import params_for, probes_for
from lsh.index.lookup import HashTables
from lsh.index.writing import GenerationSpec, GenerationWriter

IMAGES_PER_BATCH = 50_000
ASKING_BATCHES = 8
MIN_SIMILARITY = 0.79
ROUNDING = 0.005
K = 10
EF_SEARCH = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a contender said: its best doc's exact cosine for each query, -1 for none, and how long each query took."""

    cosines: NDArray[np.float32]
    wall_us: NDArray[np.float64]
    cpu_us: float


def corpus_batches(num_images: int, num_queries: int, *, seed: int) -> Iterator[tuple[Any, Any]]:
    """Batches of `(rows, queries)`: together `num_images` rows, and `num_queries` held out of the first batches."""
    topics = draw_topics(np.random.default_rng([seed, 0]))
    num_batches = -(-num_images // IMAGES_PER_BATCH)
    rows = np.diff(np.linspace(0, num_images, num_batches + 1).astype(np.int64)).tolist()
    num_asking = min(num_batches, ASKING_BATCHES)
    queries = np.diff(np.linspace(0, num_queries, num_asking + 1).astype(np.int64)).tolist()
    for number, num_rows in enumerate(rows):
        num_held_out = queries[number] if number < num_asking else 0
        batch_seed = int(np.random.SeedSequence([seed, 1 + number]).generate_state(1)[0])
        planted = plant_embeddings(num_rows + num_held_out, seed=batch_seed, topics=topics).embeddings
        yield planted[num_held_out:], planted[:num_held_out]


def held_out_queries(num_images: int, num_queries: int, *, seed: int) -> NDArray[np.float32]:
    """All queries, without making the batches that hold none."""
    batches = islice(corpus_batches(num_images, num_queries, seed=seed), ASKING_BATCHES)
    return np.concatenate([queries for _, queries in batches])


def image_id_of(doc: int) -> str:
    """The image id of a doc of the corpus."""
    return f"photos/{doc:09d}.jpg"


class BruteForce:
    """The best of all rows seen so far for each query, in float32."""

    def __init__(self, queries: NDArray[np.float32]) -> None:
        self._queries = queries
        self.cosines = np.full(len(queries), -2.0, dtype=np.float32)

    def add(self, rows: NDArray[np.float32]) -> None:
        """Compare every query with more rows."""
        np.maximum(self.cosines, (self._queries @ rows.T).max(axis=1), out=self.cosines)


def ask_one_by_one(queries: NDArray[np.float32], ask: Callable[[NDArray[np.float32]], float]) -> Answers:
    """Time `ask` for every query alone; it returns the cosine of its best answer."""
    for query in queries[:100]:
        ask(query[None])
    cosines, wall_us = np.empty(len(queries), dtype=np.float32), np.empty(len(queries))
    cpu_started = time.thread_time()
    for number, query in enumerate(queries):
        started = time.perf_counter()
        cosines[number] = ask(query[None])
        wall_us[number] = (time.perf_counter() - started) * 1e6
    return Answers(cosines, wall_us, (time.thread_time() - cpu_started) / len(queries) * 1e6)


def recall_rows(best: NDArray[np.float32], answers: Answers) -> list[tuple[str, int, float]]:
    """Label, number of queries and recall@1: of all queries with a near-duplicate, then by its similarity `best`."""
    edges = [MIN_SIMILARITY, 0.85, 0.9, 0.95, 1.01]
    is_hit = answers.cosines >= best - ROUNDING
    rows = []
    for low, high in [(MIN_SIMILARITY, 1.01), *pairwise(edges)]:
        inside = (best >= low) & (best < high)
        recall = float(is_hit[inside].mean()) if inside.any() else 1.0
        rows.append((f"{low:.2f} to {min(high, 1.0):.2f}", int(inside.sum()), recall))
    return rows


def write_index(
    folder: Path, num_images: int, queries: NDArray[np.float32], *, seed: int, num_probes: int
) -> NDArray[np.float32]:
    """Write the generation of the corpus into `folder`; returns the best cosine of each query, by brute force."""
    spec = GenerationSpec(
        num_docs=num_images,
        term_params=params_for(num_images, dim=DIM),
        num_probes=num_probes,
        embedder_digest=f"synthetic-{seed}",
        min_score=MIN_SIMILARITY,
    )
    writer, truth = GenerationWriter(folder, spec), BruteForce(queries)
    first = 0
    for rows, _ in corpus_batches(num_images, len(queries), seed=seed):
        writer.add_embeddings(np.arange(first, first + len(rows)), rows)
        truth.add(rows)
        first += len(rows)
    writer.write_image_ids(map(image_id_of, range(num_images)))
    writer.write_clusters(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    writer.finish()
    return truth.cosines


def hash_tables_row(folder: Path, queries: NDArray[np.float32], best: NDArray[np.float32]) -> dict[str, Any]:
    """Our own figures."""
    started = time.perf_counter()
    generation = open_generation(folder)
    open_s = time.perf_counter() - started
    tables = HashTables(generation)
    candidates = tables.lookup(queries, k=K, min_similarity=MIN_SIMILARITY).num_candidates

    def ask(query: NDArray[np.float32]) -> float:
        found = tables.lookup(query, k=K, min_similarity=MIN_SIMILARITY)
        return float(found.similarities[0, 0]) if found.docs[0, 0] >= 0 else -1.0

    figures = _figures(best, ask_one_by_one(queries, ask))
    sizes = {name: entry.size_bytes / generation.manifest.num_docs for name, entry in generation.manifest.files.items()}
    return {
        "contender": "hash tables",
        **figures,
        "candidates": float(candidates.mean()),
        "open_s": open_s,
        "bytes_per_image": sum(sizes.values()),
        "hash_table_bytes_per_image": sum(sizes[name] for name in ("postings.bin", "posting_offsets.bin")),
        "bytes_per_image_by_file": sizes,
        "num_probes": generation.manifest.num_probes,
        "term_params": generation.manifest.term_params.to_json(),
    }


def hnsw_rows(
    num_images: int, queries: NDArray[np.float32], best: NDArray[np.float32], *, seed: int
) -> list[dict[str, Any]]:
    """FAISS HNSW over 8-bit codes (32 links, efConstruction 64) at every efSearch, built from the same batches."""
    import faiss

    index: Any = faiss.index_factory(DIM, "HNSW32_SQ8", faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 64
    started = time.perf_counter()
    for rows, _ in corpus_batches(num_images, len(queries), seed=seed):
        if not index.is_trained:
            index.train(rows)
        index.add(rows)
    build_s = time.perf_counter() - started
    faiss.omp_set_num_threads(1)
    found = []
    for ef_search in EF_SEARCH:
        index.hnsw.efSearch = ef_search
        answers = ask_one_by_one(queries, lambda query: float(index.search(query, K)[0][0, 0]))
        row = {"contender": f"FAISS HNSW32 SQ8, efSearch {ef_search}", **_figures(best, answers)}
        found.append({**row, "build_s": build_s})
    return found


def _figures(best: NDArray[np.float32], answers: Answers) -> dict[str, Any]:
    p50, p90, p99 = np.quantile(answers.wall_us, [0.5, 0.9, 0.99]).tolist()
    recall = [
        {"similarity": label, "queries": num, "recall_at_1": share} for label, num, share in recall_rows(best, answers)
    ]
    return {
        "p50_us": p50,
        "p90_us": p90,
        "p99_us": p99,
        "mean_us": float(answers.wall_us.mean()),
        "cpu_us": answers.cpu_us,
        "recall": recall,
    }


@click.command()
@click.option("--images", "num_images", type=click.IntRange(min=100), default=1_000_000, show_default=True)
@click.option("--queries", "num_queries", type=click.IntRange(min=10), default=2000, show_default=True)
@click.option("--probes", "num_probes", type=click.IntRange(16, 4096), help="[default: as an index would have]")
@click.option("--peers", default="hnsw", show_default=True, help="hnsw, or nothing for none; needs faiss.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(
    *, num_images: int, num_queries: int, num_probes: int | None, peers: str, seed: int, json_path: Path | None
) -> None:
    """Look held-out images up, one by one on one thread: microseconds, recall by similarity, bytes an image.

    Example: python -m benchmarks lookup --images 1000000 --json lookup.json
    """
    queries = held_out_queries(num_images, num_queries, seed=seed)
    with tempfile.TemporaryDirectory(prefix="neardup-benchmark-") as scratch:
        best = write_index(
            Path(scratch), num_images, queries, seed=seed, num_probes=num_probes or probes_for(num_images)
        )
        rows = [hash_tables_row(Path(scratch), queries, best)]
    if peers == "hnsw":
        rows += hnsw_rows(num_images, queries, best, seed=seed)
    packages = versions("faiss-cpu", "numba", "numpy")
    for row in rows:
        row |= {"case": "lookup", "images": num_images, "ratio": row["cpu_us"] / rows[0]["cpu_us"]}
    _show(rows, num_images, seed)
    click.echo("  ".join(f"{name} {version}" for name, version in packages.items()))
    write_json(json_path, {"benchmark": "lookup", "seed": seed, "versions": packages, "rows": rows})


def _show(rows: list[dict[str, Any]], num_images: int, seed: int) -> None:
    bands = [one["similarity"] for one in rows[0]["recall"]]
    show_table(
        f"{num_images:,} images, one thread, one query at a time, seed {seed}; recall@1 by similarity",
        ["", "p50 µs", "p99 µs", "mean µs", "CPU µs", "ratio of CPU", *bands],
        [
            [
                row["contender"],
                *(f"{row[name]:,.0f}" for name in ("p50_us", "p99_us", "mean_us", "cpu_us")),
                f"{row['ratio']:.2f}",
                *(f"{one['recall_at_1']:.3f}" for one in row["recall"]),
            ]
            for row in rows
        ],
    )
    ours = rows[0]
    click.echo(
        f"{ours['candidates']:,.0f} candidates a query; {ours['bytes_per_image']:.0f} bytes an image, "
        f"{ours['hash_table_bytes_per_image']:.0f} of them hash tables; opened in {ours['open_s'] * 1e3:.1f} ms"
    )
