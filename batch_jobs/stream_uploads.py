"""Uploads as they come: new images from a folder, a table or Kafka are embedded and registered at a server.

    neardup stream uploads/ --server host:50051 --checkpoint /data/stream
    spark-submit batch_jobs/stream_uploads.py --source uploads/ --server host:50051 --checkpoint /data/stream

Two Structured Streaming queries share the checkpoint's folder:

    checkpoint/
      uploads/                    Spark's own checkpoint of the first query, and hours/ that of the second
      outcomes/batch-<query>-<n>/ what became of the images of one micro-batch
      hourly/batch-<query>-<n>/   counts by hour, once the hour is over and late images had their time
      spark.log

A micro-batch that was interrupted is run again. The server answers a known image id as it did before, and a folder of
`outcomes` or `hourly` is renamed into place once, so every image is registered once and counted once.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.dataset
from numpy.typing import NDArray
from pyspark.sql import functions as f

from batch_jobs import schemas
from batch_jobs.embed_images import EmbedTask, decode_square, embed_decoded, embed_task, load_once
from batch_jobs.errors import BatchError, SessionError, SourceError
from batch_jobs.gpus import embed_resources, own_workers, use_assigned_gpu
from batch_jobs.operator_errors import operator_errors
from batch_jobs.session import default_parallelism, spark_session, write_table
from batch_jobs.workspace import read_json, workspace_error
from embed.decoding import ImageLimits, ImageRejected
from embed.embedder_dir import describe_embedder
from embed.errors import EmbedError
from service.client import Connection, NearDupClient
from service.errors import CallFailed, ServiceError, SettingsError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery
    from pyspark.sql.streaming.readwriter import DataStreamWriter

OUTCOMES_ARROW = schemas.arrow(schemas.OUTCOMES)

TABLE: Final = "image_id string, content binary, uploaded_at timestamp"
FILES: Final = "path string, modificationTime timestamp, length long, content binary"
KAFKA: Final = "kafka://"
CALLS_AT_ONCE: Final = 16
FILES_PER_BATCH: Final = 1024
REFUSED: Final = {"INVALID_ARGUMENT": "invalid", "ALREADY_EXISTS": "image_id_taken"}
"""gRPC's codes for what will stay wrong, as reasons of a reject; any other ends the stream."""


class Outcome(StrEnum):
    """What became of an image."""

    NEW = "new"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """A stream: from where, to which server, and what is remembered in `checkpoint`.

    A micro-batch takes at most `files_per_batch` files of a folder, or messages of Kafka.
    `interval_s` None: what is there now, then stop. An image that comes more than `lateness` after the newest is
    registered but not counted by hour; an image id that comes again within `repeats_within` is dropped. Both are
    Spark intervals such as "1 hour".
    """

    source: str
    checkpoint: Path
    connection: Connection
    embedder: str = "vgg_copy"
    dtype: str | None = None
    min_score: float | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)
    lateness: str = "1 hour"
    repeats_within: str = "1 day"
    files_per_batch: int = FILES_PER_BATCH
    interval_s: float | None = None
    master: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterTask:
    """What a worker needs to embed images and to register them."""

    embed: EmbedTask
    connection: Connection
    min_score: float | None


OnBatch = Callable[[Mapping[str, int]], None]
"""Told the number of images by outcome after each micro-batch."""


def stream_uploads(settings: StreamSettings, *, on_batch: OnBatch = lambda _: None) -> None:
    """Run a stream until its source is empty, or for ever; raises BatchError, EmbedError or ServiceError.

    The same call goes on where one before it stopped or was killed.
    """
    check_server(settings)
    folder = settings.checkpoint
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "outcomes").mkdir(exist_ok=True)
    except OSError as error:
        raise workspace_error(folder, error) from error
    with _stream_errors(folder), spark_session(master=settings.master, log=folder / "spark.log") as spark:
        # Rows that repeat and counts by hour are kept in as many parts.
        spark.conf.set("spark.sql.shuffle.partitions", str(default_parallelism(spark)))
        spark.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
        uploads = _started(
            read_uploads(spark, settings).writeStream,
            settings,
            "uploads",
            partial(_register, spark, settings, on_batch),
        )
        if settings.interval_s is None:
            uploads.awaitTermination()
        hours = _started(read_hours(spark, settings).writeStream, settings, "hours", partial(_count, settings))
        if settings.interval_s is None:
            hours.awaitTermination()
            return
        try:
            spark.streams.awaitAnyTermination()
        finally:
            for query in (uploads, hours):
                query.stop()


