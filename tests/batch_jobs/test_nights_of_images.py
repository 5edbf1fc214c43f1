"""Rules of nights over image files and tables: what is read again, and what exact copies share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs.assignments import read_clusters
from batch_jobs.errors import WorkspaceError
from batch_jobs.nightly import NightOptions, NightResults, run_nightly
from batch_jobs.nights import current_night, known_of, live_images, read_columns
from batch_jobs.settings import RunSettings
from tests.photos import synthetic_photo, write_photo_folder

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.tensorflow]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photo_folder(tmp_path_factory.mktemp("photos") / "photos")


def night(
    source: Path, workspace: Path, embedder: str, options: NightOptions | None = None, *, master: str | None = None
) -> NightResults:
    settings = RunSettings(source=str(source), workspace=workspace, embedder=embedder, num_partitions=1, master=master)
    return run_nightly(settings, options or NightOptions())


def counts(results: NightResults) -> tuple[int, int, int, int, int]:
    found = results.night.counts
    return found.known, found.new, found.changed, found.removed, found.rewritten


def contents_of(workspace: Path) -> dict[str, tuple[int, int]]:
    """Doc and content of each live image."""
    images = live_images(known_of(workspace, current_night(workspace)), ["image_id", "doc", "original_doc"])
    return {row["image_id"]: (row["doc"], row["original_doc"]) for row in images.to_pylist()}


def embedded_docs(workspace: Path) -> list[int]:
    known = known_of(workspace, current_night(workspace))
    docs: list[int] = sorted(read_columns(known.embeddings, ["doc"])["doc"].to_pylist())
    return docs


def groups(workspace: Path) -> set[frozenset[str]]:
    night = current_night(workspace)
    assert night is not None
    found: dict[str, set[str]] = {}
    for row in read_clusters(known_of(workspace, night)).to_pylist():
        found.setdefault(row["canonical_id"], set()).add(row["image_id"])
    return {frozenset(members) for members in found.values()}


@pytest.mark.parametrize("master", ["local[2]", None], ids=["spark", "driver"])
def test_nights_over_a_folder(
    spark: SparkSession, tiny_embedder: str, photos: Path, tmp_path: Path, master: str | None
) -> None:
    """Files that come, go, change, move, are rewritten or cannot be read: each has its effect and no other.

    One test, because each night rests on the one before.
    """
    folder, workspace = shutil.copytree(photos, tmp_path / "photos"), tmp_path / "workspace"

    def one_night(options: NightOptions | None = None) -> NightResults:
        return night(folder, workspace, tiny_embedder, options, master=master)

    first = one_night()
    assert counts(first) == (0, 15, 0, 0, 0)
    before, embedded = contents_of(workspace), embedded_docs(workspace)
    assert before["photo-0.png"][1] == before["copies/same.png"][0]

    # The original of two exact copies goes, one photo changes, one is written again, one moves, one is new.
    (folder / "copies" / "same.png").unlink()
    synthetic_photo(50).save(folder / "photo-1.png")
    os.utime(folder / "photo-2.png", (1, 1))
    (folder / "photo-3.png").rename(folder / "moved.png")
    synthetic_photo(51).save(folder / "new.png")
    second = one_night()
    after = contents_of(workspace)
    assert counts(second) == (12, 2, 1, 2, 1)
    assert second.rejects_by_reason == {"unknown_format": 2, "empty": 1, **NOISE}
    assert after["photo-0.png"] == before["photo-0.png"]
    assert after["photo-2.png"] == before["photo-2.png"]
    assert after["moved.png"][1] == before["photo-3.png"][1]
    assert set(embedded_docs(workspace)) - set(embedded) == {after["photo-1.png"][0], after["new.png"][0]}
    assert frozenset({"photo-0.png", "copies/photo-0.jpg"}) in groups(workspace)
    assert frozenset({"moved.png", "copies/photo-3.jpg"}) in groups(workspace)

    # What was written again is known by its new state: nothing has changed.
    third = one_night()
    assert not third.is_new

    # A known image that cannot be read any more is removed; a reject that can be read is new.
    (folder / "photo-4.png").write_text("broken")
    synthetic_photo(52).save(folder / "empty.jpg", format="png")
    fourth = one_night()
    assert counts(fourth) == (14, 1, 0, 1, 0)
    assert "photo-4.png" not in contents_of(workspace)
    assert "empty.jpg" in contents_of(workspace)

    # A photo is redone with its exact copies, and both share the new content.
    shutil.copy(folder / "photo-5.png", folder / "same-5.png")
    one_night()
    assert contents_of(workspace)["same-5.png"][1] == after["photo-5.png"][1]
    redone = one_night(NightOptions(only=("same-5.png",)))
    assert redone.night.counts.changed == 2
    again = contents_of(workspace)
    assert again["photo-5.png"][1] == again["same-5.png"][1] > max(after.values())[0]
    assert frozenset({"photo-5.png", "same-5.png", "copies/photo-5.jpg"}) in groups(workspace)


NOISE = {"corrupt": 1}


@pytest.mark.parametrize("master", ["local[2]", None], ids=["spark", "driver"])
def test_a_table_that_grows_by_files_is_read_by_its_new_files(
    spark: SparkSession, tiny_embedder: str, photos: Path, tmp_path: Path, master: str | None
) -> None:
    """The images of a file that stays are known unread; those of a rewritten one are told by their bytes."""
    table, workspace = tmp_path / "table.parquet", tmp_path / "workspace"
    table.mkdir()

    def write(name: str, *files: str) -> None:
        contents = [(photos / file).read_bytes() for file in files]
        pq.write_table(pa.table({"image_id": list(files), "content": contents}), table / name)

    write("a.parquet", "photo-0.png", "photo-1.png")
    night(table, workspace, tiny_embedder, master=master)
    write("b.parquet", "photo-2.png", "copies/photo-0.jpg")
    second = night(table, workspace, tiny_embedder, master=master)
    assert counts(second) == (2, 2, 0, 0, 0)
    assert groups(workspace) == {frozenset({"photo-0.png", "copies/photo-0.jpg"})}
    write("a.parquet", "photo-0.png", "photo-3.png")
    os.utime(table / "a.parquet", (5, 5))
    third = night(table, workspace, tiny_embedder, master=master)
    assert counts(third) == (3, 1, 0, 1, 1)
    assert not night(table, workspace, tiny_embedder, master=master).is_new


def test_a_table_of_uris_is_told_by_its_files(
    spark: SparkSession, tiny_embedder: str, photos: Path, tmp_path: Path
) -> None:
    """The table stays as it is: the files that it names decide what has changed."""
    folder, workspace = shutil.copytree(photos, tmp_path / "photos"), tmp_path / "workspace"
    uris = pa.table({"image_id": ["x", "y"], "uri": ["photo-1.png", "photo-2.png"]})
    pq.write_table(uris, folder / "uris.parquet")
    night(folder / "uris.parquet", workspace, tiny_embedder)
    shutil.copy(folder / "photo-3.png", folder / "photo-1.png")
    os.utime(folder / "photo-1.png", (5, 5))
    os.utime(folder / "uris.parquet", (5, 5))
    assert counts(night(folder / "uris.parquet", workspace, tiny_embedder)) == (1, 0, 1, 0, 0)


def test_another_embedder_is_refused(spark: SparkSession, tiny_embedder: str, photos: Path, tmp_path: Path) -> None:
    """Nights hold the embeddings of one embedder; the message says what to do."""
    from embed.embedder_dir import create_embedder_dir

    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(photos / "photo-0.png", folder)
    night(folder, tmp_path / "workspace", tiny_embedder)
    create_embedder_dir(tmp_path / "other", architecture="vgg_copy", weights="seeded", size=32, seed=7)
    with pytest.raises(WorkspaceError, match=r"embedder: .*another --workspace"):
        night(folder, tmp_path / "workspace", str(tmp_path / "other"))
    found = current_night(tmp_path / "workspace")
    assert found is not None
    assert found.number == 1
