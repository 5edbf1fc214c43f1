"""Rules of the steps views and compare: copies that only a view of an image finds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from batch_jobs import schemas
from batch_jobs.build_index import build_index, index_folder
from batch_jobs.compare_views import best_views
from batch_jobs.decisions import Decisions
from batch_jobs.embed_images import EmbedTask
from batch_jobs.embed_views import FIRST_VIEW, view_batches, views_of
from batch_jobs.errors import BatchError, SourceError, WorkspaceError
from batch_jobs.explanation import explain_pair
from batch_jobs.nightly import NightOptions, index_night, run_nightly
from batch_jobs.nights import known_of, live_images, read_columns
from batch_jobs.pipeline import Run, run_pipeline
from batch_jobs.run_records import find_record
from batch_jobs.run_tables import RunTables, whole_of
from batch_jobs.settings import RunSettings
from batch_jobs.workspace import Workspace
from embed.decoding import ImageLimits
from embed.embedder_dir import describe_embedder
from embed.pair_scoring import load_pair_scorer
from embed.views import NUM_VIEWS, VIEW_MARGINS, lifted
from lsh.codes import pair_cosines, quantize, unit_rows
from lsh.index.generation import open_generation
from lsh.index.lookup import HashTables
from lsh.index.publishing import generation_folder
from tests.photos import synthetic_photo

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
PARTS = {"half": 0.7, "quarter": 0.5}
Match = tuple[int, int, float]
"""A left doc, a right doc, and a score, which is the similarity as well."""


def edges(rows: list[Match]) -> pa.Table:
    """A table of matches."""
    lefts, rights, scores = (np.array(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    columns = [lefts, rights, scores, scores, np.ones(len(rows))]
    schema = schemas.arrow(schemas.EDGES)
    return pa.table(
        [pa.array(column).cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def view(doc: int, number: int) -> int:
    return FIRST_VIEW + NUM_VIEWS * doc + number


def folded(of_views: list[Match], matched: list[Match]) -> list[Match]:
    found = best_views(edges(of_views), edges(matched))
    return [(row["left_doc"], row["right_doc"], round(row["score"], 3)) for row in found.to_pylist()]


def test_a_pair_has_the_score_of_its_best_view() -> None:
    """Whichever of the two has the view, and however many match, a pair is one edge, left below right."""
    assert folded([(2, view(5, 0), 0.8), (5, view(2, 3), 0.9), (2, view(5, 12), 0.85)], []) == [(2, 5, 0.9)]


def test_an_image_does_not_match_its_own_views() -> None:
    """A flat picture looks like its parts, and is no copy of itself."""
    assert folded([(3, view(3, 1), 0.99), (3, view(4, 1), 0.8)], []) == [(3, 4, 0.8)]


def test_pairs_that_match_as_wholes_stay_as_they_are() -> None:
    """What `edges` has already is not made again."""
    assert folded([(0, view(1, 0), 0.99), (0, view(2, 0), 0.9)], [(0, 1, 0.81)]) == [(0, 2, 0.9)]


def test_without_matches_there_are_no_edges() -> None:
    """An empty table has the schema of all others."""
    assert best_views(edges([]), edges([])).schema == schemas.arrow(schemas.EDGES)


def test_views_need_images_and_codes(tmp_path: Path) -> None:
    """Embeddings given have no parts, and a plan without codes could not compare them."""
    np.savez(
        tmp_path / "given.npz",
        image_ids=np.array(["a", "b"]),
        embeddings=np.eye(2, 256, dtype=np.float32),
        digest=describe_embedder().digest,
    )
    settings = RunSettings(source=str(tmp_path / "given.npz"), workspace=tmp_path / "workspace", thorough=True)
    with pytest.raises(SourceError, match="leave out --thorough"):
        run_pipeline(settings)
    with pytest.raises(BatchError, match="this plan keeps none"):
        replace(settings, verified=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of an installed package, and parts of them from any place."""
    folder = tmp_path_factory.mktemp("thorough") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for title in PHOTOS:
        photo = Image.fromarray(getattr(skimage.data, title)())
        photo.save(folder / f"{title}.png")
        for name, share in PARTS.items():
            width, height = round(photo.width * share), round(photo.height * share)
            left, top = int(rng.integers(0, photo.width - width)), int(rng.integers(0, photo.height - height))
            photo.crop((left, top, left + width, top + height)).save(folder / f"{title}-{name}.jpg", quality=90)
        photo.convert("L").save(folder / f"{title}-gray.jpg", quality=90)
    return folder


