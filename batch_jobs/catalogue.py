"""Step 1, catalogue: every image gets its doc, its header and the digest of its bytes.

Reads the source once. An image whose header cannot be read becomes a row of `rejects`. Docs are dense and follow the
order of the image ids, so they depend on nothing but the set of images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyspark.sql import functions as f

from batch_jobs import schemas
from batch_jobs.errors import SourceError
from batch_jobs.session import write_arrow, write_table
from batch_jobs.sources import Source, SourceKind, read_embeddings, read_image_bytes
from embed.decoding import ImageLimits, ImageRejected, RejectReason, read_header

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

CATALOGUE_ARROW = schemas.arrow(schemas.CATALOGUE)
INSPECTED_ARROW = schemas.arrow(schemas.INSPECTED)
REJECTS_ARROW = schemas.arrow(schemas.REJECTS)

STEP = "catalogue"
TABLES = ("catalogue", "rejects")
EXAMPLES = 5


def catalogue(
    spark: SparkSession, folder: Path, *, source: Source, limits: ImageLimits, num_partitions: int
) -> Mapping[str, Any]:
    """Write `catalogue` and `rejects` of a source of images; raises SourceError on a table with unusable ids."""
    listing = list_images(spark, source, num_partitions=num_partitions)
    if source.kind is not SourceKind.FILES:
        _require_unique_ids(listing, source)
    inspect = partial(inspect_images, root=str(source.root), limits=limits)
    inspected = listing.mapInArrow(inspect, schemas.INSPECTED).persist()
    try:
        accepted = inspected.where("reason IS NULL").drop("reason", "detail")
        rejects = inspected.where("reason IS NOT NULL").withColumn("stage", f.lit(STEP))
        write_table(_with_docs(accepted), folder / "catalogue")
        write_table(rejects.select(*schemas.columns(schemas.REJECTS)), folder / "rejects", num_files=1)
    finally:
        inspected.unpersist()
    return {}


def catalogue_embeddings(folder: Path, *, source: Source) -> Mapping[str, Any]:
    """Write `catalogue` and an empty `rejects` of embeddings that were made elsewhere."""
    image_ids = np.sort(read_embeddings(source.path).image_ids)
    twice = image_ids[1:][image_ids[1:] == image_ids[:-1]]
    if len(twice):
        raise SourceError(_duplicate_ids(source, [str(image_id) for image_id in dict.fromkeys(twice[:EXAMPLES])]))
    docs = pa.array(np.arange(len(image_ids)))
    known = {"image_id": pa.array(image_ids.tolist(), pa.string()), "doc": docs, "original_doc": docs}
    write_arrow(_filled(known, CATALOGUE_ARROW, len(image_ids)), folder / "catalogue")
    write_arrow(REJECTS_ARROW.empty_table(), folder / "rejects")
    return {}


def _filled(columns: dict[str, pa.Array], schema: pa.Schema, num_rows: int) -> pa.Table:
    return pa.table([columns.get(field.name, pa.nulls(num_rows, field.type)) for field in schema], schema=schema)


def list_images(spark: SparkSession, source: Source, *, num_partitions: int) -> DataFrame:
    """One row per image of the source: `image_id` with `uri`, or with `content`."""
    if source.kind is SourceKind.FILES:
        base = source.path if source.path.is_dir() else source.root
        listing = pa.table(
            {
                "image_id": [Path(file).relative_to(base).as_posix() for file in source.files],
                "uri": list(source.files),
            }
        )
        return spark.createDataFrame(listing, schemas.LISTING).repartition(num_partitions)
    table = spark.read.parquet(*source.files)
    if source.kind is SourceKind.CONTENT_TABLE:
        return table.select("image_id", "content")
    return table.select("image_id", "uri").repartition(num_partitions)


def inspect_images(batches: Iterator[pa.RecordBatch], *, root: str, limits: ImageLimits) -> Iterator[pa.RecordBatch]:
    """Listing rows to `INSPECTED` rows."""
    for batch in batches:
        has_content = "content" in batch.schema.names
        image_ids = batch["image_id"].to_pylist()
        places = batch["content" if has_content else "uri"].to_pylist()
        rows = [
            _inspect(image_id, None if has_content else place, place, root=root, limits=limits)
            for image_id, place in zip(image_ids, places, strict=True)
        ]
        yield pa.RecordBatch.from_pylist(rows, schema=INSPECTED_ARROW)


def _inspect(
    image_id: str, uri: str | None, place: str | bytes | None, *, root: str, limits: ImageLimits
) -> dict[str, Any]:
    row: dict[str, Any] = {"image_id": image_id, "uri": uri}
    try:
        content = image_bytes(place, root=root, limits=limits)
        header = read_header(content, limits)
    except ImageRejected as rejected:
        return {**row, "reason": str(rejected.reason), "detail": rejected.detail}
    return {
        **row,
        "width": header.width,
        "height": header.height,
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def image_bytes(place: str | bytes | None, *, root: str, limits: ImageLimits) -> bytes:
    """The bytes of an image given as content, or as a path relative to `root`; raises ImageRejected."""
    if place is None:
        raise ImageRejected(RejectReason.EMPTY, "the table has no content or uri for this image")
    if isinstance(place, bytes):
        return place
    return read_image_bytes(str(Path(root, place.removeprefix("file://"))), root=root, max_bytes=limits.max_bytes)


def _with_docs(accepted: DataFrame) -> DataFrame:
    """Add `doc`, the rank of the image id, and `original_doc`, the first doc with the same bytes."""
    # Ids of a sorted frame are (partition << 33) + row; with the partitions' sizes they become dense ranks.
    numbered = accepted.orderBy("image_id").withColumn("sorted_row", f.monotonically_increasing_id()).persist()
    sizes = {
        row["partition"]: row["count"]
        for row in numbered.groupBy(f.shiftright("sorted_row", 33).alias("partition")).count().collect()
    }
    last = max(sizes, default=0)
    starts = [0, *accumulate(sizes.get(partition, 0) for partition in range(last))]
    first_doc = f.element_at(
        f.array(*[f.lit(start).cast("long") for start in starts]), (f.shiftright("sorted_row", 33) + 1).cast("int")
    )
    documented = numbered.withColumn("doc", first_doc + f.col("sorted_row").bitwiseAND((1 << 33) - 1))
    # Few images have copies, so the join is with a small table and leaves the order by doc alone.
    copied = documented.groupBy("sha256").agg(f.min("doc").alias("first_doc"), f.count("doc").alias("copies"))
    originals = copied.where("copies > 1").drop("copies")
    return (
        documented.join(originals, "sha256", "left")
        .withColumn("original_doc", f.coalesce("first_doc", "doc"))
        .select(*schemas.columns(schemas.CATALOGUE))
    )


def _require_unique_ids(listing: DataFrame, source: Source) -> None:
    if listing.where("image_id IS NULL").limit(1).count():
        raise SourceError(f"source {source.path} has rows without an image_id; every image needs one")
    twice = listing.groupBy("image_id").count().where("count > 1").orderBy("image_id").limit(EXAMPLES).collect()
    if twice:
        raise SourceError(_duplicate_ids(source, [row["image_id"] for row in twice]))


def _duplicate_ids(source: Source, examples: list[str]) -> str:
    return (
        f"source {source.path} has image_ids that occur more than once, such as {', '.join(examples)}; make them unique"
    )


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
