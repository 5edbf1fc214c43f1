"""Tests of the steps that read images, catalogue and embed, and of what a run of images hands to people."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs import schemas
from batch_jobs.errors import RejectedError, SessionError, SourceError, WorkspaceError
from batch_jobs.exports import export_run, read_rejects
from batch_jobs.pipeline import Run, run_pipeline
from batch_jobs.settings import RunSettings
from batch_jobs.workspace import Workspace
from tests.photos import write_photo_folder

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.tensorflow]


def table(run: Run, step: str, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(run.steps[step].table(name)).to_pylist()
    return rows


def by_doc(run: Run) -> list[tuple[int, bytes]]:
    return sorted((row["doc"], row["embedding"]) for row in table(run, "embed", "embeddings"))


def rows_of(workspace: Path) -> dict[str, list[str]]:
    """The rows of all tables but the blocks, in an order of their own, and the bytes of posting lists."""
    tables = [table for table in (workspace / "steps").glob("*/*") if table.is_dir() and "_blocks" not in table.name]
    return {
        f"{table.parent.name.split('-')[0]}/{table.name}": [
            file.read_bytes().hex() for file in sorted(table.glob("*.lists"))
        ]
        or sorted(map(str, pq.read_table(table).to_pylist()))
        for table in tables
    }


@pytest.fixture(scope="module", params=["local[2]", None], ids=["spark", "driver"])
def master(request: pytest.FixtureRequest) -> str | None:
    """Who opens the images: Spark, because a master is named, or the driver."""
    named: str | None = request.param
    return named


@pytest.fixture(scope="module")
def images_run(
    spark: SparkSession, master: str | None, tiny_embedder: str, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    root = tmp_path_factory.mktemp("images")
    folder = write_photo_folder(root / "photos")
    return run_pipeline(
        RunSettings(source=str(folder), workspace=root / "workspace", embedder=tiny_embedder, master=master)
    )


def test_every_file_is_embedded_copied_or_rejected(images_run: Run) -> None:
    """Nothing is lost: a file of the source has an embedding, or its original has, or a reason says why not."""
    embedded = {row["doc"] for row in table(images_run, "embed", "embeddings")}
    found = {row["image_id"] for row in table(images_run, "catalogue", "catalogue") if row["original_doc"] in embedded}
    rejected = set(read_rejects(images_run)["image_id"].to_pylist())
    assert not found & rejected
    assert found | rejected == {
        Path(file).relative_to(images_run.source.path).as_posix() for file in images_run.source.files
    }


def test_docs_are_dense_and_follow_the_ids(images_run: Run) -> None:
    """Docs are 0..n-1 in the order of the image ids."""
    rows = sorted(table(images_run, "catalogue", "catalogue"), key=lambda row: row["image_id"])
    assert [row["doc"] for row in rows] == list(range(len(rows)))


def test_exact_copies_point_to_their_first_doc(images_run: Run) -> None:
    """Files with equal bytes share an original and are embedded once."""
    by_id = {row["image_id"]: row for row in table(images_run, "catalogue", "catalogue")}
    copy, original = by_id["photo-0.png"], by_id["copies/same.png"]
    assert copy["original_doc"] == original["doc"] == original["original_doc"]
    assert copy["doc"] not in {row["doc"] for row in table(images_run, "embed", "embeddings")}


def test_rejects_say_why(images_run: Run) -> None:
    """Each file that is no whole image has its reason and the stage that found it."""
    found = {row["image_id"]: (row["stage"], row["reason"]) for row in read_rejects(images_run).to_pylist()}
    assert found == {
        "empty.jpg": ("catalogue", "empty"),
        "notes.txt": ("catalogue", "unknown_format"),
        "noise.png": ("catalogue", found["noise.png"][1]),
        "truncated.jpg": ("embed", "truncated"),
        "truncated-copy.jpg": ("embed", "truncated"),
        "wrong-extension.jpg": ("catalogue", "unknown_format"),
    }


def test_recompressed_copies_join_their_photo(images_run: Run) -> None:
    """Each picture, its recompressed copy and its exact copy make one cluster."""
    groups: dict[str, set[str]] = {}
    for row in table(images_run, "cluster", "clusters"):
        groups.setdefault(row["canonical_id"], set()).add(row["image_id"])
    assert {"photo-0.png", "copies/photo-0.jpg", "copies/same.png"} in groups.values()


def test_a_table_of_contents_gives_the_same_embeddings(images_run: Run, tmp_path: Path) -> None:
    """Images from a content column, in any order and in several row groups, and from files are the same images."""
    folder = images_run.source.path
    contents = pa.table(
        {
            "image_id": [Path(file).relative_to(folder).as_posix() for file in images_run.source.files],
            "content": [Path(file).read_bytes() for file in images_run.source.files],
        }
    )
    backwards = contents.take(len(contents) - 1 - np.arange(len(contents)))
    pq.write_table(backwards, tmp_path / "images.parquet", row_group_size=4)
    run = run_pipeline(
        replace(images_run.settings, source=str(tmp_path / "images.parquet"), workspace=tmp_path / "workspace")
    )
    assert by_doc(run) == by_doc(images_run)
    assert table(run, "cluster", "clusters") == table(images_run, "cluster", "clusters")


def test_a_table_of_uris_stays_below_its_root(
    images_run: Run, master: str | None, tiny_embedder: str, tmp_path: Path
) -> None:
    """Relative uris are read from the root, absolute ones outside of it are rejected."""
    folder = images_run.source.path
    uris = pa.table({"image_id": ["in", "also", "out"], "uri": ["photo-1.png", "photo-2.png", "/etc/hostname"]})
    pq.write_table(uris, tmp_path / "uris.parquet")
    run = run_pipeline(
        RunSettings(
            source=str(tmp_path / "uris.parquet"),
            workspace=tmp_path / "workspace",
            embedder=tiny_embedder,
            uri_root=folder,
            master=master,
        )
    )
    assert [row["image_id"] for row in table(run, "catalogue", "catalogue")] == ["also", "in"]
    (reject,) = read_rejects(run).to_pylist()
    assert (reject["image_id"], reject["reason"]) == ("out", "unreadable")


@pytest.mark.parametrize(
    ("image_ids", "message"),
    [(["a", "b", "a"], "more than once, such as a;"), (["a", None, "b"], "without an image_id")],
)
def test_ids_of_a_table_are_there_and_distinct(
    images_run: Run, tmp_path: Path, image_ids: list[str | None], message: str
) -> None:
    """Two rows with one id, or one without, are refused before anything is embedded."""
    pq.write_table(pa.table({"image_id": image_ids, "uri": ["1", "2", "3"]}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=message):
        run_pipeline(replace(images_run.settings, source=str(tmp_path / "t.parquet"), workspace=tmp_path / "w"))


@pytest.mark.parametrize("column", ["image_id", "content"])
def test_a_damaged_table_is_named(photo_folder: Path, tiny_embedder: str, tmp_path: Path, column: str) -> None:
    """A page that cannot be read is told with the table that it is in, whichever column it belongs to."""
    path = tmp_path / "images.parquet"
    contents = {"image_id": ["x"], "content": [(photo_folder / "photo-1.png").read_bytes()]}
    pq.write_table(pa.table(contents), path, use_dictionary=False)
    start = pq.read_metadata(path).row_group(0).column(list(contents).index(column)).data_page_offset
    whole = path.read_bytes()
    path.write_bytes(whole[:start] + b"\xff" * 12 + whole[start + 12 :])
    with pytest.raises(SourceError, match=r"images\.parquet cannot be read any further .*write that table again"):
        run_pipeline(RunSettings(source=str(path), workspace=tmp_path / "w", embedder=tiny_embedder))


def test_the_driver_writes_the_rows_that_spark_writes(tiny_embedder: str, tmp_path: Path) -> None:
    """A thorough run of files has the same rows in all tables, embeddings to the bit, whoever opens the images."""
    folder = write_photo_folder(tmp_path / "photos")

    def rows_made(workspace: Path, *arguments: str) -> dict[str, list[str]]:
        # In a process of its own, as numpy rounds by the instructions that it may use, and this one's has been loaded.
        fixed = ["dedup", str(folder), "--workspace", str(workspace), "--embedder", tiny_embedder, "--thorough"]
        subprocess.run([sys.executable, "-m", "cli", *fixed, *arguments], check=True)
        return rows_of(workspace)

    by_driver, by_spark = rows_made(tmp_path / "driver"), rows_made(tmp_path / "spark", "--master", "local[2]")
    assert by_driver == by_spark
    assert {"catalogue/rejects", "embed/rejects", "views/views", "compare/view_edges"} <= by_driver.keys()


def test_images_of_files_need_no_spark(
    photo_folder: Path, tiny_embedder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is deduplicated on a machine without Java, unless someone names a master."""
    monkeypatch.setattr("batch_jobs.session.spark_session", _no_java)

    settings = RunSettings(source=str(photo_folder), workspace=tmp_path / "w", embedder=tiny_embedder)
    assert run_pipeline(settings).num_catalogued == 15

    with pytest.raises(SessionError):
        run_pipeline(replace(settings, master="local[2]", workspace=tmp_path / "other"))


