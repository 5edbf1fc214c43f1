"""Rules of lookups in the hash tables: equal to the slow twin, right, bounded, and safe on damaged bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsh.codes import pair_cosines, quantize
from lsh.errors import ParameterError
from lsh.index import layout
from lsh.index.generation import Generation, open_generation
from lsh.index.lookup import HashTables
from lsh.index.queries import Found, max_sketch_distance
from tests.lsh.index.conftest import assert_same_found

if TYPE_CHECKING:
    from tests.lsh.index.conftest import Corpus


@pytest.fixture(scope="module")
def generation(generation_at: Path) -> Generation:
    return open_generation(generation_at)


@pytest.fixture(scope="module")
def tables(generation: Generation) -> HashTables:
    return HashTables(generation)


@given(
    seed=st.integers(0, 2**32 - 1),
    noise=st.floats(0.0, 1.5),
    k=st.sampled_from([1, 2, 10, 100]),
    min_similarity=st.sampled_from([-1.0, 0.0, 0.5, 0.79, 0.95, 1.0]),
    max_postings=st.sampled_from([64, 200, 1 << 15]),
    excludes=st.booleans(),
)
def test_lookups_equal_their_slow_twin(
    generation: Generation,
    corpus: Corpus,
    *,
    seed: int,
    noise: float,
    k: int,
    min_similarity: float,
    max_postings: int,
    excludes: bool,
) -> None:
    """Docs, similarities, shared terms and candidates are those of plain Python lists, for any k and bounds."""
    rng = np.random.default_rng(seed)
    rows = corpus.embeddings[rng.integers(0, len(corpus.embeddings), 3)]
    queries = (rows + noise * rng.standard_normal(rows.shape)).astype(np.float32)
    queries[2, rng.integers(0, 2) * 10 :] = 0.0
    tables = HashTables(generation, max_postings=max_postings)
    excluded = rng.random(len(corpus.embeddings)) < 0.3 if excludes else None

    found = tables.lookup(queries, k=k, min_similarity=min_similarity, excluded=excluded)

    assert_same_found(found, tables.brute_force_lookup(queries, k=k, min_similarity=min_similarity, excluded=excluded))


def test_every_image_finds_itself(tables: HashTables, corpus: Corpus) -> None:
    """The best match of a known embedding is its own doc, with a similarity of 1."""
    docs = corpus.embedded
    found = tables.lookup(corpus.embeddings[docs], k=1, min_similarity=0.5)

    np.testing.assert_array_equal(found.docs[:, 0], docs)
    np.testing.assert_array_equal(found.similarities[:, 0], np.float32(1.0))
    assert (found.shared_terms[:, 0] >= 16).all()


def test_near_images_are_found_as_brute_force_finds_them(tables: HashTables, corpus: Corpus) -> None:
    """Nearly all pairs of cosine 0.79 and above are found, and each has its exact cosine of codes."""
    docs, codes = corpus.embedded, quantize(corpus.embeddings)
    found = tables.lookup(corpus.embeddings[docs], k=50, min_similarity=0.79)
    rows, places = np.nonzero(found.docs >= 0)
    pairs = set(zip(docs[rows].tolist(), found.docs[rows, places].tolist(), strict=True))
    lefts, rights = (part.ravel() for part in np.meshgrid(docs, docs))
    cosines = pair_cosines(codes, codes, lefts, rights)
    near = cosines >= np.float32(0.79)
    expected = set(zip(lefts[near].tolist(), rights[near].tolist(), strict=True))

    assert pairs <= expected
    assert len(pairs) > 0.97 * len(expected)
    exact = pair_cosines(codes, codes, docs[rows], found.docs[rows, places])
    np.testing.assert_array_equal(found.similarities[rows, places], exact)


def test_docs_without_an_embedding_and_copies_are_never_found(tables: HashTables, corpus: Corpus) -> None:
    """Postings hold originals alone."""
    found = tables.lookup(corpus.embeddings, k=50, min_similarity=-1.0)

    assert not np.isin(found.docs, np.concatenate([corpus.rejected, corpus.copies])).any()


def test_threads_share_the_tables(tables: HashTables, corpus: Corpus) -> None:
    """Eight threads that look up at once get what one thread gets."""
    expected = tables.lookup(corpus.embeddings, k=5, min_similarity=0.5)

    def look_up(doc: int) -> Found:
        return tables.lookup(corpus.embeddings[doc : doc + 1], k=5, min_similarity=0.5)

    with ThreadPoolExecutor(8) as pool:
        for doc, found in enumerate(pool.map(look_up, range(len(corpus.embeddings)))):
            np.testing.assert_array_equal(found.docs[0], expected.docs[doc])
            np.testing.assert_array_equal(found.shared_terms[0], expected.shared_terms[doc])


def test_work_is_bounded(generation: Generation, corpus: Corpus) -> None:
    """No query sees more candidates than it may read postings, and its own buckets come first."""
    tables = HashTables(generation, max_postings=64)
    found = tables.lookup(corpus.embeddings[:100], k=1, min_similarity=0.5)

    assert (found.num_candidates <= 64).all()
    np.testing.assert_array_equal(found.docs[:, 0], np.arange(100))


def test_no_queries_find_nothing(tables: HashTables) -> None:
    """An empty batch gives empty arrays."""
    found = tables.lookup(np.empty((0, 48), dtype=np.float32), k=3, min_similarity=0.5)

    assert found.docs.shape == found.similarities.shape == found.shared_terms.shape == (0, 3)


@pytest.mark.parametrize("name", [layout.POSTINGS, layout.POSTING_OFFSETS, layout.PART_STARTS])
def test_damaged_postings_never_reach_outside(generation_at: Path, corpus: Corpus, name: str) -> None:
    """Whatever bytes the tables hold, a lookup reads inside its arrays and answers with docs that exist."""
    for seed in range(20):
        generation = open_generation(generation_at)
        damaged = generation.array(name).copy()
        damaged.view(np.uint8)[:] = np.random.default_rng(seed).integers(0, 256, damaged.nbytes, dtype=np.uint8)
        generation._arrays[name] = damaged

        found = HashTables(generation).lookup(corpus.embeddings[:50], k=5, min_similarity=-1.0)

        assert (found.docs < len(corpus.embeddings)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k=0 is out of range 1..1024"),
        ({"k": 1025}, "k=1025 is out of range"),
        ({"min_similarity": 1.5}, "min_similarity=1.5 is out of range -1..1"),
        ({"min_similarity": float("nan")}, "min_similarity=nan is out of range"),
        ({"embeddings": np.zeros((1, 47), np.float32)}, "do not fit dim=48"),
        ({"embeddings": np.full((1, 48), np.nan, np.float32)}, "row 0 holds NaN"),
        ({"excluded": np.zeros(3, np.bool_)}, r"excluded of shape \(3,\)"),
    ],
)
def test_bad_requests_are_named(tables: HashTables, changes: dict[str, object], message: str) -> None:
    """A value out of its range raises ParameterError that says which and what is allowed."""
    request = {"embeddings": np.ones((1, 48), np.float32), "k": 1, "min_similarity": 0.5, **changes}
    with pytest.raises(ParameterError, match=message):
        tables.lookup(request.pop("embeddings"), **request)  # type: ignore[arg-type]


def test_a_bound_below_the_probes_is_refused(generation: Generation) -> None:
    """Every probe may read at least one posting."""
    with pytest.raises(ParameterError, match="max_postings=63 is out of range 64"):
        HashTables(generation, max_postings=63)


def test_sketch_distances_grow_as_similarity_falls() -> None:
    """A lower threshold lets more bits differ; at -1 nothing is dropped."""
    distances = [max_sketch_distance(similarity) for similarity in (1.0, 0.9, 0.79, 0.5, 0.0, -1.0)]

    assert distances == sorted(distances)
    assert distances[0] == 0
    assert distances[-1] == 256
