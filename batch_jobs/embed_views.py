"""Step 5a, views, in thorough runs: parts and versions of every distinct image, embedded by themselves.

A view has a number like a doc, the same on every night: those of the image `doc` begin at
`FIRST_VIEW + NUM_VIEWS * doc`, behind all docs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.catalogue import image_bytes
from batch_jobs.embed_images import (
    BATCH_SIZE,
    IMAGES_AT_ONCE,
    EmbedTask,
    decoded_ahead,
    distinct_images,
    read_distinct,
    write_embeddings,
)
from batch_jobs.gpus import EmbedResources, own_workers, use_assigned_gpu
from batch_jobs.make_terms import binary_rows
from batch_jobs.session import read_table, write_table
from batch_jobs.sources import Source
from embed.decoding import ImageRejected, decode_image
from embed.views import NUM_VIEWS

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from embed.views import ViewEmbedder

STEP = "views"
TABLES = ("views",)
VIEWS_ARROW = schemas.arrow(schemas.EMBEDDINGS)
FIRST_VIEW = 1 << 40

Squares = list[NDArray[np.uint8]]


def embed_views(
    spark: SparkSession,
    folder: Path,
    *,
    source: Source,
    catalogue: str,
    embeddings: str,
    task: EmbedTask,
    resources: EmbedResources,
    num_tasks: int,
) -> Mapping[str, Any]:
    """Write `views`, rows of `EMBEDDINGS` by number, of the images that have an embedding."""
    embedded = read_table(spark, embeddings).select("doc")
    images = distinct_images(spark, source, catalogue).join(embedded, "doc", "left_semi")
    images = images.repartitionByRange(num_tasks, "doc").sortWithinPartitions("doc")
    with own_workers(spark, resources):
        made = images.mapInArrow(
            partial(view_batches, task=task),
            schemas.EMBEDDINGS,
            profile=resources.profile,
        )
        write_table(made, folder / "views")
    return {}


def embed_views_in_driver(
    folder: Path,
    *,
    source: Source,
    catalogue: str,
    embeddings: str,
    task: EmbedTask,
    progress: Callable[[float], None],
) -> Mapping[str, Any]:
    """As `embed_views`, of so few images that this process embeds them, with all of its threads."""
    embedded = pq.read_table(embeddings, columns=["doc"])["doc"].combine_chunks()
    distinct = read_distinct(source, catalogue, progress)
    images = (batch.filter(pc.is_in(batch["doc"], value_set=embedded)) for batch in distinct)
    write_embeddings(folder / "views", view_batches(images, task=task))
    load_once.cache_clear()
    return {}


def views_of(docs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of all views of some images, in their order.

    >>> (views_of(np.array([0, 7])) - FIRST_VIEW).tolist() == [*range(NUM_VIEWS), *range(7 * NUM_VIEWS, 8 * NUM_VIEWS)]
    True
    """
    return (FIRST_VIEW + NUM_VIEWS * docs[:, None] + np.arange(NUM_VIEWS)).ravel()


def view_batches(batches: Iterator[pa.RecordBatch], *, task: EmbedTask) -> Iterator[pa.RecordBatch]:
    """Rows of images to the rows of their views, in order; what cannot be read any more has none."""
    use_assigned_gpu()
    embedder = load_once(task.embedder, task.dtype, task.num_threads)
    few = (batch.slice(start, IMAGES_AT_ONCE) for batch in batches for start in range(0, len(batch), IMAGES_AT_ONCE))
    decode = partial(_decoded, task=task, embedder=embedder)
    for images, decoded in decoded_ahead(few, decode, num_threads=task.num_threads):
        yield _view_rows(images["doc"].to_numpy(), decoded, embedder)


@lru_cache(maxsize=1)
def load_once(embedder: str, dtype: str, num_threads: int | None) -> ViewEmbedder:
    from embed.views import load_view_embedder

    return load_view_embedder(embedder, dtype=dtype, batch_size=BATCH_SIZE, num_threads=num_threads)


def _decoded(place: str | bytes | None, *, task: EmbedTask, embedder: ViewEmbedder) -> Squares | None:
    try:
        content = image_bytes(place, root=task.root, limits=task.limits)
        return embedder.squares(decode_image(content, task.limits, min_side=max(embedder.sizes)))
    except ImageRejected:
        return None


def _view_rows(docs: NDArray[np.int64], decoded: list[Squares | None], embedder: ViewEmbedder) -> pa.RecordBatch:
    readable = [squares for squares in decoded if squares is not None]
    if not readable:
        return pa.RecordBatch.from_pylist([], schema=VIEWS_ARROW)
    views = embedder.embed([np.stack(of_one_size) for of_one_size in zip(*readable, strict=True)]).astype("<f4")
    numbers = views_of(docs[[squares is not None for squares in decoded]])
    rows = np.ascontiguousarray(views.reshape(len(numbers), -1))
    return pa.RecordBatch.from_arrays([pa.array(numbers, pa.int64()), binary_rows(rows)], schema=VIEWS_ARROW)


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
