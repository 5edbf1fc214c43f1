"""Step 2, embed: one embedding per distinct image.

Byte-identical files are embedded once. Decoding runs in threads, one batch ahead of the network. Each Python worker
builds the network once and keeps it. An image that cannot be decoded becomes a row of `rejects`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.catalogue import arriving_rows, image_bytes, list_images
from batch_jobs.changes import Changes
from batch_jobs.errors import SessionError
from batch_jobs.gpus import EmbedResources, own_workers, use_assigned_gpu
from batch_jobs.make_terms import binary_rows
from batch_jobs.session import ROWS_PER_GROUP, write_arrow, write_table
from batch_jobs.sources import Source, SourceKind, read_embeddings, release_embeddings
from batch_jobs.task_files import parquet_file
from embed.decoding import ImageLimits, ImageRejected, decode_image
from embed.preprocessing import to_square

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from embed.embedder import Embedder

STEP = "embed"
TABLES = ("embeddings", "rejects")
BATCH_SIZE = 32

Decoded = NDArray[np.uint8] | ImageRejected


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedTask:
    """What a worker needs to know: which network, in which precision, on how many threads, under which limits."""

    embedder: str
    dtype: str
    num_threads: int
    root: str
    limits: ImageLimits


def embed_task(
    *, embedder: str, dtype: str, resources: EmbedResources, root: str | Path, limits: ImageLimits
) -> EmbedTask:
    """The task of a worker that has `resources`; raises SessionError when it would leave its GPU idle."""
    if resources.profile is not None and dtype == "int8":
        raise SessionError(
            "dtype=int8 runs on CPUs, and this session gives a GPU to each task that embeds; "
            "give --dtype bfloat16 (or float32), or leave the settings of GPUs out"
        )
    return EmbedTask(embedder=embedder, dtype=dtype, num_threads=resources.num_cores, root=str(root), limits=limits)


def embed_images(
    spark: SparkSession,
    folder: Path,
    *,
    source: Source,
    catalogue: str,
    task: EmbedTask,
    resources: EmbedResources,
    num_tasks: int,
) -> Mapping[str, Any]:
    """Write `embeddings` and `rejects` of the catalogue's distinct images."""
    from pyspark.sql import functions as f

    images = distinct_images(spark, source, catalogue).repartitionByRange(num_tasks, "doc").sortWithinPartitions("doc")
    with own_workers(spark, resources):
        embedded = images.mapInArrow(
            partial(embed_batches, task=task), schemas.EMBEDDED, profile=resources.profile
        ).persist()
    try:
        found = embedded.where("embedding IS NOT NULL").select(*schemas.columns(schemas.EMBEDDINGS))
        write_table(found, folder / "embeddings")
        rejects = embedded.where("reason IS NOT NULL").select("doc", "reason", "detail")
        # A byte-identical copy of a reject is a reject as well.
        copies = spark.read.parquet(catalogue).select("image_id", "uri", f.col("original_doc").alias("doc"))
        rejected = copies.join(f.broadcast(rejects), "doc").withColumn("stage", f.lit(STEP))
        write_table(rejected.select(*schemas.columns(schemas.REJECTS)), folder / "rejects", num_files=1)
    finally:
        embedded.unpersist()
    return {}


def adopt_embeddings(
    folder: Path, *, source: Source, first_doc: int = 0, changes: Changes | None = None
) -> Mapping[str, Any]:
    """Write `embeddings` and an empty `rejects` of embeddings that were made elsewhere, docs in id order."""
    given = read_embeddings(source.path)
    rows = arriving_rows(given.image_ids, changes)
    schema = schemas.arrow(schemas.EMBEDDINGS)
    (folder / "embeddings").mkdir()
    # Floats that look random compress by a tenth, and are read more often than written.
    with parquet_file(folder / "embeddings" / "part-00000.parquet", schema, compression="none") as writer:
        for start in range(0, len(rows), ROWS_PER_GROUP):
            chunk = rows[start : start + ROWS_PER_GROUP]
            docs = pa.array(first_doc + start + np.arange(len(chunk)))
            embeddings = binary_rows(np.ascontiguousarray(given.embeddings[chunk], dtype="<f4"))
            writer.write_table(pa.table([docs, embeddings], schema=schema))
    del given
    release_embeddings()
    write_arrow(schemas.arrow(schemas.REJECTS).empty_table(), folder / "rejects")
    return {}


def distinct_images(spark: SparkSession, source: Source, catalogue: str) -> DataFrame:
    """The catalogue's images, one of those with the same bytes, with `content` or `uri`."""
    distinct = spark.read.parquet(catalogue).where("doc = original_doc").select("image_id", "doc", "uri")
    if source.kind is not SourceKind.CONTENT_TABLE:
        return distinct
    return distinct.drop("uri").join(list_images(spark, source, num_partitions=1), "image_id")


def embed_batches(batches: Iterator[pa.RecordBatch], *, task: EmbedTask) -> Iterator[pa.RecordBatch]:
    """Rows of images to `EMBEDDED` rows, in order."""
    use_assigned_gpu()
    embedder = load_once(task.embedder, task.dtype, task.num_threads)
    with ThreadPoolExecutor(max(2, task.num_threads)) as pool:
        for batch in batches:
            places = batch["content" if "content" in batch.schema.names else "uri"].to_pylist()
            decode = partial(decode_square, task=task, size=embedder.spec.size)
            decoded = list(pool.map(decode, places))
            yield _embedded_rows(batch, decoded, embedder)


@lru_cache(maxsize=1)
def load_once(embedder: str, dtype: str, num_threads: int) -> Embedder:
    from embed.embedder import load_embedder

    return load_embedder(embedder, dtype=dtype, batch_size=BATCH_SIZE, num_threads=num_threads)


def decode_square(place: str | bytes | None, *, task: EmbedTask, size: int) -> Decoded:
    """An image as the network's `(size, size, 3)` uint8 square, or why it was rejected."""
    try:
        content = image_bytes(place, root=task.root, limits=task.limits)
        return to_square(decode_image(content, task.limits, min_side=size), size)
    except ImageRejected as rejected:
        return rejected


def embed_decoded(decoded: Sequence[Decoded], embedder: Embedder) -> list[NDArray[np.float32] | ImageRejected]:
    """A `(dim,)` little-endian float32 unit row for each square, rejects as they are."""
    squares = [square for square in decoded if not isinstance(square, ImageRejected)]
    rows = iter(embedder.embed(np.stack(squares)).astype("<f4") if squares else ())
    return [square if isinstance(square, ImageRejected) else next(rows) for square in decoded]


def _embedded_rows(batch: pa.RecordBatch, decoded: Sequence[Decoded], embedder: Embedder) -> pa.RecordBatch:
    results = embed_decoded(decoded, embedder)
    embeddings = [None if isinstance(result, ImageRejected) else result.tobytes() for result in results]
    rejects = [result if isinstance(result, ImageRejected) else None for result in results]
    return pa.RecordBatch.from_arrays(
        [
            batch["doc"],
            pa.array(embeddings, pa.binary()),
            pa.array([str(rejected.reason) if rejected else None for rejected in rejects], pa.string()),
            pa.array([rejected.detail if rejected else None for rejected in rejects], pa.string()),
        ],
        names=schemas.columns(schemas.EMBEDDED),
    )


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
