"""Step 2, embed: one embedding per distinct image.

Byte-identical files are embedded once. Decoding runs in threads, one batch ahead of the network. Each Python worker
builds the network once and keeps it; of a small source the driver does all. An image that cannot be decoded becomes a
row of `rejects`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.catalogue import arriving_rows, image_bytes, list_images
from batch_jobs.changes import Changes
from batch_jobs.errors import SessionError
from batch_jobs.gpus import EmbedResources, own_workers, use_assigned_gpu
from batch_jobs.make_terms import binary_rows
from batch_jobs.session import ROWS_PER_GROUP, num_cores, read_table, write_arrow, write_table
from batch_jobs.sources import (
    Source,
    SourceKind,
    content_groups,
    read_contents,
    read_embeddings,
    release_embeddings,
)
from batch_jobs.task_files import parquet_file
from embed.decoding import ImageLimits, ImageRejected, decode_image
from embed.preprocessing import to_square

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from embed.embedder import Embedder

STEP = "embed"
TABLES = ("embeddings", "rejects")
BATCH_SIZE = 32

IMAGES_AT_ONCE = 4 * BATCH_SIZE
"""What is decoded ahead of the network in the driver, and of views anywhere."""

Decoded = NDArray[np.uint8] | ImageRejected
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedTask:
    """What a worker needs to know: which network, in which precision, on how many threads, under which limits.

    `num_threads` None takes as many as the process has.
    """

    embedder: str
    dtype: str
    num_threads: int | None
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
        copies = read_table(spark, catalogue).select("image_id", "uri", f.col("original_doc").alias("doc"))
        rejected = copies.join(f.broadcast(rejects), "doc").withColumn("stage", f.lit(STEP))
        write_table(rejected.select(*schemas.columns(schemas.REJECTS)), folder / "rejects", num_files=1)
    finally:
        embedded.unpersist()
    return {}


def embed_in_driver(
    folder: Path, *, source: Source, catalogue: str, task: EmbedTask, progress: Callable[[float], None]
) -> Mapping[str, Any]:
    """As `embed_images`, of so few images that this process embeds them, with all of its threads."""
    images = pq.read_table(catalogue, columns=["image_id", "uri", "doc", "original_doc"])
    rejected = []

    def found() -> Iterator[pa.RecordBatch]:
        for rows in embed_batches(read_distinct(source, catalogue, progress), task=task):
            is_found = pc.is_valid(rows["embedding"])
            rejected.append(rows.filter(pc.invert(is_found)))
            yield rows.filter(is_found).select(schemas.columns(schemas.EMBEDDINGS))

    write_embeddings(folder / "embeddings", found())
    load_once.cache_clear()
    rejects = pa.Table.from_batches(rejected, schemas.arrow(schemas.EMBEDDED))
    # A byte-identical copy of a reject is a reject as well.
    places = pc.index_in(images["original_doc"], value_set=rejects["doc"].combine_chunks())
    reasons = rejects.take(places.drop_null())
    copies = images.filter(pc.is_valid(places))
    stages = pa.array([STEP] * len(copies), pa.string())
    columns = [copies["image_id"], copies["uri"], stages, reasons["reason"], reasons["detail"]]
    write_arrow(pa.table(columns, schema=schemas.arrow(schemas.REJECTS)), folder / "rejects")
    return {}


def adopt_embeddings(
    folder: Path, *, source: Source, first_doc: int = 0, changes: Changes | None = None
) -> Mapping[str, Any]:
    """Write `embeddings` and an empty `rejects` of embeddings that were made elsewhere, docs in id order."""
    write_embeddings(folder / "embeddings", _given_rows(source, first_doc, changes))
    release_embeddings()
    write_arrow(schemas.arrow(schemas.REJECTS).empty_table(), folder / "rejects")
    return {}


def _given_rows(source: Source, first_doc: int, changes: Changes | None) -> Iterator[pa.RecordBatch]:
    given = read_embeddings(source.path)
    rows = arriving_rows(given.image_ids, changes)
    for start in range(0, len(rows), ROWS_PER_GROUP):
        chunk = rows[start : start + ROWS_PER_GROUP]
        docs = pa.array(first_doc + start + np.arange(len(chunk)))
        embeddings = binary_rows(np.ascontiguousarray(given.embeddings[chunk], dtype="<f4"))
        yield pa.RecordBatch.from_arrays([docs, embeddings], schema=schemas.arrow(schemas.EMBEDDINGS))


def distinct_images(spark: SparkSession, source: Source, catalogue: str) -> DataFrame:
    """The catalogue's images, one of those with the same bytes, with `content` or `uri`."""
    distinct = read_table(spark, catalogue).where("doc = original_doc").select("image_id", "doc", "uri")
    if source.kind is not SourceKind.CONTENT_TABLE:
        return distinct
    return distinct.drop("uri").join(list_images(spark, source, num_partitions=1), "image_id")