def _no_java(**_: Any) -> Any:
    raise SessionError("no Java found")


def test_folders_may_have_any_name(spark: SparkSession, tiny_embedder: str, tmp_path: Path) -> None:
    """What a shell or Spark would take for a pattern is a name like any other."""
    root = tmp_path / r"a [1-2] {b,c} * ? \d"
    folder = write_photo_folder(root / "photos")
    contents = {"image_id": ["x"], "content": [(folder / "photo-1.png").read_bytes()]}
    pq.write_table(pa.table(contents), root / "table.parquet")

    for source in (folder, root / "table.parquet"):
        workspace = root / f"workspace of {source.stem}"
        settings = RunSettings(source=str(source), workspace=workspace, embedder=tiny_embedder, master="local[2]")
        assert run_pipeline(settings).num_images == run_pipeline(settings).source.num_images


def test_too_many_rejects_fail_the_run(images_run: Run) -> None:
    """The run stops above max_reject_ratio and says where the reasons are."""
    with pytest.raises(RejectedError, match=r"max_reject_ratio=0\.1"):
        run_pipeline(
            RunSettings(
                source=str(images_run.source.path),
                workspace=images_run.settings.workspace,
                embedder=images_run.settings.embedder,
                max_reject_ratio=0.1,
            )
        )


