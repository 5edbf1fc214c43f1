"""What a user could take instead of our index, behind the same gRPC shell: `python -m benchmarks.serve_peers JOB`.

Every peer is a process with the server, the call wrapper, the micro-batches and the threads that our own service has;
only what finds the nearest rows differs. Without a job the process answers empty calls, an empty message in and out:
one through the call wrapper, and a bare one, which is all that gRPC itself takes. A peer that can trade recall for time
is set to the cheapest setting that reaches `target_recall`.
"""

from __future__ import annotations

import asyncio
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.batch_embeddings import DIM
from benchmarks.batch_peers import activation_minhashes, sketch_bytes
from benchmarks.lookup import EF_SEARCH, MIN_SIMILARITY, ROUNDING, K, corpus_batches, image_id_of
from lsh.codes import pair_cosines, quantize
from service import neardup_pb2 as pb
from service.batching import Batcher, BatchLimits
from service.calls import Call, Calls
from service.lookup_servicer import checked_embedding
from service.metrics import Metrics
from service.server import SWITCH_INTERVAL_S, server_options
from service.settings import Limits
from service.tokens import Scope, Tokens
from service.traces import Traces

EMPTY_METHOD = "/benchmarks.Shell/Empty"
BARE_METHOD = "/benchmarks.Shell/Bare"
RERANKED = 64
MAX_FLIPPED_BITS = 3
Rows = NDArray[np.float32]
Docs = NDArray[np.int64]
Nearest = tuple[Docs, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerJob:
    """Which peer, over the first `num_kept` rows of which corpus; `queries` is an .npz of `queries` and their `best`.

    `best` `(n,)` holds each query's largest cosine with the rows.
    """

    name: str
    num_images: int
    num_kept: int
    num_queries: int
    seed: int
    queries: str
    target_recall: float
    redis_port: int = 0

    def batches(self) -> Iterator[Rows]:
        """The rows, in batches of `(m, DIM)` float32 unit rows."""
        return first_rows(self.num_images, self.num_queries, self.num_kept, seed=self.seed)


class Peer(Protocol):
    """What finds the nearest rows."""

    setting: str

    def nearest(self, queries: Rows) -> Nearest:
        """The K most similar docs `(n, K)` of each query, -1 where fewer, and their similarities, descending."""


def first_rows(num_images: int, num_queries: int, num_kept: int, *, seed: int) -> Iterator[Rows]:
    """The first `num_kept` rows of the corpus of `benchmarks.lookup`, in batches."""
    for rows, _ in corpus_batches(num_images, num_queries, seed=seed):
        yield rows[:num_kept]
        num_kept -= len(rows)
        if num_kept <= 0:
            return


def recall_at_1(best: NDArray[np.float32], cosines: NDArray[np.float32]) -> float:
    """The share of the queries with a near-duplicate whose answer is as similar as the `best`, up to int8 rounding."""
    is_asked = best >= MIN_SIMILARITY
    return float((cosines[is_asked] >= best[is_asked] - ROUNDING).mean()) if is_asked.any() else 1.0


class Flat:
    """FAISS flat: exact."""

    setting = "exact"

    def __init__(self, job: PeerJob) -> None:
        self._index = _faiss().IndexFlatIP(DIM)
        for rows in job.batches():
            self._index.add(rows)

    def nearest(self, queries: Rows) -> Nearest:
        similarities, docs = self._index.search(queries, K)
        return docs, similarities


class Hnsw:
    """FAISS HNSW over 8-bit codes: 32 links, efConstruction 64."""

    def __init__(self, job: PeerJob) -> None:
        self._index: Any = _faiss().index_factory(DIM, "HNSW32_SQ8", _faiss().METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = 64
        for rows in job.batches():
            if not self._index.is_trained:
                self._index.train(rows)
            self._index.add(rows)
        self.setting = _cheapest(job, self, EF_SEARCH, self._set_effort)

    def nearest(self, queries: Rows) -> Nearest:
        similarities, docs = self._index.search(queries, K)
        return docs, similarities

    def _set_effort(self, ef_search: int) -> str:
        self._index.hnsw.efSearch = ef_search
        return f"efSearch {ef_search}"


class MultiHash:
    """FAISS multi-index hashing of 256 bits an image, as indexes of PDQ hashes do it.

    The bits are signs of the embedding, so that all contenders see the same images; the 64 nearest by Hamming distance
    are ranked by the cosine of their codes.
    """

    def __init__(self, job: PeerJob) -> None:
        bits_per_hash = max(8, math.ceil(math.log2(job.num_kept)))
        self._index: Any = _faiss().IndexBinaryMultiHash(256, 256 // bits_per_hash, bits_per_hash)
        self._codes = np.empty((job.num_kept, DIM), dtype=np.int8)
        for first, rows in _numbered(job.batches()):
            self._index.add(sketch_bytes(rows))
            self._codes[first : first + len(rows)] = quantize(rows)
        self.setting = _cheapest(job, self, range(MAX_FLIPPED_BITS + 1), self._set_effort)

    def nearest(self, queries: Rows) -> Nearest:
        _, docs = self._index.search(sketch_bytes(queries), min(RERANKED, len(self._codes)))
        return _ranked(queries, [row[row >= 0].astype(np.int64) for row in docs], self._codes)

    def _set_effort(self, num_flipped: int) -> str:
        self._index.nflip = num_flipped
        return f"nflip {num_flipped}"


class DataSketch:
    """datasketch's MinHashLSH over the 24 strongest activations, 64 bands of 2; what it finds is ranked by cosine."""

    setting = "64 bands of 2"

    def __init__(self, job: PeerJob) -> None:
        from datasketch import MinHashLSH

        storage = {"type": "redis", "basename": b"neardup", "redis": {"host": "127.0.0.1", "port": job.redis_port}}
        self._lsh = MinHashLSH(
            num_perm=128, params=(64, 2), storage_config=storage if job.redis_port else None, prepickle=False
        )
        self._codes = np.empty((job.num_kept, DIM), dtype=np.int8)
        for first, rows in _numbered(job.batches()):
            self._codes[first : first + len(rows)] = quantize(rows)
            with self._lsh.insertion_session() as session:
                for doc, minhash in enumerate(activation_minhashes(rows), first):
                    session.insert(b"%d" % doc, minhash)

    def nearest(self, queries: Rows) -> Nearest:
        found = [
            np.array(sorted(map(int, self._lsh.query(one))), dtype=np.int64) for one in activation_minhashes(queries)
        ]
        return _ranked(queries, found, self._codes)


PEERS: dict[str, Callable[[PeerJob], Peer]] = {
    "hnsw": Hnsw,
    "flat": Flat,
    "multi-hash": MultiHash,
    "datasketch": DataSketch,
    "datasketch-redis": DataSketch,
}


class PeerServicer:
    """`Lookup` of the service's protocol, answered by a peer."""

    def __init__(self, peer: Peer, calls: Calls, limits: Limits) -> None:
        self._peer = peer
        threads = ThreadPoolExecutor(limits.lookup_threads, initializer=_search_on_one_thread)
        self._lookups: Batcher[Rows, list[tuple[int, float]]] = Batcher(
            "lookup",
            self._look_up,
            threads,
            BatchLimits(limits.max_lookup_batch, 0.0, limits.max_lookup_queue, limits.lookup_threads),
        )
        self.handle = calls.unary("Lookup", Scope.READ, self._lookup)

    async def _lookup(self, request: pb.LookupRequest, _: Call) -> pb.LookupResponse:
        found = await self._lookups(checked_embedding(request.query.embedding.float32, dim=DIM))
        return pb.LookupResponse(
            matches=[pb.Match(image_id=image_id_of(doc), score=score, similarity=score) for doc, score in found]
        )

    def _look_up(self, queries: Sequence[Rows]) -> list[list[tuple[int, float]]]:
        docs, similarities = self._peer.nearest(np.stack(queries))
        return [
            [(doc, score) for doc, score in zip(*row, strict=True) if doc >= 0 and score >= MIN_SIMILARITY]
            for row in zip(docs.tolist(), similarities.tolist(), strict=True)
        ]


def _ranked(queries: Rows, found: Sequence[Docs], codes: NDArray[np.int8]) -> Nearest:
    """The best K of what was found for each query, by the cosine of int8 codes."""
    docs = np.full((len(queries), K), -1, dtype=np.int64)
    similarities = np.full((len(queries), K), -1.0, dtype=np.float32)
    query_codes = quantize(queries)
    for query, candidates in enumerate(found):
        cosines = pair_cosines(query_codes, codes, np.full(len(candidates), query), candidates)
        best = np.argsort(-cosines, kind="stable")[:K]
        docs[query, : len(best)], similarities[query, : len(best)] = candidates[best], cosines[best]
    return docs, similarities


def _cheapest(job: PeerJob, peer: Peer, efforts: Sequence[int], set_effort: Callable[[int], str]) -> str:
    """Set the smallest effort that reaches the recall, or the last; returns its name."""
    with np.load(job.queries) as arrays:
        queries, best = arrays["queries"], arrays["best"]
    setting = ""
    for effort in efforts:
        setting = set_effort(effort)
        if recall_at_1(best, peer.nearest(queries)[1][:, 0]) >= job.target_recall:
            break
    return setting


def _numbered(batches: Iterator[Rows]) -> Iterator[tuple[int, Rows]]:
    """Each batch with the doc of its first row."""
    first = 0
    for rows in batches:
        yield first, rows
        first += len(rows)


def _search_on_one_thread() -> None:
    """A search of ours takes one thread too; the setting is the calling thread's own."""
    _faiss().omp_set_num_threads(1)


def _faiss() -> Any:
    import faiss

    return faiss


async def _serve(peer: Peer | None) -> None:
    limits = Limits()
    server = grpc.aio.server(
        options=server_options(max_message_bytes=1 << 20), maximum_concurrent_rpcs=limits.max_calls
    )
    calls = Calls(Tokens(None), Metrics(), Traces(None), max_call_s=limits.max_call_s)
    server.add_generic_rpc_handlers([_empty_handlers(calls) if peer is None else _lookup_handlers(peer, calls, limits)])
    port = server.add_insecure_port("127.0.0.1:0")
    asked_to_stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked_to_stop.set)
    await server.start()
    print(json.dumps({"listen": f"127.0.0.1:{port}", "setting": "" if peer is None else peer.setting}), flush=True)
    await asked_to_stop.wait()
    await server.stop(None)


def _empty_handlers(calls: Calls) -> grpc.GenericRpcHandler:
    async def echo(request: bytes, _: Any) -> bytes:
        return request

    methods = {
        EMPTY_METHOD: grpc.unary_unary_rpc_method_handler(calls.unary("Empty", Scope.READ, echo)),
        BARE_METHOD: grpc.unary_unary_rpc_method_handler(echo),
    }
    return grpc.method_handlers_generic_handler(
        "benchmarks.Shell", {path.rpartition("/")[2]: method for path, method in methods.items()}
    )


def _lookup_handlers(peer: Peer, calls: Calls, limits: Limits) -> grpc.GenericRpcHandler:
    method = grpc.unary_unary_rpc_method_handler(
        PeerServicer(peer, calls, limits).handle,
        request_deserializer=pb.LookupRequest.FromString,
        response_serializer=pb.LookupResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler("neardup.v1.NearDup", {"Lookup": method})


def main(job: str) -> None:
    """Build the peer of a job, or none for an empty text, then serve until SIGTERM."""
    given = PeerJob(**json.loads(job)) if job else None
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(_serve(None if given is None else PEERS[given.name](given)))


if __name__ == "__main__":
    main(sys.argv[1])