def read_distinct(source: Source, catalogue: str, progress: Callable[[float], None]) -> Iterator[pa.RecordBatch]:
    """As `distinct_images`, by doc, or in the order of a table of contents; progress is the share that was read."""
    images = pq.read_table(catalogue, columns=["image_id", "doc", "original_doc", "uri"])
    images = images.filter(pc.equal(images["doc"], images["original_doc"])).sort_by("doc").combine_chunks()
    if source.kind is SourceKind.CONTENT_TABLE:
        batches = _with_contents(source, images)
    else:
        batches = iter(images.select(["doc", "uri"]).to_batches(max_chunksize=IMAGES_AT_ONCE))
    num_read = 0
    for batch in batches:
        yield batch
        num_read += len(batch)
        progress(num_read / len(images))


def _with_contents(source: Source, images: pa.Table) -> Iterator[pa.RecordBatch]:
    image_ids, docs = images["image_id"].combine_chunks(), images["doc"].combine_chunks()
    for group in content_groups(source):
        for batch in read_contents(group, image_ids):
            rows = docs.take(pc.index_in(batch["image_id"], value_set=image_ids))
            yield pa.RecordBatch.from_arrays([rows, batch["content"]], names=["doc", "content"])


def write_embeddings(table: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write `EMBEDDINGS` rows as one file, uncompressed: floats that look random would shrink by a tenth."""
    table.mkdir()
    schema = schemas.arrow(schemas.EMBEDDINGS)
    held: list[pa.RecordBatch] = []
    with parquet_file(table / "part-00000.parquet", schema, compression="none") as file:
        for batch in batches:
            held.append(batch)
            if sum(map(len, held)) >= ROWS_PER_GROUP:
                file.write_table(pa.Table.from_batches(held, schema))
                held = []
        if held:
            file.write_table(pa.Table.from_batches(held, schema))


def embed_batches(batches: Iterator[pa.RecordBatch], *, task: EmbedTask) -> Iterator[pa.RecordBatch]:
    """Rows of images to `EMBEDDED` rows, in order."""
    use_assigned_gpu()
    embedder = load_once(task.embedder, task.dtype, task.num_threads)
    decode = partial(decode_square, task=task, size=embedder.spec.size)
    for batch, decoded in decoded_ahead(batches, decode, num_threads=task.num_threads):
        yield _embedded_rows(batch, decoded, embedder)


def decoded_ahead(
    batches: Iterator[pa.RecordBatch], decode: Callable[[str | bytes | None], T], *, num_threads: int | None
) -> Iterator[tuple[pa.RecordBatch, list[T]]]:
    """Rows of images with what `decode` makes of each; threads decode the next batch while one is looked at."""
    with ThreadPoolExecutor(max(2, num_threads or num_cores())) as pool:
        before: tuple[pa.RecordBatch, Iterator[T]] | None = None
        for batch in batches:
            places = batch["content" if "content" in batch.schema.names else "uri"].to_pylist()
            decoding = pool.map(decode, places)
            if before is not None:
                yield before[0], list(before[1])
            before = batch, decoding
        if before is not None:
            yield before[0], list(before[1])


@lru_cache(maxsize=1)
def load_once(embedder: str, dtype: str, num_threads: int | None) -> Embedder:
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
