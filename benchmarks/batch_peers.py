"""The peers of the batch benchmark, each in a process of its own: `python -m benchmarks.batch_peers NAME JOB.json`.

A peer reads the embeddings, finds pairs of cosine at least `min_similarity` among them, verifies each by its exact
cosine, writes them to an .npz and prints what it did as one JSON object. Its seconds leave out imports and reading.
Where a self-join of all images would take too long, a peer searches the given slice of rows against all images and
says what share of the searches that was; a search's cost does not depend on the others, so the rest is extrapolated.

A peer that can trade recall for time is set, on the slice, to the cheapest setting that reaches `target_recall`.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.batch_embeddings import row_cosines

MAX_FULL_SEARCH = 300_000
SEARCHES_AT_ONCE = 8192
MAX_FLIPPED_BITS = 3
NEIGHBOURS = 64
MLLIB_MEMORY = "12g"
MLLIB_PARTITIONS = 16
Pairs = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to join: an .npz with `embeddings`, the slice and its true pairs, and where the pairs found go."""

    embeddings: str
    truth: str
    pairs: str
    min_similarity: float
    target_recall: float
    plan: dict[str, Any]
    master: str | None

    def rows(self) -> NDArray[np.float32]:
        """`(n, dim)` float32 unit rows."""
        with np.load(self.embeddings) as arrays:
            embeddings: NDArray[np.float32] = arrays["embeddings"]
        return embeddings

    def slice(self) -> tuple[Pairs, Pairs]:
        """The rows of the slice, and all their true pairs `(m, 2)`."""
        with np.load(self.truth) as arrays:
            return arrays["slice"], arrays["pairs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Pairs `(m, 2)` in any order, of all rows or, where `share_searched` is below 1, of the slice; and the seconds."""

    pairs: Pairs
    build_s: float
    search_s: float
    share_searched: float = 1.0
    setting: str = ""

    @property
    def seconds(self) -> float:
        """Of a whole self-join, extrapolated from the share that was searched."""
        return self.build_s + self.search_s / self.share_searched


def pair_keys(pairs: Pairs, num_images: int) -> NDArray[np.int64]:
    """One number for each pair, whatever the order of its ends."""
    keys: NDArray[np.int64] = pairs.min(axis=1) * num_images + pairs.max(axis=1)
    return keys


def recall_of(found: Pairs, truth: Pairs, num_images: int) -> float:
    """The share of the true pairs that were found."""
    return float(np.isin(pair_keys(truth, num_images), pair_keys(found, num_images)).mean()) if len(truth) else 1.0


def flat(job: Job) -> Outcome:
    """FAISS flat: exact, on the slice. Its pairs are the truth that the others are held against."""
    rows = job.rows()
    searched, _ = job.slice()
    index = _faiss().IndexFlatIP(rows.shape[1])
    started = perf_counter()
    index.add(rows)
    built = perf_counter()
    pairs = _range_searched(index, rows, searched, job.min_similarity)
    return Outcome(
        pairs=pairs,
        build_s=built - started,
        search_s=perf_counter() - built,
        share_searched=len(searched) / len(rows),
    )


def ivf_flat(job: Job) -> Outcome:
    """FAISS IVF-Flat with `4 * sqrt(n)` lists, and the fewest probes that reach the recall."""
    rows = job.rows()
    faiss = _faiss()
    num_lists = min(len(rows) // 40, int(4 * math.sqrt(len(rows))))
    started = perf_counter()
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(rows.shape[1]), rows.shape[1], num_lists, faiss.METRIC_INNER_PRODUCT)
    index.train(rows[: 40 * num_lists])
    index.add(rows)
    built = perf_counter()

    def set_probes(num_probes: int) -> None:
        index.nprobe = num_probes

    return _tuned_search(
        job,
        index,
        rows,
        search=_range_searched,
        set_effort=set_probes,
        efforts=[2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32, 48, 64, 96],
        name="nprobe",
        build_s=built - started,
    )


def hnsw(job: Job) -> Outcome:
    """FAISS HNSW, 32 links, the 64 nearest of each row, and the smallest search width that reaches the recall."""
    rows = job.rows()
    faiss = _faiss()
    started = perf_counter()
    index = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    index.add(rows)
    built = perf_counter()

    def set_width(width: int) -> None:
        index.hnsw.efSearch = width

    return _tuned_search(
        job,
        index,
        rows,
        search=_nearest_searched,
        set_effort=set_width,
        efforts=[NEIGHBOURS, 96, 128, 192, 256, 512, 1024],
        name="efSearch",
        build_s=built - started,
    )


def binary_multi_hash(job: Job) -> Outcome:
    """FAISS binary multi-hash on 256 bits of sign, bits per hash as the corpus asks for, then exact cosines."""
    rows = job.rows()
    searched, truth = job.slice()
    faiss = _faiss()
    bits_per_hash = max(8, math.ceil(math.log2(len(rows))))
    started = perf_counter()
    codes = sketch_bytes(rows)
    index = faiss.IndexBinaryMultiHash(256, 256 // bits_per_hash, bits_per_hash)
    index.add(codes)
    built = perf_counter()
    # Bits of a pair at the least similarity, plus three standard deviations.
    share = math.acos(job.min_similarity) / math.pi
    radius = math.ceil(256 * share + 3 * math.sqrt(256 * share * (1 - share)))
    for num_flipped in (0, 1, 2, MAX_FLIPPED_BITS):
        index.nflip = num_flipped
        searching = perf_counter()
        limits, _, neighbours = index.range_search(codes[searched], radius)
        pairs = _as_pairs(searched, limits, neighbours)
        pairs = pairs[row_cosines(rows, pairs[:, 0], pairs[:, 1]) >= job.min_similarity]
        outcome = Outcome(
            pairs=pairs,
            build_s=built - started,
            search_s=perf_counter() - searching,
            share_searched=len(searched) / len(rows),
            setting=f"{256 // bits_per_hash} x {bits_per_hash} bits, nflip {num_flipped}",
        )
        if num_flipped == MAX_FLIPPED_BITS or recall_of(pairs, truth, len(rows)) >= job.target_recall:
            return outcome
    raise AssertionError("the last number of flipped bits always returns")


def datasketch_lsh(job: Job) -> Outcome:
    """MinHashLSH of datasketch over the 24 strongest activations, bands of 2; pairs verified by their cosines."""
    from datasketch import MinHashLSH

    rows = job.rows()
    started = perf_counter()
    minhashes = activation_minhashes(rows)
    index = MinHashLSH(num_perm=128, params=(64, 2))
    with index.insertion_session() as session:
        for row, minhash in enumerate(minhashes):
            session.insert(row, minhash)
    built = perf_counter()
    found = [
        np.array([(row, int(other)) for other in index.query(minhash) if other > row], dtype=np.int64).reshape(-1, 2)
        for row, minhash in enumerate(minhashes)
    ]
    pairs = np.concatenate(found)
    pairs = pairs[row_cosines(rows, pairs[:, 0], pairs[:, 1]) >= job.min_similarity]
    return Outcome(
        pairs=pairs, build_s=built - started, search_s=perf_counter() - built, setting="64 bands of 2, 24 activations"
    )


def mllib(job: Job) -> Outcome:
    """Spark MLlib's BucketedRandomProjectionLSH and its approxSimilarityJoin.

    One projection tells near pairs from others only a little, so any setting that finds them compares nearly all pairs.
    This one was the fastest of those of about our recall, wider and narrower buckets among them.
    """
    from pyspark.ml.feature import BucketedRandomProjectionLSH
    from pyspark.ml.functions import array_to_vector
    from pyspark.sql import functions as f

    rows = job.rows()
    with _spark_for_java(job) as spark:
        frame = spark.createDataFrame(_as_arrow(rows)).select(
            "row", array_to_vector(f.col("embedding")).alias("embedding")
        )
        frame = frame.repartition(4).persist()
        frame.count()
        started = perf_counter()
        hashing = BucketedRandomProjectionLSH(
            inputCol="embedding", outputCol="hashes", bucketLength=0.05, numHashTables=6, seed=0
        )
        model = hashing.fit(frame)
        distance = math.sqrt(2 - 2 * job.min_similarity)
        joined = model.approxSimilarityJoin(frame, frame, distance).where(f.col("datasetA.row") < f.col("datasetB.row"))
        table = joined.select(f.col("datasetA.row").alias("a"), f.col("datasetB.row").alias("b")).toArrow()
        pairs = np.column_stack([table[name].to_numpy() for name in ("a", "b")]).astype(np.int64)
        return Outcome(
            pairs=pairs, build_s=0.0, search_s=perf_counter() - started, setting="6 tables, bucketLength 0.05"
        )


def spark_rows(job: Job) -> Outcome:
    """Our terms, one row each, joined by Spark's own shuffle; distinct pairs verified on codes by an Arrow function."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lsh.codes import pair_cosines, quantize
    from lsh.plans import Plan
    from lsh.terms import TermHasher

    rows = job.rows()
    plan = Plan.from_json(job.plan)
    with _spark(job) as spark, tempfile.TemporaryDirectory() as scratch:
        source, codes_path = f"{scratch}/embeddings.parquet", f"{scratch}/codes.npy"
        pq.write_table(_as_arrow(rows), source, row_group_size=16_384)
        started = perf_counter()
        np.save(codes_path, quantize(rows))

        def hashed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            hasher = TermHasher(plan.terms)
            for batch in batches:
                embeddings = batch["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(len(batch), -1)
                terms = hasher.terms(embeddings.astype(np.float32))
                docs = np.repeat(batch["row"].to_numpy(), terms.shape[1])
                yield pa.RecordBatch.from_arrays(
                    [pa.array(terms.ravel().astype(np.int64)), pa.array(docs)], ["term", "doc"]
                )

        def verified(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            codes = np.load(codes_path, mmap_mode="r")
            for batch in batches:
                left, right = (batch[name].to_numpy().astype(np.int64) for name in ("a", "b"))
                used, positions = np.unique(np.concatenate([left, right]), return_inverse=True)
                near = np.asarray(codes[used])
                keep = pair_cosines(near, near, positions[: len(left)], positions[len(left) :]) >= job.min_similarity
                yield pa.RecordBatch.from_arrays([pa.array(left[keep]), pa.array(right[keep])], ["a", "b"])

        terms = spark.read.parquet(source).mapInArrow(hashed, "term long, doc long")
        left, right = terms.toDF("term", "a"), terms.toDF("term", "b")
        candidates = left.join(right.hint("shuffle_hash"), "term").where("a < b").select("a", "b").distinct()
        table = candidates.mapInArrow(verified, "a long, b long").toArrow()
        pairs = np.column_stack([table[name].to_numpy() for name in ("a", "b")]).astype(np.int64)
        return Outcome(pairs=pairs, build_s=0.0, search_s=perf_counter() - started)


PEERS: dict[str, Callable[[Job], Outcome]] = {
    "flat": flat,
    "ivf": ivf_flat,
    "hnsw": hnsw,
    "multi-hash": binary_multi_hash,
    "spark-rows": spark_rows,
    "datasketch": datasketch_lsh,
    "mllib": mllib,
}


def sketch_bytes(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """256 bits of sign of each of `(n, dim)` rows, `(n, 32)` uint8, as FAISS takes them."""
    from lsh.sketches import long_sketches

    return long_sketches(rows, num_words=4).astype("<u8").view(np.uint8).reshape(len(rows), -1)


def activation_minhashes(rows: NDArray[np.float32]) -> list[Any]:
    """The `MinHash` by datasketch of the 24 strongest activations of each of `(n, dim)` rows, 128 permutations."""
    from datasketch import MinHash

    from lsh.minhash import element_bytes

    axes = np.argsort(-np.abs(rows), axis=1, kind="stable")[:, :24]
    elements = 2 * axes + (np.take_along_axis(rows, axes, axis=1) < 0)
    content = [element_bytes(element) for element in range(2 * rows.shape[1])]
    sets = ([content[element] for element in row] for row in elements.tolist())
    minhashes: list[Any] = MinHash.bulk(sets, num_perm=128, scheme="affine32")
    return minhashes


def _tuned_search(
    job: Job,
    index: Any,
    rows: NDArray[np.float32],
    *,
    search: Callable[[Any, NDArray[np.float32], Pairs, float], Pairs],
    set_effort: Callable[[int], None],
    efforts: list[int],
    name: str,
    build_s: float,
) -> Outcome:
    """Search with the smallest effort whose recall on the slice is the target; looking for it is not timed."""
    slice_rows, truth = job.slice()
    effort = efforts[-1]
    for effort in efforts:
        set_effort(effort)
        if recall_of(search(index, rows, slice_rows, job.min_similarity), truth, len(rows)) >= job.target_recall:
            break
    searched = np.arange(len(rows)) if len(rows) <= MAX_FULL_SEARCH else slice_rows
    started = perf_counter()
    pairs = search(index, rows, searched, job.min_similarity)
    return Outcome(
        pairs=pairs,
        build_s=build_s,
        search_s=perf_counter() - started,
        share_searched=len(searched) / len(rows),
        setting=f"{name} {effort}",
    )


def _nearest_searched(index: Any, rows: NDArray[np.float32], searched: Pairs, min_similarity: float) -> Pairs:
    """As `_range_searched`, but of the `NEIGHBOURS` nearest: FAISS' range search over HNSW aborts the process."""
    found = []
    for first in range(0, len(searched), SEARCHES_AT_ONCE):
        batch = searched[first : first + SEARCHES_AT_ONCE]
        similarities, neighbours = index.search(rows[batch], NEIGHBOURS)
        is_near = similarities >= min_similarity
        limits = np.append(0, np.cumsum(is_near.sum(axis=1)))
        found.append(_as_pairs(batch, limits, neighbours[is_near]))
    return np.concatenate(found)


def _range_searched(index: Any, rows: NDArray[np.float32], searched: Pairs, min_similarity: float) -> Pairs:
    """Pairs of `searched` rows and all their neighbours of at least the similarity, a row with itself left out."""
    found = []
    for first in range(0, len(searched), SEARCHES_AT_ONCE):
        batch = searched[first : first + SEARCHES_AT_ONCE]
        limits, _, neighbours = index.range_search(rows[batch], min_similarity)
        found.append(_as_pairs(batch, limits, neighbours))
    return np.concatenate(found)


def _as_pairs(searched: Pairs, limits: NDArray[np.integer[Any]], neighbours: Pairs) -> Pairs:
    pairs = np.column_stack([np.repeat(searched, np.diff(limits).astype(np.int64)), neighbours])
    kept: Pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return kept


def _as_arrow(rows: NDArray[np.float32]) -> Any:
    import pyarrow as pa

    values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]).cast(pa.list_(pa.float32()))
    return pa.table({"row": pa.array(np.arange(len(rows))), "embedding": values})


def _spark(job: Job) -> Any:
    from batch_jobs.session import spark_session

    return spark_session(master=job.master, log=Path(job.pairs).with_suffix(".log"))


def _spark_for_java(job: Job) -> Any:
    """A session for work inside the JVM, which ours is not: memory, Java's best compiler, no more tasks than needed."""
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master(job.master or "local[*]")
        .config("spark.driver.memory", MLLIB_MEMORY)
        .config("spark.local.dir", str(Path(job.pairs).parent))
        .config("spark.sql.adaptive.enabled", "false")
        .config("spark.sql.shuffle.partitions", str(MLLIB_PARTITIONS))
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def _faiss() -> Any:
    import faiss

    return faiss


def main(name: str, job_path: str) -> None:
    """Run one peer and print its figures."""
    job = Job(**json.loads(Path(job_path).read_text(encoding="utf-8")))
    outcome = PEERS[name](job)
    np.savez(job.pairs, pairs=outcome.pairs)
    print(json.dumps({"seconds": outcome.seconds, **{k: v for k, v in asdict(outcome).items() if k != "pairs"}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
