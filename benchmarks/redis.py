"""`python -m benchmarks redis`: a generation in Redis beside the same one in files, and datasketch's LSH in Redis.

Bytes are what `used_memory` falls by when pages are deleted, so keys and allocator count. Lookups are asked one by
one, files and Redis by turns: at the hash tables on one thread, and through two servers' `Lookup` over gRPC. That Redis
keeps nothing on disk; registers are timed on one with AOF `always`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
import redis
from numpy.typing import NDArray

from benchmarks.lookup import MIN_SIMILARITY, K, corpus_batches, image_id_of
from benchmarks.results import versions, write_json
from benchmarks.serve_corpus import write_corpus
from benchmarks.servers import running_redis, running_server
from cli.tables import show_table
from lsh.index import layout
from lsh.index.generation import Generation, open_generation
from lsh.index.lookup import HashTables
from lsh.redis_store import keys
from lsh.redis_store.publishing import RedisStore
from lsh.redis_store.url import StoreUrl
from service.client import NearDupClient

ROUNDS = 5
NUM_PERM, NUM_BANDS, NUM_ACTIVATIONS = 128, 16, 24
NUM_REGISTERS = 300

Ask = Callable[[NDArray[np.float32]], object]


def used_memory(client: redis.Redis) -> int:
    """Bytes that Redis has allocated; without its buffers for clients, which come and go."""
    info: Any = client.info("memory")
    return int(info["used_memory"]) - int(info.get("mem_clients_normal", 0))


def bytes_by_kind(store: RedisStore, client: redis.Redis, generation: Generation) -> dict[str, float]:
    """Bytes an image of each kind of pages; they are deleted kind by kind, and gone from the store afterwards."""
    stored = store.stored(generation.manifest.generation_id)
    flat = keys.flat_pages(stored.manifest.dim)
    kinds = {
        keys.BUCKETS: "hash_tables",
        keys.CHUNKS: "hash_tables",
        keys.NAMES: "names",
        keys.HASHED_IDS: "names",
        flat[layout.CODES].letter: "codes",
        flat[layout.SKETCHES].letter: "sketches",
    }
    found: dict[str, float] = {}
    for letter, num_pages in stored.num_pages().items():
        before = used_memory(client)
        for start in range(0, num_pages, 4096):
            client.delete(*stored.keys(letter, range(start, min(start + 4096, num_pages))))
        kind = kinds.get(letter, "clusters_and_centroids")
        found[kind] = found.get(kind, 0.0) + (before - used_memory(client)) / stored.manifest.num_docs
    return found


def by_turns(queries: NDArray[np.float32], contenders: dict[str, Ask]) -> dict[str, NDArray[np.float64]]:
    """Microseconds of every query for every contender, asked by turns, so that a busy machine is as busy for all."""
    wall_us: dict[str, list[float]] = {name: [] for name in contenders}
    for ask in contenders.values():
        for query in queries[:50]:
            ask(query)
    for part in np.array_split(queries, ROUNDS):
        for name, ask in contenders.items():
            for query in part:
                started = time.perf_counter()
                ask(query)
                wall_us[name].append((time.perf_counter() - started) * 1e6)
    return {name: np.array(times) for name, times in wall_us.items()}


def tables_rows(tables: dict[str, Any], queries: NDArray[np.float32]) -> list[dict[str, Any]]:
    """The hash tables in this process; raises when two of them answer otherwise."""
    answers = [one.lookup(queries, k=K, min_similarity=MIN_SIMILARITY).docs for one in tables.values()]
    if not all(np.array_equal(one, answers[0]) for one in answers):
        raise click.ClickException("Redis and files gave different answers")
    contenders: dict[str, Ask] = {
        name: lambda query, one=one: one.lookup(query[None], k=K, min_similarity=MIN_SIMILARITY)  # type: ignore[misc]
        for name, one in tables.items()
    }
    return _time_rows("hash tables, one thread", by_turns(queries, contenders))


def rpc_rows(workspace: Path, url: str, queries: NDArray[np.float32], scratch: Path) -> list[dict[str, Any]]:
    """`Lookup` at two servers, one over files and one over Redis."""
    options = ["cli", "serve", "--insecure", "--embedding-only", "--listen", "127.0.0.1:0"]
    commands = {"files": [*options, "--workspace", str(workspace)], "Redis": [*options, "--store", url]}
    with ExitStack() as stack:
        contenders: dict[str, Ask] = {}
        for name, command_line in commands.items():
            server = stack.enter_context(running_server(command_line, scratch / f"{name}.log"))
            client = stack.enter_context(NearDupClient(server.address))
            contenders[name] = lambda query, client=client: client.lookup(query, k=K)  # type: ignore[misc]
        return _time_rows("Lookup over gRPC, one caller", by_turns(queries, contenders))


def register_rows(workspace: Path, scratch: Path, queries: NDArray[np.float32]) -> list[dict[str, Any]]:
    """`Register` with the log in SQLite and in Redis with AOF `always`, and how soon another replica finds it."""
    rows = np.random.default_rng(0).standard_normal((NUM_REGISTERS, queries.shape[1])).astype(np.float32)
    numbers = iter(range(10 * NUM_REGISTERS))
    with ExitStack() as stack:
        port = stack.enter_context(running_redis(scratch))
        with redis.Redis(port=port) as client:
            client.config_set("appendfsync", "always")
            client.config_set("appendonly", "yes")
        options = ["cli", "serve", "--insecure", "--embedding-only", "--listen", "127.0.0.1:0"]
        hybrid = [*options, "--workspace", str(workspace), "--store", f"redis://127.0.0.1:{port}"]
        commands = {"files": [*options, "--workspace", str(workspace)], "Redis": hybrid, "other": hybrid}
        clients = {
            name: stack.enter_context(
                NearDupClient(stack.enter_context(running_server(line, scratch / f"register-{name}.log")).address)
            )
            for name, line in commands.items()
        }

        contenders: dict[str, Ask] = {
            name: lambda row, client=clients[name]: client.register(f"new-{next(numbers)}", row)  # type: ignore[misc]
            for name in ("files", "Redis")
        }
        found = _time_rows("Register over gRPC, one caller", by_turns(rows, contenders))
        seen_us = []
        for row in np.random.default_rng(1).standard_normal((50, queries.shape[1])).astype(np.float32):
            clients["Redis"].register(f"new-{next(numbers)}", row)
            started = time.perf_counter()
            while not clients["other"].lookup(row, k=1).matches:
                continue
            seen_us.append((time.perf_counter() - started) * 1e6)
        return [*found, _time_row("acknowledged to found at another replica", "Redis", np.array(seen_us))]


def datasketch_row(num_images: int, *, seed: int, scratch: Path) -> dict[str, Any]:
    """Datasketch's `MinHashLSH` in Redis over the strongest activations: bytes an image and images a minute."""
    from datasketch import MinHash, MinHashLSH

    rows = np.concatenate([batch for batch, _ in corpus_batches(num_images, 10, seed=seed)])
    strongest = np.argsort(-np.abs(rows), axis=1)[:, :NUM_ACTIVATIONS]
    with running_redis(scratch) as port, redis.Redis(port=port) as client:
        before = used_memory(client)
        storage = {"type": "redis", "basename": b"peer", "redis": {"host": "127.0.0.1", "port": port}}
        lsh = MinHashLSH(num_perm=NUM_PERM, params=(NUM_BANDS, NUM_PERM // NUM_BANDS), storage_config=storage)
        started = time.perf_counter()
        with lsh.insertion_session() as session:
            for doc, activations in enumerate(strongest.tolist()):
                hashes = MinHash(num_perm=NUM_PERM)
                hashes.update_batch([one.to_bytes(2, "little") for one in activations])
                session.insert(image_id_of(doc), hashes)
        seconds = time.perf_counter() - started
        return {
            "case": "load",
            "contender": f"datasketch MinHashLSH, {NUM_BANDS} bands",
            "images": num_images,
            "hash_tables": (used_memory(client) - before) / num_images,
            "images_per_minute": num_images / seconds * 60,
        }


def _time_rows(case: str, wall_us: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    rows = [_time_row(case, name, times) for name, times in wall_us.items()]
    return [{**row, "ratio": row["p50_us"] / rows[0]["p50_us"]} for row in rows]


def _time_row(case: str, contender: str, times: NDArray[np.float64]) -> dict[str, Any]:
    p50, p99 = np.quantile(times, [0.5, 0.99]).tolist()
    return {"case": case, "contender": contender, "p50_us": p50, "p99_us": p99, "ratio": 1.0}


@click.command()
@click.option("--images", "num_images", type=click.IntRange(min=1000), default=1_000_000, show_default=True)
@click.option("--queries", "num_queries", type=click.IntRange(min=50), default=1000, show_default=True)
@click.option("--peer-images", type=click.IntRange(min=0), default=20_000, show_default=True, help="0 for no peer.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(*, num_images: int, num_queries: int, peer_images: int, seed: int, json_path: Path | None) -> None:
    """A generation in Redis: bytes an image, images a minute, lookups and registers beside those of files.

    Example: python -m benchmarks redis --images 1000000 --json redis.json
    """
    with tempfile.TemporaryDirectory(prefix="neardup-benchmark-") as name, ExitStack() as stack:
        scratch = Path(name)
        (scratch / "redis").mkdir()
        corpus, _ = write_corpus(scratch / "workspace", num_images, num_queries, seed=seed)
        generation, queries = open_generation(corpus.generation_folder), corpus.queries
        port = stack.enter_context(running_redis(scratch / "redis"))
        client = stack.enter_context(redis.Redis(port=port))
        url = f"redis://127.0.0.1:{port}"
        store = RedisStore(StoreUrl(url))
        stack.callback(store.close)
        empty, started = used_memory(client), time.perf_counter()
        store.export(generation)
        seconds = time.perf_counter() - started
        total = (used_memory(client) - empty) / num_images
        store.promote(corpus.generation_id)
        times = tables_rows({"files": HashTables(generation), "Redis": store.open(corpus.generation_id)}, queries)
        times += rpc_rows(corpus.folder, url, queries, scratch)
        times += register_rows(corpus.folder, scratch / "redis", queries)
        load = {
            "case": "load",
            "contender": "ours",
            "images": num_images,
            "images_per_minute": num_images / seconds * 60,
            **bytes_by_kind(store, client, generation),
            "all": total,
        }
        loads = [load]
        if peer_images:
            (scratch / "peer").mkdir()
            loads.append(datasketch_row(peer_images, seed=seed, scratch=scratch / "peer"))
    packages = versions("redis", "hiredis", "datasketch", "numba", "numpy")
    _show(loads, times, num_images, seed)
    click.echo("  ".join(f"{name} {version}" for name, version in packages.items()))
    write_json(json_path, {"benchmark": "redis", "seed": seed, "versions": packages, "rows": [*loads, *times]})


def _show(loads: Sequence[dict[str, Any]], times: Sequence[dict[str, Any]], num_images: int, seed: int) -> None:
    kinds = ("hash_tables", "sketches", "codes", "names", "clusters_and_centroids", "all")
    show_table(
        "bytes an image in Redis; images a minute, verified when ours",
        ["", "images", "images/min", *(kind.replace("_", " ") for kind in kinds)],
        [
            [
                row["contender"],
                f"{row['images']:,}",
                f"{row['images_per_minute']:,.0f}",
                *(f"{row[kind]:,.1f}" if kind in row else "" for kind in kinds),
            ]
            for row in loads
        ],
    )
    show_table(
        f"{num_images:,} images, by turns, seed {seed}",
        ["", "", "p50 µs", "p99 µs", "ratio of p50"],
        [
            [
                row["case"],
                row["contender"],
                *(f"{row[name]:,.0f}" for name in ("p50_us", "p99_us")),
                f"{row['ratio']:.2f}",
            ]
            for row in times
        ],
    )
