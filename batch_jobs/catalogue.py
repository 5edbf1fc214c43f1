"""Step 1, catalogue: every image gets its doc, its header and the digest of its bytes.

Reads the source once. An image whose header cannot be read becomes a row of `rejects`. Docs are dense and follow the
order of the image ids, so they depend on nothing but the set of images.

Spark does so for any number of images; on one machine threads of the driver do it for a small source, with the same
rows as a result.

A night reads only what arrives: ids that are not known, and known ones whose file was written again. The latter keep
their doc when the bytes are the same; otherwise the old doc is removed and the image gets a new one. New docs go on
where the known ones end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.changes import Changes, find_changes
from batch_jobs.errors import SourceError
from batch_jobs.nights import KNOWN_NOTHING, Known, live_images, read_docs
from batch_jobs.session import read_table, write_arrow, write_table
from batch_jobs.sources import (
    SIZE_BITS,
    Source,
    SourceKind,
    content_groups,
    file_ids,
    file_state,
    list_source,
    place_of,
    read_contents,
    read_embeddings,
    read_image_bytes,
    strings,
)
from batch_jobs.task_runners import TaskRunner
from embed.decoding import ImageLimits, ImageRejected, RejectReason, read_header

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

CATALOGUE_ARROW = schemas.arrow(schemas.CATALOGUE)
INSPECTED_ARROW = schemas.arrow(schemas.INSPECTED)
REJECTS_ARROW = schemas.arrow(schemas.REJECTS)
REMOVED_ARROW = schemas.arrow(schemas.REMOVED)
REWRITTEN_ARROW = schemas.arrow(schemas.REWRITTEN)

STEP = "catalogue"
TABLES = ("catalogue", "rejects", "removed", "rewritten")
EXAMPLES = 5
IMAGES_AT_ONCE = 64
"""What a thread of the driver looks at before it says so."""


def catalogue(
    spark: SparkSession,
    folder: Path,
    *,
    source: Source,
    limits: ImageLimits,
    num_partitions: int,
    known: Known = KNOWN_NOTHING,
    changes: Changes | None = None,
) -> Mapping[str, Any]:
    """Write the tables of a source of images, of its `changes` where some are `known`.

    Raises SourceError on a table with unusable ids.
    """
    from pyspark.sql import functions as f

    listing = list_images(spark, source, num_partitions=num_partitions, arrivals=changes.arrivals if changes else None)
    if source.kind is not SourceKind.FILES:
        _require_unique_ids(listing, source)
    inspect = partial(inspect_images, root=str(source.root), limits=limits)
    inspected = listing.mapInArrow(inspect, schemas.INSPECTED).persist()
    try:
        accepted = inspected.where("reason IS NULL").drop("reason", "detail")
        rejects = inspected.where("reason IS NOT NULL").withColumn("stage", f.lit(STEP))
        found = accepted.select("image_id", "sha256", "state")
        twins = _find_twins(found.toArrow(), known, changes) if changes else NO_TWINS
        write_table(_with_docs(spark, accepted, twins, first_doc=known.next_doc), folder / "catalogue")
        write_table(rejects.select(*schemas.columns(schemas.REJECTS)), folder / "rejects", num_files=1)
    finally:
        inspected.unpersist()
    _write_changes(folder, changes, rewritten=twins.rewritten)
    return {}


def catalogue_in_driver(
    runner: TaskRunner,
    folder: Path,
    *,
    source: Source,
    limits: ImageLimits,
    known: Known = KNOWN_NOTHING,
    changes: Changes | None = None,
) -> Mapping[str, Any]:
    """As `catalogue`, of so few images that threads of this process look at them."""
    if changes is None:
        changes = find_changes(list_source(source), CATALOGUE_ARROW.empty_table())
    shares = _shares(source, changes.arrivals)

    def inspect(number: int) -> pa.Table:
        inspected = inspect_images(shares[number](), root=str(source.root), limits=limits)
        return pa.Table.from_batches(inspected, INSPECTED_ARROW)

    inspected = runner.run(len(shares), inspect, returns=schemas.INSPECTED, folder=folder)
    is_accepted = pc.is_null(inspected["reason"])
    accepted, rejects = inspected.filter(is_accepted), inspected.filter(pc.invert(is_accepted))
    twins = _find_twins(accepted, known, changes) if known.catalogues else NO_TWINS
    write_arrow(_numbered(accepted, twins, first_doc=known.next_doc), folder / "catalogue")
    rejects = rejects.append_column("stage", pa.array([STEP] * len(rejects), pa.string()))
    write_arrow(rejects.select(REJECTS_ARROW.names), folder / "rejects")
    _write_changes(folder, changes, rewritten=twins.rewritten)
    return {}


def _shares(source: Source, arrivals: pa.Table) -> list[Callable[[], Iterator[pa.RecordBatch]]]:
    """What reads a share of the images each, as `inspect_images` takes them."""
    if source.kind is SourceKind.CONTENT_TABLE:
        image_ids = arrivals["image_id"].combine_chunks()
        return [partial(read_contents, group, image_ids) for group in content_groups(source)]
    listing = arrivals.select(schemas.columns(schemas.LISTING))
    return [partial(iter, [batch]) for batch in listing.to_batches(max_chunksize=IMAGES_AT_ONCE)]


def catalogue_embeddings(
    folder: Path, *, source: Source, known: Known = KNOWN_NOTHING, changes: Changes | None = None
) -> Mapping[str, Any]:
    """Write the tables of embeddings that were made elsewhere, of their `changes` where some are `known`."""
    given = read_embeddings(source.path)
    rows = arriving_rows(given.image_ids, changes)
    image_ids = given.image_ids[rows]
    twice = image_ids[1:][image_ids[1:] == image_ids[:-1]]
    if len(twice):
        raise SourceError(_duplicate_ids(source, [str(image_id) for image_id in dict.fromkeys(twice[:EXAMPLES])]))
    docs = pa.array(known.next_doc + np.arange(len(image_ids)))
    columns = {
        "image_id": strings(image_ids),
        "doc": docs,
        "original_doc": docs,
        "state": pa.array(given.states[rows]),
    }
    write_arrow(_filled(columns, CATALOGUE_ARROW, len(image_ids)), folder / "catalogue")
    write_arrow(REJECTS_ARROW.empty_table(), folder / "rejects")
    _write_changes(folder, changes, rewritten=NO_TWINS.rewritten)
    return {}


def arriving_rows(image_ids: NDArray[np.str_], changes: Changes | None) -> NDArray[np.int64]:
    """The rows of given embeddings that get a doc, by image id."""
    rows = np.arange(len(image_ids)) if changes is None else changes.rows
    return rows[image_ids[rows].argsort(kind="stable")]


@dataclass(frozen=True, slots=True, eq=False)
class _Twins:
    """What arriving images share with known ones.

    `rewritten` rows are known images whose bytes are the same; `image_ids` are theirs. `originals` has the content
    (`original_doc`) of each `sha256` that is embedded already.
    """

    rewritten: pa.Table
    image_ids: pa.Table
    originals: pa.Table


NO_TWINS = _Twins(
    REWRITTEN_ARROW.empty_table(),
    pa.table({"image_id": pa.array([], pa.string())}),
    schemas.arrow(schemas.ORIGINALS).empty_table(),
)


def _find_twins(found: pa.Table, known: Known, changes: Changes) -> _Twins:
    """The twins of images with `image_id`, `sha256` and `state`."""
    found = found.select(["image_id", "sha256", "state"])
    same_bytes = pyarrow.dataset.field("sha256").isin(found["sha256"].combine_chunks())
    twins = live_images(known, ["image_id", "doc", "original_doc", "sha256"], where=same_bytes)
    contents = twins["original_doc"].to_numpy()
    is_kept = ~np.isin(contents, changes.redone_contents)
    is_embedded = is_kept & np.isin(contents, read_docs(known.embeddings))
    kept = twins.filter(pa.array(is_kept)).select(["image_id", "sha256", "doc"])
    same = found.join(kept, ["image_id", "sha256"], join_type="inner").sort_by("doc")
    originals = twins.filter(pa.array(is_embedded)).group_by("sha256").aggregate([("original_doc", "min")])
    return _Twins(
        rewritten=same.select(["doc", "state"]).cast(REWRITTEN_ARROW),
        image_ids=same.select(["image_id"]),
        originals=originals.select(["sha256", "original_doc_min"])
        .cast(pa.schema([("sha256", pa.string()), ("original_doc_min", pa.int64())]))
        .rename_columns(["sha256", "known_doc"]),
    )


def _write_changes(folder: Path, changes: Changes | None, *, rewritten: pa.Table) -> None:
    """Write `removed`, what is gone or has other bytes now, and `rewritten`."""
    removed = np.empty(0, np.int64)
    if changes is not None:
        arrived = changes.arrivals["known_doc"].drop_null().to_numpy()
        removed = np.union1d(changes.gone_docs, np.setdiff1d(arrived, rewritten["doc"].to_numpy()))
    write_arrow(pa.table([pa.array(removed)], schema=REMOVED_ARROW), folder / "removed")
    write_arrow(rewritten, folder / "rewritten")


def _filled(columns: dict[str, pa.Array], schema: pa.Schema, num_rows: int) -> pa.Table:
    return pa.table([columns.get(field.name, pa.nulls(num_rows, field.type)) for field in schema], schema=schema)


def list_images(
    spark: SparkSession, source: Source, *, num_partitions: int, arrivals: pa.Table | None = None
) -> DataFrame:
    """One row per image of the source: `image_id` with `uri`, or with `content` and `state`; only those of `arrivals`.

    The state of a table's image is the `file_state` of the Parquet file that holds it.
    """
    from pyspark.sql import functions as f

    if source.kind is SourceKind.CONTENT_TABLE:
        changed_ms = f.unix_millis("_metadata.file_modification_time")
        low_size = f.col("_metadata.file_size").bitwiseAND((1 << SIZE_BITS) - 1)
        state = f.shiftleft(changed_ms, SIZE_BITS).bitwiseOR(low_size).alias("state")
        contents = read_table(spark, *source.files).select("image_id", "content", state)
        if arrivals is None:
            return contents
        return contents.join(
            spark.createDataFrame(arrivals.select(["image_id"]), "image_id string"), "image_id", "semi"
        )
    if arrivals is None and source.kind is SourceKind.URI_TABLE:
        return read_table(spark, *source.files).select("image_id", "uri").repartition(num_partitions)
    listing = pa.table({"image_id": file_ids(source), "uri": list(source.files)}) if arrivals is None else arrivals
    return spark.createDataFrame(listing.select(["image_id", "uri"]), schemas.LISTING).repartition(num_partitions)


def inspect_images(batches: Iterator[pa.RecordBatch], *, root: str, limits: ImageLimits) -> Iterator[pa.RecordBatch]:
    """Listing rows to `INSPECTED` rows."""
    for batch in batches:
        image_ids = batch["image_id"].to_pylist()
        if "content" in batch.schema.names:
            contents, states = batch["content"].to_pylist(), batch["state"].to_pylist()
            listed = [
                ({"image_id": image_id, "state": state}, content)
                for image_id, state, content in zip(image_ids, states, contents, strict=True)
            ]
        else:
            listed = [
                # The state is that of the bytes or of older ones, so that a file which is written meanwhile is seen.
                ({"image_id": image_id, "uri": uri, "state": file_state(str(place_of(uri, root=root)))}, uri)
                for image_id, uri in zip(image_ids, batch["uri"].to_pylist(), strict=True)
            ]
        rows = [_inspect(row, place, root=root, limits=limits) for row, place in listed]
        yield pa.RecordBatch.from_pylist(rows, schema=INSPECTED_ARROW)


def _inspect(row: dict[str, Any], place: str | bytes | None, *, root: str, limits: ImageLimits) -> dict[str, Any]:
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
    return read_image_bytes(str(place_of(place, root=root)), root=root, max_bytes=limits.max_bytes)


def _with_docs(spark: SparkSession, accepted: DataFrame, twins: _Twins, *, first_doc: int) -> DataFrame:
    """Add `doc`, from `first_doc` on by image id, and `original_doc`, the known or first doc with the same bytes."""
    from pyspark.sql import functions as f

    if len(twins.image_ids):
        accepted = accepted.join(spark.createDataFrame(twins.image_ids, "image_id string"), "image_id", "anti")
    # Ids of a sorted frame are (partition << 33) + row; with the partitions' sizes they become dense ranks.
    numbered = accepted.orderBy("image_id").withColumn("sorted_row", f.monotonically_increasing_id()).persist()
    sizes = {
        row["partition"]: row["count"]
        for row in numbered.groupBy(f.shiftright("sorted_row", 33).alias("partition")).count().collect()
    }
    last = max(sizes, default=0)
    starts = accumulate((sizes.get(partition, 0) for partition in range(last)), initial=first_doc)
    first_of_partition = f.element_at(
        f.array(*[f.lit(start).cast("long") for start in starts]), (f.shiftright("sorted_row", 33) + 1).cast("int")
    )
    documented = numbered.withColumn("doc", first_of_partition + f.col("sorted_row").bitwiseAND((1 << 33) - 1))
    # Few images have copies, so the join is with a small table and leaves the order by doc alone.
    copied = documented.groupBy("sha256").agg(f.min("doc").alias("first_doc"), f.count("doc").alias("copies"))
    originals = copied.where("copies > 1").drop("copies")
    known = spark.createDataFrame(twins.originals, schemas.ORIGINALS)
    return (
        documented.join(originals, "sha256", "left")
        .join(f.broadcast(known), "sha256", "left")
        .withColumn("original_doc", f.coalesce("known_doc", "first_doc", "doc"))
        .select(*schemas.columns(schemas.CATALOGUE))
    )


def _numbered(accepted: pa.Table, twins: _Twins, *, first_doc: int) -> pa.Table:
    """What `_with_docs` adds, and nothing else: the `CATALOGUE` rows of some `INSPECTED` ones, by doc."""
    is_known = pc.is_in(accepted["image_id"], value_set=twins.image_ids["image_id"].combine_chunks())
    images = accepted.filter(pc.invert(is_known)).sort_by("image_id")
    docs = first_doc + np.arange(len(images))
    # Numbered by first appearance, so that the first of each number is the first doc with those bytes.
    numbers = images["sha256"].combine_chunks().dictionary_encode().indices.to_numpy()
    first_docs = docs[np.unique(numbers, return_index=True)[1]]
    known = pc.index_in(images["sha256"], value_set=twins.originals["sha256"].combine_chunks())
    known_docs = twins.originals["known_doc"].take(known)
    originals = pc.coalesce(known_docs, pa.array(first_docs[numbers]))
    images = images.append_column("doc", pa.array(docs)).append_column("original_doc", originals)
    return images.select(CATALOGUE_ARROW.names).cast(CATALOGUE_ARROW)


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
