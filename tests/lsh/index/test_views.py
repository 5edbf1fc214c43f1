"""Rules of views in an index: a view stands for its image, less its margin, and an image is found once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lsh.codes import pair_cosines, quantize
from lsh.errors import GenerationError, ParameterError
from lsh.index import layout
from lsh.index.generation import Generation, open_generation, verify_generation
from lsh.index.lookup import HashTables
from lsh.index.manifest import FORMAT_VERSION, MANIFEST_NAME, FileEntry, Manifest
from lsh.index.queries import Found
from lsh.index.view_similarity import ViewSimilarity
from lsh.index.views import Views
from lsh.index.writing import GenerationSpec
from lsh.terms import TermParams
from tests.lsh.index.conftest import OWNERS, VIEW_SIMILARITY, assert_same_found, views_of, write_generation

if TYPE_CHECKING:
    from tests.lsh.index.conftest import Corpus

NUM_VIEWS = OWNERS.size * len(VIEW_SIMILARITY.margins)


@pytest.fixture(scope="module")
def generation(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Generation:
    return open_generation(write_generation(tmp_path_factory.mktemp("views"), corpus, with_views=True))


@pytest.fixture(scope="module")
def tables(generation: Generation) -> HashTables:
    return HashTables(generation)


@given(
    seed=st.integers(0, 2**32 - 1),
    noise=st.floats(0.0, 1.0),
    k=st.sampled_from([1, 2, 10, 100]),
    min_similarity=st.sampled_from([-1.0, 0.3, 0.6, 0.9]),
    excludes=st.booleans(),
    whole_only=st.booleans(),
)
def test_lookups_equal_their_slow_twin(
    tables: HashTables,
    corpus: Corpus,
    *,
    seed: int,
    noise: float,
    k: int,
    min_similarity: float,
    excludes: bool,
    whole_only: bool,
) -> None:
    """Images, by themselves or by a view, are those of plain Python lists."""
    rng = np.random.default_rng(seed)
    views = views_of(corpus).reshape(NUM_VIEWS, -1)
    rows = np.stack([corpus.embeddings[rng.integers(600)], *views[rng.integers(NUM_VIEWS, size=2)]])
    queries = (rows + noise * rng.standard_normal(rows.shape)).astype(np.float32)
    excluded = rng.random(len(corpus.embeddings)) < 0.3 if excludes else None

    found, expected = (
        look_up(queries, k=k, min_similarity=min_similarity, excluded=excluded, whole_only=whole_only)
        for look_up in (tables.lookup, tables.brute_force_lookup)
    )

    assert_same_found(found, expected)
    assert not (whole_only and found.are_by_view.any())


@given(
    rows=st.lists(st.integers(0, 4 + 3 * 2 - 1), unique=True, max_size=10),
    similarities=st.lists(st.sampled_from([0.5, 0.52, 0.54, 0.6]), min_size=10, max_size=10),
    k=st.integers(1, 5),
    lift=st.sampled_from([0.0, 0.1, 1.0]),
)
@example(rows=[0, 1, 2, 7, 3, 6], similarities=[0.52, 0.52, 0.52, 0.52, 0.5, 0.5], k=1, lift=1.0)
def test_ties_fall_as_in_the_slow_twin(*, rows: list[int], similarities: list[float], k: int, lift: float) -> None:
    """On a tie the lower doc comes first, an image before its views, and of these the nearer one."""
    similarity = ViewSimilarity(margins=(0.0, 0.02), lift=lift, max_lift=0.03)
    codes = quantize(np.array([[1.0, 0.1], [0.5, 1.0], [1.0, 1.0], [0.6, 1.0]], np.float32))
    views = Views(
        manifest_of(num_docs=4, num_owners=3, view_similarity=similarity),
        owners=lambda places: np.array([3, 1, 0])[places],
        codes=lambda docs: (codes, docs),
    )
    queries = np.array([[1.0, 0.0]], np.float32)
    num = len(rows)
    found = Found(
        np.array([[*rows, -1]]),
        np.array([[*sorted(similarities[:num], reverse=True), 0.0]], np.float32),
        np.arange(num + 1, dtype=np.int32)[None],
        np.array([num]),
        np.zeros((1, num + 1), np.bool_),
    )
    excluded = np.array([False, False, True, False])
    assert_same_found(
        views.best_images(found, queries, k=k, min_similarity=0.51, excluded=excluded),
        views.brute_force_best_images(found, queries, k=k, min_similarity=0.51, excluded=excluded),
    )


def test_a_view_stands_for_its_image(tables: HashTables, corpus: Corpus) -> None:
    """What is like a view of an image finds the image, as similar as its best view counts beside the whole."""
    views, codes, rows = views_of(corpus), quantize(corpus.embeddings), np.arange(OWNERS.size)
    for place in range(len(VIEW_SIMILARITY.margins)):
        found = tables.lookup(views[:, place], k=50, min_similarity=0.5)
        of_owner = found.docs == OWNERS[:, None]
        queries = quantize(views[:, place])
        whole = pair_cosines(queries, codes, rows, OWNERS)
        by_view = np.max(
            [
                pair_cosines(queries, quantize(views[:, other]), rows, rows) - np.float32(margin)
                for other, margin in enumerate(VIEW_SIMILARITY.margins)
            ],
            axis=0,
        )
        lifts = np.float32(VIEW_SIMILARITY.lift) * (by_view - whole)
        by_view += np.clip(lifts, np.float32(0), np.float32(VIEW_SIMILARITY.max_lift))
        assert len(np.unique(np.sign(lifts))) == 2
        assert of_owner.any(axis=1).all()
        np.testing.assert_array_equal(found.similarities[of_owner], np.maximum(whole, by_view))
        np.testing.assert_array_equal(found.are_by_view[of_owner], by_view > whole)
        assert found.are_by_view[of_owner].any()


def test_an_image_is_found_once(tables: HashTables, corpus: Corpus) -> None:
    """However many of its views are alike, and it is not crowded out by those of another."""
    found = tables.lookup(corpus.embeddings[OWNERS], k=50, min_similarity=-1.0)

    assert all(
        len(set(docs)) == len(docs) for docs in ([doc for doc in row if doc >= 0] for row in found.docs.tolist())
    )
    np.testing.assert_array_equal(found.docs[:, 0], OWNERS)
    assert not found.are_by_view[:, 0].any()


def test_views_of_a_hidden_image_are_hidden(tables: HashTables, corpus: Corpus) -> None:
    """A removed image is not found by what it holds either."""
    excluded = np.isin(np.arange(len(corpus.embeddings)), OWNERS)
    found = tables.lookup(views_of(corpus)[:, 2], k=50, min_similarity=-1.0, excluded=excluded)

    assert not np.isin(found.docs, OWNERS).any()


def test_views_do_not_change_what_the_catalogue_says(generation: Generation, corpus: Corpus) -> None:
    """Docs are the images alone; the files are whole, and the manifest counts the views."""
    verify_generation(generation.folder)
    manifest = generation.manifest
    assert (manifest.num_docs, manifest.num_views, manifest.num_hashed) == (600, NUM_VIEWS, corpus.embedded.size)
    assert generation.image_ids(np.arange(600)) == corpus.image_ids
    with pytest.raises(ParameterError, match=r"out of range 0\.\.599"):
        generation.codes(np.array([600]))


def test_a_generation_with_half_of_its_views_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    """Owners whose views count nobody knows how, or the reverse, belong to no generation."""
    manifest = open_generation(write_generation(tmp_path, corpus, with_views=True)).manifest
    files = {file: entry for file, entry in manifest.files.items() if file != layout.VIEW_OWNERS}
    for half in (replace(manifest, files=files), replace(manifest, view_similarity=None)):
        (tmp_path / MANIFEST_NAME).write_bytes(half.to_bytes())
        with pytest.raises(GenerationError, match="build it again"):
            open_generation(tmp_path)


@pytest.mark.parametrize(
    "damaged", [{"margins": []}, {"margins": [0.1], "lift": -1}, {"margins": 3}, {"lift": 0.1}, {"margins": ["a"]}, []]
)
def test_a_manifest_whose_views_count_in_no_way_is_refused(corpus: Corpus, tmp_path: Path, damaged: object) -> None:
    """What is no similarity of views is told by the name of the file."""
    write_generation(tmp_path, corpus, with_views=True)
    path = tmp_path / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"view_similarity": damaged}))
    with pytest.raises(GenerationError, match=MANIFEST_NAME):
        open_generation(tmp_path)


def test_owners_that_are_no_images_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    """Of another generation's views nothing is served."""
    write_generation(tmp_path, corpus, with_views=True)
    owners = np.fromfile(tmp_path / layout.VIEW_OWNERS, "<u4")
    owners[3] = 600
    owners.tofile(tmp_path / layout.VIEW_OWNERS)
    with pytest.raises(GenerationError, match="names doc 600 of 600"):
        open_generation(tmp_path)


