"""Tests of streams of uploads to a real server: every image registered once and counted once, whatever is killed."""

from __future__ import annotations

import io
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from batch_jobs.errors import SourceError
from batch_jobs.stream_uploads import StreamSettings, stream_uploads
from benchmarks.standalone import kill_tree
from embed.embedder_dir import describe_embedder
from lsh.index.publishing import promote
from service.client import Connection, NearDupClient
from service.errors import CallFailed, SettingsError
from tests.photos import synthetic_photo, write_photo_folder
from tests.service.conftest import server_process
from tests.service.corpora import add_generation

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.tensorflow, pytest.mark.timeout(900)]

TEN, ELEVEN, TWENTY = (datetime(2026, 3, 1, hour, 30, tzinfo=UTC) for hour in (10, 11, 20))


@pytest.fixture(scope="module")
def server(tiny_embedder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server process whose generation is of the tiny embedder and looks like no photo."""
    index = tmp_path_factory.mktemp("served") / "index"
    spec = describe_embedder(tiny_embedder)
    rows = np.eye(4, spec.dim, dtype=np.float32)
    ids = [f"known-{row}" for row in range(len(rows))]
    promote(index, add_generation(index, ids, rows, digest=spec.digest, min_score=spec.min_score))
    with server_process(index.parent, "--embedding-only") as process:
        yield process.address


@pytest.fixture
def settings(server: str, tiny_embedder: str, tmp_path: Path) -> StreamSettings:
    """A stream of what is in `uploads/` now, four files a micro-batch."""
    return StreamSettings(
        source=str(tmp_path / "uploads"),
        checkpoint=tmp_path / "checkpoint",
        connection=Connection(address=server),
        embedder=tiny_embedder,
        files_per_batch=4,
    )


def num_live(settings: StreamSettings) -> int:
    with NearDupClient(settings.connection) as client:
        return int(client.status().num_live)


def table(settings: StreamSettings, name: str) -> list[dict[str, Any]]:
    """The rows of `outcomes` or `hourly`, as any reader of Parquet folders sees them."""
    files = pyarrow.dataset.dataset(settings.checkpoint / name, format="parquet")
    rows: list[dict[str, Any]] = files.to_table().to_pylist()
    return rows


def start_stream(settings: StreamSettings) -> psutil.Popen:
    options = {
        "--server": settings.connection.address,
        "--checkpoint": settings.checkpoint,
        "--embedder": settings.embedder,
        "--files-per-batch": settings.files_per_batch,
        "--interval": 0,
        "--master": "local[2]",
    }
    arguments = [str(word) for option in options.items() for word in option]
    with settings.checkpoint.with_suffix(".log").open("wb") as log:
        return psutil.Popen(
            [sys.executable, "-m", "cli", "stream", settings.source, *arguments], stdout=log, stderr=log
        )


def test_a_killed_stream_registers_and_counts_every_image_once(
    settings: StreamSettings, spark: SparkSession, tmp_path: Path
) -> None:
    """`neardup stream` dies with its JVM while it registers; another goes on, repeats nothing and loses nothing."""
    folder = write_photo_folder(tmp_path / "uploads")
    synthetic_photo(7).save(folder / "copies" / "ein [7]* über 100%.png")
    (folder / "empty.jpg").unlink()  # Spark passes over empty files
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number, path in enumerate(files):
        uploaded_at = (TEN if number % 3 else ELEVEN).timestamp()
        os.utime(path, (uploaded_at, uploaded_at))
    last = folder / "last.png"
    synthetic_photo(6).save(last)
    os.utime(last, (TWENTY.timestamp(), TWENTY.timestamp()))
    before = num_live(settings)
    run = start_stream(settings)
    while run.poll() is None and num_live(settings) == before:
        time.sleep(0.02)
    assert run.poll() is None, settings.checkpoint.with_suffix(".log").read_text()
    kill_tree(run)

    stream_uploads(settings)
    stream_uploads(settings)  # there is nothing new

    outcomes = table(settings, "outcomes")
    assert sorted(row["image_id"] for row in outcomes) == sorted(
        path.relative_to(folder).as_posix() for path in (*files, last)
    )
    assert Counter(row["outcome"] for row in outcomes) == {"new": 8, "duplicate": 7, "rejected": 5}
    assert num_live(settings) - before == 8
    known = {row["image_id"] for row in outcomes if row["outcome"] == "new"}
    assert {row["canonical_id"] for row in outcomes if row["outcome"] != "rejected"} == known
    assert all(row["reason"] for row in outcomes if row["outcome"] == "rejected")

    hours = {row.pop("hour").hour: row for row in table(settings, "hourly")}
    assert set(hours) == {10, 11}, "20:00 may still get late images"
    for hour, counts in hours.items():
        uploaded = Counter(row["outcome"] for row in outcomes if row["uploaded_at"].hour == hour)
        assert {name: count for name, count in counts.items() if count} == uploaded


def test_an_image_id_that_comes_again_is_dropped(settings: StreamSettings, spark: SparkSession, tmp_path: Path) -> None:
    """Of the rows of a table with one image id the first counts; rows that can never be registered are rejects."""
    source = tmp_path / "uploads.parquet"
    source.mkdir()

    def photo(seed: int) -> bytes:
        buffer = io.BytesIO()
        synthetic_photo(seed).save(buffer, "PNG")
        return buffer.getvalue()

    def add(name: str, **images: bytes | None) -> None:
        rows = {"image_id": list(images), "content": pa.array(images.values(), pa.binary())}
        pq.write_table(pa.table(rows), source / f".{name}")
        (source / f".{name}").rename(source / name)

    changed = replace(settings, source=str(source))
    before = num_live(changed)
    add("first.parquet", twenty=photo(20), twenty_one=photo(21), copy=photo(20), nothing=None)
    stream_uploads(changed)
    add("second.parquet", twenty=photo(20), twenty_two=photo(22), **{"x" * 1025: photo(23)})
    stream_uploads(changed)
    outcomes = {row["image_id"][:10]: (row["outcome"], row["reason"]) for row in table(changed, "outcomes")}
    assert len(table(changed, "outcomes")) == 6
    assert outcomes.pop("xxxxxxxxxx") == ("rejected", "invalid")
    assert outcomes.pop("nothing") == ("rejected", "empty")
    assert outcomes["twenty_one"] == outcomes["twenty_two"] == ("new", None)
    assert sorted((outcomes["twenty"], outcomes["copy"])) == [("duplicate", None), ("new", None)]
    assert num_live(changed) - before == 3


def test_a_server_of_another_embedder_is_refused(settings: StreamSettings) -> None:
    """Embeddings of two networks must never meet; nothing is begun."""
    with pytest.raises(SettingsError, match="--embedder vgg_copy makes those of"):
        stream_uploads(replace(settings, embedder="vgg_copy"))
    assert not settings.checkpoint.exists()


def test_a_server_that_cannot_be_reached_is_named(settings: StreamSettings) -> None:
    """The address and gRPC's code, before Spark is asked for anything."""
    with pytest.raises(CallFailed, match=r"localhost:1 failed with UNAVAILABLE"):
        stream_uploads(replace(settings, connection=Connection(address="localhost:1")))


def test_a_call_that_fails_in_a_worker_is_told_as_it_was(
    settings: StreamSettings, spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator reads the server's words instead of Spark's, and what to do; the batch is done when run again."""
    write_photo_folder(tmp_path / "uploads")
    hasty = Connection(address=settings.connection.address, timeout_s=1e-6)
    monkeypatch.setattr("batch_jobs.stream_uploads.check_server", lambda _: None)  # it would fail before Spark
    with pytest.raises(CallFailed, match=r"DEADLINE_EXCEEDED.*run the same command again"):
        stream_uploads(replace(settings, connection=hasty))
    stream_uploads(settings)
    assert len(table(settings, "outcomes")) == 18


def test_kafka_without_its_package_names_it(settings: StreamSettings, spark: SparkSession) -> None:
    """The message has the coordinate for --packages, of the Spark that is installed."""
    import pyspark

    package = rf"spark-sql-kafka-0-10_2\.13:{pyspark.__version__}"
    with pytest.raises(SourceError, match=package):
        stream_uploads(replace(settings, source="kafka://localhost:9092/uploads"))


@pytest.mark.parametrize("source", ["kafka://localhost:9092", "kafka:///topic", "no/such/folder"])
def test_a_source_that_cannot_be_read_is_named(settings: StreamSettings, spark: SparkSession, source: str) -> None:
    """The message has the source and what it could be."""
    with pytest.raises(SourceError, match=source):
        stream_uploads(replace(settings, source=source))
