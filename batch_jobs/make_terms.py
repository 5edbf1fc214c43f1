"""Step 3, terms: LSH terms of every embedding, as blocks for the shuffle, and the codes.

A map task hashes its embeddings and packs its (term, doc) pairs into one binary row per reduce partition, so Spark
moves a handful of blobs instead of one row per term. They are written by partition, so that whoever joins them, this
night or a later one, reads its own part and shuffles nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.session import write_blobs, write_table
from lsh.blocks import encode_term_blocks
from lsh.candidates import WORDS_PER_SKETCH
from lsh.codes import quantize
from lsh.sketches import long_sketches
from lsh.terms import TermHasher, TermParams

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

HASHED_ARROW = schemas.arrow(schemas.HASHED)

STEP = "terms"
TABLES = ("term_blocks", "codes")
DOCS_PER_BLOCK = 65_536


def make_terms(
    spark: SparkSession, folder: Path, *, embeddings: str, params: TermParams, num_partitions: int
) -> Mapping[str, Any]:
    """Write `term_blocks` for `num_partitions` reduce partitions, a folder each, and `codes`."""
    hashed = (
        spark.read.parquet(embeddings)
        .mapInArrow(partial(hash_batches, params=params, num_parts=num_partitions), schemas.HASHED)
        .persist()
    )
    try:
        blocks = hashed.where("block IS NOT NULL").select("part", "block").repartition(num_partitions, "part")
        # Blocks arrive in any order; sorted they make the same files each time.
        write_blobs(blocks.sortWithinPartitions("part", "block"), folder / "term_blocks", by="part")
        write_table(hashed.where("code IS NOT NULL").select("doc", "code"), folder / "codes")
    finally:
        hashed.unpersist()
    return {"num_parts": num_partitions}


def hash_batches(batches: Iterator[pa.RecordBatch], *, params: TermParams, num_parts: int) -> Iterator[pa.RecordBatch]:
    """Embedding rows to `HASHED` rows: the codes of each batch, then the term blocks of up to `DOCS_PER_BLOCK` docs."""
    hasher = hasher_once(params)
    for docs, embeddings in _gathered(batches, dim=params.dim):
        blocks = encode_term_blocks(
            hasher.terms(embeddings),
            docs,
            long_sketches(embeddings, num_words=WORDS_PER_SKETCH, seed=params.seed),
            num_partitions=num_parts,
        )
        yield _hashed_rows(part=pa.array(range(num_parts), pa.int32()), block=pa.array(blocks, pa.binary()))
        yield _hashed_rows(doc=pa.array(docs.astype(np.int64)), code=binary_rows(quantize(embeddings)))


@lru_cache(maxsize=1)
def hasher_once(params: TermParams) -> TermHasher:
    return TermHasher(params)


def embedding_rows(column: pa.Array, *, dim: int) -> NDArray[np.float32]:
    """A binary column of embeddings as `(n, dim)` float32."""
    return np.frombuffer(binary_values(column), "<f4").reshape(-1, dim)


def binary_values(column: pa.Array) -> memoryview:
    """The values of a binary column without nulls, one after the other, without a copy or an object for each."""
    if not len(column):
        return memoryview(b"")
    column = column.cast(pa.large_binary())
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, "<i8")[column.offset : column.offset + len(column) + 1]
    return memoryview(data)[int(ends[0]) : int(ends[-1])]


def binary_rows(rows: NDArray[Any]) -> pa.Array:
    """A C-contiguous 2-D array as a binary column, one value for each row, without a copy or an object for each."""
    offsets = np.arange(len(rows) + 1) * (rows.shape[1] * rows.itemsize)
    values = pa.Array.from_buffers(pa.large_binary(), len(rows), [None, pa.py_buffer(offsets), pa.py_buffer(rows)])
    return values.cast(pa.binary())


def _gathered(
    batches: Iterator[pa.RecordBatch], *, dim: int
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.float32]]]:
    """Consecutive batches joined to about `DOCS_PER_BLOCK` rows, docs ascending."""
    docs: list[NDArray[np.uint64]] = []
    embeddings: list[NDArray[np.float32]] = []
    for batch in batches:
        docs.append(batch["doc"].to_numpy().astype(np.uint64))
        embeddings.append(embedding_rows(batch["embedding"], dim=dim))
        if sum(map(len, docs)) >= DOCS_PER_BLOCK:
            yield _by_doc(docs, embeddings)
            docs, embeddings = [], []
    if docs:
        yield _by_doc(docs, embeddings)


def _by_doc(
    docs: list[NDArray[np.uint64]], embeddings: list[NDArray[np.float32]]
) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    all_docs = np.concatenate(docs)
    order = np.argsort(all_docs)
    return all_docs[order], np.concatenate(embeddings)[order]


def _hashed_rows(**columns: pa.Array) -> pa.RecordBatch:
    num_rows = len(next(iter(columns.values())))
    return pa.RecordBatch.from_arrays(
        [columns.get(field.name, pa.nulls(num_rows, field.type)) for field in HASHED_ARROW], schema=HASHED_ARROW
    )


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