def manifest_of(*, num_docs: int, num_owners: int, view_similarity: ViewSimilarity) -> Manifest:
    """Of a generation that has nothing but its views."""
    return Manifest(
        format_version=FORMAT_VERSION,
        created_at="",
        num_docs=num_docs,
        num_hashed=num_docs,
        num_postings=0,
        num_clusters=0,
        dim=2,
        embedder_digest="0" * 64,
        min_score=0.5,
        term_params=TermParams(num_tables=1, dim=2, num_polytopes=1, polytope_dim=2),
        num_probes=1,
        view_similarity=view_similarity,
        files={layout.VIEW_OWNERS: FileEntry(size_bytes=4 * num_owners, sha256="0" * 64)},
    )


def spec(**changes: object) -> GenerationSpec:
    usual = {
        "num_docs": 3,
        "term_params": TermParams(num_tables=1, dim=2, num_polytopes=1, polytope_dim=2),
        "num_probes": 1,
        "embedder_digest": "0" * 64,
        "min_score": 0.5,
        "view_similarity": ViewSimilarity((0.0,)),
    }
    return GenerationSpec(**{**usual, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("owners", [[3], [-1], [1, 0], [1, 1]])
def test_a_spec_names_each_owner_once(owners: list[int]) -> None:
    """Owners are docs, in order."""
    with pytest.raises(ParameterError, match=r"ascending docs in 0\.\.2"):
        spec(owners=np.array(owners))


def test_more_rows_than_a_generation_holds_are_refused() -> None:
    """Views count like images where postings are numbered."""
    with pytest.raises(ParameterError, match="build it without views"):
        spec(num_docs=layout.MAX_DOCS, owners=np.array([0]))


def test_views_of_a_doc_that_has_none_are_refused() -> None:
    """The spec knows who has views before the first is written."""
    with pytest.raises(ParameterError, match="none of the owners"):
        spec(owners=np.array([1])).view_rows(np.array([2]), np.array([0]))