def test_another_embedder_is_refused(images_run: Run, tmp_path: Path) -> None:
    """A workspace holds the embeddings of one embedder."""
    from embed.embedder_dir import create_embedder_dir

    create_embedder_dir(tmp_path / "other", architecture="vgg_copy", weights="seeded", size=32, seed=7)
    with pytest.raises(WorkspaceError, match="embedder: "):
        run_pipeline(
            RunSettings(
                source=str(images_run.source.path),
                workspace=images_run.settings.workspace,
                embedder=str(tmp_path / "other"),
            )
        )


def test_exports_hold_the_table(images_run: Run) -> None:
    """The CSV and the JSON lines have one line per row of the clusters table."""
    import csv
    import json

    with Workspace(images_run.settings.workspace) as workspace:
        outputs = export_run(images_run, workspace)
    rows = table(images_run, "cluster", "clusters")
    with Path(outputs["clusters_csv"]).open(newline="", encoding="utf-8") as file:
        from_csv = list(csv.DictReader(file))
    from_json = [json.loads(line) for line in Path(outputs["clusters_jsonl"]).read_text("utf-8").splitlines()]
    assert [row["image_id"] for row in from_csv] == [row["image_id"] for row in rows]
    assert [list(row) for row in from_json] == [schemas.columns(schemas.CLUSTERS)] * len(rows)
    assert [row["score"] for row in from_json] == pytest.approx([row["score"] for row in rows], abs=1e-6)