def read_uploads(spark: SparkSession, settings: StreamSettings) -> DataFrame:
    """The source as a stream of `image_id`, `uploaded_at`, and `uri` or `content`; raises SourceError."""
    source = settings.source
    if source.startswith(KAFKA):
        return _once_each(_kafka(spark, settings), settings)
    path = Path(source).absolute()
    if not path.is_dir():
        raise SourceError(
            f"source {source} is no folder; give one of images, a .parquet one, or kafka://HOST:PORT/TOPIC"
        )
    reader = spark.readStream.options(recursiveFileLookup="true", maxFilesPerTrigger=settings.files_per_batch)
    if path.suffix == ".parquet":
        rows = reader.schema(TABLE).parquet(str(path))
        uploaded_at = f.coalesce("uploaded_at", f.col("_metadata.file_modification_time"))
        return _once_each(rows.select("image_id", "content", uploaded_at.alias("uploaded_at")), settings)
    # Spark lists the files and never reads them: workers do, within the limits.
    files = reader.format("binaryFile").schema(FILES).load(str(path))
    uri = f.regexp_replace("path", "^file:/+", "/")
    image_id = f.substring(uri, f.lit(len(str(path)) + 2), f.length(uri))
    return files.select(image_id.alias("image_id"), uri.alias("uri"), f.col("modificationTime").alias("uploaded_at"))


def _kafka(spark: SparkSession, settings: StreamSettings) -> DataFrame:
    import pyspark
    from pyspark.errors import AnalysisException

    source = settings.source
    servers, _, topic = source.removeprefix(KAFKA).partition("/")
    if not servers or not topic:
        raise SourceError(f"source {source} is not kafka://HOST:PORT[,HOST:PORT...]/TOPIC")
    reader = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", servers)
        .option("subscribe", topic)
        .option("startingOffsets", "earliest")
        .option("maxOffsetsPerTrigger", settings.files_per_batch)
    )
    try:
        messages = reader.load()
    except AnalysisException as error:
        raise SourceError(
            "Spark reads Kafka with a package that is not here; submit with --packages "
            f"org.apache.spark:spark-sql-kafka-0-10_2.13:{pyspark.__version__}"
        ) from error
    return messages.select(
        f.col("key").cast("string").alias("image_id"),
        f.col("value").alias("content"),
        f.col("timestamp").alias("uploaded_at"),
    )


def _once_each(rows: DataFrame, settings: StreamSettings) -> DataFrame:
    """Rows whose image id did not come before; by the time they arrive, so that none is too late to be registered."""
    arrived = rows.withColumn("arrived_at", f.current_timestamp())
    return (
        arrived.withWatermark("arrived_at", settings.repeats_within)
        .dropDuplicatesWithinWatermark(["image_id"])
        .drop("arrived_at")
    )


def read_hours(spark: SparkSession, settings: StreamSettings) -> DataFrame:
    """Counts by hour of `uploaded_at`, as a stream over the outcomes that are in place."""
    outcomes = spark.readStream.schema(schemas.OUTCOMES).option("recursiveFileLookup", "true")
    counted = outcomes.parquet(str(settings.checkpoint / "outcomes")).withWatermark("uploaded_at", settings.lateness)
    counts = [f.count_if(f.col("outcome") == outcome.value).alias(outcome.value) for outcome in Outcome]
    hours = counted.groupBy(f.window("uploaded_at", "1 hour")).agg(*counts)
    return hours.select(f.col("window.start").alias("hour"), *[outcome.value for outcome in Outcome])


def _started(
    writer: DataStreamWriter, settings: StreamSettings, name: str, commit: Callable[[DataFrame, int], None]
) -> StreamingQuery:
    checkpointed = writer.queryName(name).option("checkpointLocation", str(settings.checkpoint / name))
    if settings.interval_s is None:
        checkpointed = checkpointed.trigger(availableNow=True)
    else:
        checkpointed = checkpointed.trigger(processingTime=f"{settings.interval_s} seconds")
    return checkpointed.foreachBatch(commit).start()


def _register(
    spark: SparkSession, settings: StreamSettings, on_batch: OnBatch, batch: DataFrame, batch_id: int
) -> None:
    resources = embed_resources(spark)
    task = RegisterTask(
        embed=embed_task(
            embedder=settings.embedder,
            dtype=settings.dtype or describe_embedder(settings.embedder).default_dtype,
            resources=resources,
            root=Path(settings.source).resolve(),
            limits=settings.limits,
        ),
        connection=settings.connection,
        min_score=settings.min_score,
    )
    images = batch.repartition(default_parallelism(spark))
    with own_workers(spark, resources):
        outcomes = images.mapInArrow(partial(register_batches, task=task), schemas.OUTCOMES, profile=resources.profile)
    written = _commit_once(outcomes, settings.checkpoint, "uploads", "outcomes", batch_id)
    if written is not None:
        table = pyarrow.dataset.dataset(written, format="parquet").to_table(columns=["outcome"])
        on_batch(Counter(table["outcome"].to_pylist()))


def _count(settings: StreamSettings, batch: DataFrame, batch_id: int) -> None:
    _commit_once(batch.repartition(1), settings.checkpoint, "hours", "hourly", batch_id)