@pytest.fixture(scope="module")
def settings(photos: Path) -> RunSettings:
    return RunSettings(source=str(photos), workspace=photos.parent / "workspace", thorough=True, num_partitions=2)


@pytest.fixture(scope="module")
def thorough_run(spark: SparkSession, settings: RunSettings) -> Run:
    """A run with the shipped weights; the photos are matched by their parts alone."""
    return run_pipeline(settings)


def rows(run: Run, step: str, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(run.steps[step].table(name)).to_pylist()
    return found


def vectors(run: Run, step: str, name: str) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """The docs of a table of embeddings, ascending, and their codes."""
    table = pq.read_table(run.steps[step].table(name)).sort_by("doc")
    embeddings = np.stack([np.frombuffer(row, "<f4") for row in table["embedding"].to_pylist()])
    return table["doc"].to_numpy(), quantize(embeddings)


@pytest.mark.spark
@pytest.mark.tensorflow
def test_a_part_and_a_gray_copy_join_the_cluster_of_their_photo(thorough_run: Run) -> None:
    """Halves and quarters of a photo's area, and the photo without colors, are where the photo is."""
    canonical = {row["image_id"]: row["canonical_id"] for row in rows(thorough_run, "cluster", "clusters")}
    parts = {f"{title}-{name}.jpg": f"{title}.png" for title in PHOTOS for name in (*PARTS, "gray")}
    assert {part: canonical.get(part) for part in parts} == {part: canonical[photo] for part, photo in parts.items()}
    assert len({canonical[photo] for photo in parts.values()}) == len(PHOTOS)


@pytest.mark.spark
@pytest.mark.tensorflow
def test_every_image_has_its_views(thorough_run: Run) -> None:
    """`NUM_VIEWS` an image, in the order of docs."""
    docs, _ = vectors(thorough_run, "embed", "embeddings")
    numbers, _ = vectors(thorough_run, "views", "views")
    assert numbers.tolist() == views_of(docs).tolist()


@pytest.mark.spark
@pytest.mark.tensorflow
def test_view_edges_are_the_pairs_that_brute_force_finds(thorough_run: Run) -> None:
    """Comparing every image with every view of every other one finds the same pairs, with the same scores."""
    docs, codes = vectors(thorough_run, "embed", "embeddings")
    _, views = vectors(thorough_run, "views", "views")
    scorer = load_pair_scorer(describe_embedder())
    matched = {(row["left_doc"], row["right_doc"]) for row in rows(thorough_run, "select", "edges")}
    no_rows = np.empty((0, 0), np.float32)
    expected = {}
    for left in range(len(docs)):
        for right in range(left + 1, len(docs)):
            similarities = []
            for whole, cut in ((left, right), (right, left)):
                of_cut = np.arange(NUM_VIEWS * cut, NUM_VIEWS * (cut + 1))
                cosines = pair_cosines(codes, views, np.full(NUM_VIEWS, whole), of_cut)
                similarities.append((cosines - np.array(VIEW_MARGINS, np.float32)).max())
            whole_cosine = pair_cosines(codes, codes, np.array([left]), np.array([right]))
            best = lifted(np.array([max(similarities)], np.float32), whole_cosine)
            score = scorer.scores(best, no_rows, no_rows, np.zeros(1, int), np.zeros(1, int))[0]
            pair = (int(docs[left]), int(docs[right]))
            if score >= thorough_run.model.min_score and pair not in matched:
                expected[pair] = (float(best[0]), float(score))
    found = {
        (row["left_doc"], row["right_doc"]): (row["similarity"], row["score"])
        for row in rows(thorough_run, "compare", "view_edges")
    }
    assert len(expected) >= len(PHOTOS)
    assert found == expected


@pytest.mark.spark
@pytest.mark.tensorflow
def test_matches_by_views_do_not_depend_on_partitions(thorough_run: Run, settings: RunSettings, tmp_path: Path) -> None:
    """Seven partitions find what two found."""
    again = run_pipeline(replace(settings, workspace=tmp_path, num_partitions=7))
    assert rows(again, "compare", "view_edges") == rows(thorough_run, "compare", "view_edges")
    assert rows(again, "cluster", "clusters") == rows(thorough_run, "cluster", "clusters")


@pytest.mark.spark
@pytest.mark.tensorflow
def test_views_are_added_to_a_finished_run(thorough_run: Run, settings: RunSettings, tmp_path: Path) -> None:
    """A workspace without views gives its embeddings to a run with them, which is another run and finds the same."""
    plain = run_pipeline(replace(settings, workspace=tmp_path, thorough=False))
    added = run_pipeline(replace(settings, workspace=tmp_path))
    assert plain.run_id != added.run_id
    assert {step for step, output in added.steps.items() if output.reused} == {"catalogue", "embed"}
    assert rows(added, "cluster", "clusters") == rows(thorough_run, "cluster", "clusters")
    assert len(rows(plain, "cluster", "clusters")) < len(rows(added, "cluster", "clusters"))


@pytest.mark.spark
@pytest.mark.tensorflow
def test_a_match_by_a_view_is_explained(thorough_run: Run, settings: RunSettings) -> None:
    """The wholes are not alike, and the explanation has the similarity that made them a match."""
    tables = RunTables(settings.workspace, find_record(settings.workspace, thorough_run.run_id))
    found = explain_pair(tables, "coffee.png", "coffee-quarter.jpg", Decisions())
    assert found.verdict == "one cluster: they match, and one of them is its canonical"
    assert found.is_match
    assert found.score is not None
    assert found.view_similarity is not None
    assert found.score < thorough_run.model.min_score
    assert found.similarity is not None
    assert found.view_similarity > found.similarity


def found_by(
    workspace: Path, image_ids: list[str], *, min_similarity: float, with_views: bool = True
) -> dict[str, dict[str, tuple[float, bool]]]:
    """What lookups of known images find in an index of a workspace: similarity, and whether by a view."""
    with Workspace(workspace) as opened:
        manifest = build_index(opened, with_views=with_views)
    generation = open_generation(generation_folder(index_folder(workspace), manifest.generation_id))
    docs = generation.docs_of(image_ids)
    found = HashTables(generation).lookup(unit_rows(generation.codes(docs)), k=50, min_similarity=min_similarity)
    return {
        image_id: {
            generation.image_ids(row[place : place + 1])[0]: (float(similarity), bool(by_view))
            for place, (similarity, by_view) in enumerate(zip(similarities, are_by_view, strict=True))
            if row[place] >= 0
        }
        for image_id, row, similarities, are_by_view in zip(
            image_ids, found.docs, found.similarities, found.are_by_view, strict=True
        )
    }


def all_matches(workspace: Path, run_id: str) -> set[tuple[frozenset[str], float]]:
    """Pairs of images that are there and their scores, by whole images and by views."""
    whole = whole_of(workspace, find_record(workspace, run_id))
    name_of = {row["doc"]: row["image_id"] for row in live_images(whole, ["doc", "image_id"]).to_pylist()}
    return {
        (frozenset({name_of[row["left_doc"]], name_of[row["right_doc"]]}), row["score"])
        for row in read_columns(whole.edges, ["left_doc", "right_doc", "score"]).to_pylist()
        if {row["left_doc"], row["right_doc"]} <= name_of.keys()
    }


@pytest.mark.spark
@pytest.mark.tensorflow
def test_nights_with_views_find_the_matches_of_one_run(
    thorough_run: Run, settings: RunSettings, tmp_path: Path
) -> None:
    """A new part meets known photos, a new photo known parts; what is gone or changed meets nobody."""
    source = tmp_path / "photos"
    source.mkdir()
    photos = Path(settings.source)
    known = ["astronaut.png", "chelsea.png", "coffee-quarter.jpg", "coffee-gray.jpg", "rocket-half.jpg", "rocket.png"]
    for name in known:
        shutil.copy(photos / name, source)
    for part, name in (("coffee-half.jpg", "gone.jpg"), ("coffee.png", "chelsea-gray.jpg")):
        Image.open(photos / part).save(source / name, quality=60)
    nightly = replace(settings, source=str(source), workspace=tmp_path / "workspace")
    first = run_nightly(nightly, NightOptions())
    (source / "gone.jpg").unlink()
    shutil.copytree(photos, source, dirs_exist_ok=True)

    second = run_nightly(nightly, NightOptions())

    new_docs = pq.read_table(second.outputs["embeddings"])["doc"].to_numpy()
    viewed = read_columns(known_of(nightly.workspace, second.night).view_codes[-1:], ["doc"])["doc"].to_numpy()
    assert sorted(viewed) == sorted(views_of(new_docs))
    assert first.as_json()["view_matches"] > 0
    assert second.as_json()["view_matches"] > 0
    assert all_matches(nightly.workspace, second.night.run_id) == all_matches(settings.workspace, thorough_run.run_id)
    image_ids = [path.name for path in photos.iterdir()]
    of_night, of_run = (found_by(one.workspace, image_ids, min_similarity=0.85) for one in (nightly, settings))
    assert of_night == of_run
    with Workspace(nightly.workspace) as opened:
        indexed = [index_night(opened, promotes=False, with_views=with_views) for with_views in (True, False)]
    folders = [generation_folder(index_folder(nightly.workspace), one) for one in indexed]
    assert [open_generation(folder).manifest.num_views > 0 for folder in folders] == [True, False]
    with pytest.raises(WorkspaceError, match=r"other settings \(thorough: \w+ there, None now\)"):
        run_nightly(replace(nightly, thorough=False), NightOptions())


@pytest.mark.spark
@pytest.mark.tensorflow
def test_the_index_of_a_thorough_run_finds_parts_by_views(thorough_run: Run, settings: RunSettings) -> None:
    """Each match that a view of the known image made in the run is found by a lookup; without views none is."""
    docs, codes = vectors(thorough_run, "embed", "embeddings")
    _, views = vectors(thorough_run, "views", "views")
    names = {row["doc"]: row["image_id"] for row in rows(thorough_run, "catalogue", "catalogue")}
    image_ids = [names[doc] for doc in docs.tolist()]
    lowest = thorough_run.model.scorer.lowest_similarity(thorough_run.model.min_score)
    found = found_by(settings.workspace, image_ids, min_similarity=lowest)
    whole = found_by(settings.workspace, image_ids, min_similarity=lowest, with_views=False)

    num_by_view = 0
    for query, image_id in enumerate(image_ids):
        for known, known_id in enumerate(image_ids):
            if query == known:
                continue
            row = np.zeros(NUM_VIEWS, np.int64)
            of_views = pair_cosines(
                codes[[query]], views[known * NUM_VIEWS : (known + 1) * NUM_VIEWS], row, np.arange(NUM_VIEWS)
            ) - np.array(VIEW_MARGINS, np.float32)
            whole_similarity = pair_cosines(codes[[query]], codes[[known]], row[:1], row[:1])[0]
            by_view = lifted(of_views.max(keepdims=True), whole_similarity)[0]
            is_by_view = bool(by_view > whole_similarity)
            similarity = max(float(by_view), float(whole_similarity))
            is_match = similarity >= np.float32(lowest)
            assert found[image_id].get(known_id) == ((similarity, is_by_view) if is_match else None)
            assert (known_id in whole[image_id]) == (whole_similarity >= np.float32(lowest))
            num_by_view += int(is_match and is_by_view)
    assert num_by_view > 10


@pytest.mark.spark
@pytest.mark.tensorflow
def test_views_that_an_earlier_version_compared_are_not_indexed(
    thorough_run: Run, settings: RunSettings, tmp_path: Path
) -> None:
    """How they count is not known, so nothing is built, and the operator is told what to do."""
    workspace = shutil.copytree(settings.workspace, tmp_path / "workspace")
    (commit,) = workspace.rglob(f"compare-{thorough_run.steps['compare'].key}/commit.json")
    value = json.loads(commit.read_text())
    value["inputs"]["margins"] = value["inputs"].pop("view_similarity")["margins"]
    commit.write_text(json.dumps(value))
    with Workspace(workspace) as opened, pytest.raises(WorkspaceError, match="compared by an earlier version"):
        build_index(opened)


@pytest.mark.tensorflow
def test_an_image_that_cannot_be_read_any_more_has_no_views(tiny_embedder: str, tmp_path: Path) -> None:
    """A file that was removed since it was embedded is left out, and the others keep their numbers."""
    for doc in (0, 2):
        synthetic_photo(doc).save(tmp_path / f"{doc}.png")
    task = EmbedTask(embedder=tiny_embedder, dtype="float32", num_threads=1, root=str(tmp_path), limits=ImageLimits())
    batch = pa.RecordBatch.from_pydict({"doc": [0, 1, 2], "uri": [str(tmp_path / f"{doc}.png") for doc in range(3)]})
    gone = batch.slice(1, 1)

    (made,) = view_batches(iter([batch]), task=task)
    (none,) = view_batches(iter([gone]), task=task)

    assert made["doc"].to_pylist() == [view(doc, place) for doc in (0, 2) for place in range(NUM_VIEWS)]
    assert none.num_rows == 0