def _commit_once(rows: DataFrame, checkpoint: Path, query: str, table: str, batch_id: int) -> Path | None:
    """Write the rows of a micro-batch and rename them into place.

    None when there are none, or when that was done before it was run again.
    """
    query_id = read_json(checkpoint / query / "metadata")["id"]
    target = checkpoint / table / f"batch-{query_id[:8]}-{batch_id:09d}"
    if target.exists():
        return None
    aside = target.with_name(f".{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    write_table(rows, aside)
    if not pyarrow.dataset.dataset(aside, format="parquet").count_rows():
        shutil.rmtree(aside)
        return None
    aside.rename(target)
    return target


def register_batches(batches: Iterator[pa.RecordBatch], *, task: RegisterTask) -> Iterator[pa.RecordBatch]:
    """Rows of images to `OUTCOMES` rows, each image registered unless a near-duplicate is known; raises CallFailed."""
    use_assigned_gpu()
    embedder = load_once(task.embed.embedder, task.embed.dtype, task.embed.num_threads)
    decode = partial(decode_square, task=task.embed, size=embedder.spec.size)
    with NearDupClient(task.connection) as client, ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
        register = partial(_outcome, client=client, min_score=task.min_score)
        for batch in batches:
            image_ids, times = batch["image_id"].to_pylist(), batch["uploaded_at"].to_pylist()
            places = batch["content" if "content" in batch.schema.names else "uri"].to_pylist()
            results = embed_decoded(list(pool.map(decode, places)), embedder)
            yield pa.RecordBatch.from_pylist(list(pool.map(register, image_ids, results, times)), schema=OUTCOMES_ARROW)


def _outcome(
    image_id: str | None,
    result: NDArray[np.float32] | ImageRejected,
    uploaded_at: datetime,
    *,
    client: NearDupClient,
    min_score: float | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"image_id": image_id, "uploaded_at": uploaded_at, "outcome": Outcome.REJECTED.value}
    if isinstance(result, ImageRejected):
        return {**row, "reason": str(result.reason), "detail": result.detail}
    try:
        answer = client.lookup_or_register(image_id or "", result, k=1, min_score=min_score)
    except CallFailed as error:
        if error.code not in REFUSED:
            raise
        return {**row, "reason": REFUSED[error.code], "detail": str(error)}
    outcome = Outcome.NEW if answer.registered else Outcome.DUPLICATE
    score = answer.matches[0].score if answer.matches else None
    return {**row, "outcome": outcome.value, "canonical_id": answer.canonical_id, "score": score}


def check_server(settings: StreamSettings) -> None:
    """Raises CallFailed when there is no server, SettingsError when it serves another embedder's generation."""
    ours = describe_embedder(settings.embedder).digest
    with NearDupClient(settings.connection) as client:
        served = client.status().generation.embedder_digest
    if served != ours:
        raise SettingsError(
            f"the server at {settings.connection.address} serves embeddings of {served[:12]}, "
            f"--embedder {settings.embedder} makes those of {ours[:12]}; give the embedder of its generation"
        )


@contextmanager
def _stream_errors(folder: Path) -> Iterator[None]:
    """Spark's errors in an operator's words; a call that failed in a worker as the `CallFailed` it was."""
    try:
        with operator_errors(folder):
            yield
    except SessionError as error:
        failed = re.search(r"CallFailed: (the call to .* failed with (\w+): .*)", str(error.__cause__))
        if failed is None:
            raise
        raise CallFailed(failed[2], f"{failed[1]}; run the same command again to go on where it stopped") from error


def _print_counts(counts: Mapping[str, int]) -> None:
    sys.stdout.write(json.dumps(counts) + "\n")
    sys.stdout.flush()


def main() -> None:
    """The door for `spark-submit`: one JSON object for each micro-batch."""
    parser = argparse.ArgumentParser(description="Register new images of a folder, a table or Kafka at a server.")
    parser.add_argument("--source", required=True, help="folder of images, .parquet folder, kafka://HOST:PORT/TOPIC")
    parser.add_argument("--server", required=True, help="HOST:PORT that all executors reach")
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder that driver and executors share")
    parser.add_argument("--embedder", default="vgg_copy", help="built-in embedder, or a directory on every executor")
    parser.add_argument("--authority", type=Path, help="PEM file on every executor; encrypts")
    parser.add_argument("--token-file", type=Path, help="file that holds the token")
    parser.add_argument("--interval", type=float, help="seconds between micro-batches; without, what is there now")
    arguments = parser.parse_args()
    try:
        stream_uploads(
            StreamSettings(
                source=arguments.source,
                checkpoint=arguments.checkpoint.absolute(),
                connection=Connection(
                    address=arguments.server,
                    authority=arguments.authority,
                    token=arguments.token_file.read_text("utf-8").strip() if arguments.token_file else None,
                ),
                embedder=arguments.embedder,
                interval_s=arguments.interval,
            ),
            on_batch=_print_counts,
        )
    except (BatchError, EmbedError, ServiceError, OSError) as error:
        sys.exit(f"neardup: error: {error}")


if __name__ == "__main__":
    main()
