"""Rules of candidate pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lsh import candidates as candidates_module
from lsh.blocks import decode_term_blocks, encode_term_blocks
from lsh.buckets import Buckets
from lsh.candidates import CandidateParams, Candidates, brute_force_candidates, candidate_pairs
from lsh.clusters import greedy_cut
from lsh.codes import pair_cosines, quantize
from lsh.crowds import MAX_HEADS
from lsh.errors import ParameterError
from lsh.sketches import WORDS_PER_SKETCH, hamming_distances, long_sketches
from lsh.terms import TermHasher, TermParams

LARGE_CLUSTER_TERMS = TermParams(num_tables=24, dim=128, num_polytopes=2, polytope_dim=64)
RANDOM_PARAMS = st.builds(
    CandidateParams,
    max_bucket_size=st.integers(3, 12),
    crowd_size=st.integers(1, 3),
    max_sketch_distance=st.sampled_from([0, 20, 32, 64, 128]),
)


def make_buckets(
    terms: NDArray[np.uint64], sketches: NDArray[np.uint64], *, num_batches: int = 1, doc_step: int = 3
) -> Buckets:
    docs = np.arange(len(terms), dtype=np.uint64) * np.uint64(doc_step)
    sketches = sketches.reshape(len(terms), -1) if sketches.size else np.empty((len(terms), 1), np.uint64)
    blocks = [
        encode_term_blocks(terms[rows], docs[rows], sketches[rows], num_partitions=1)[0]
        for rows in np.array_split(np.arange(len(terms)), num_batches)
    ]
    return Buckets.of(decode_term_blocks(blocks[::-1]))


def assert_same(actual: Candidates, expected: Candidates) -> None:
    np.testing.assert_array_equal(actual.pairs, expected.pairs)
    np.testing.assert_array_equal(actual.shared_terms, expected.shared_terms)
    for name in ("num_buckets", "largest_bucket", "num_cut_buckets", "num_cut_pairs"):
        assert getattr(actual, name) == getattr(expected, name), name


@given(
    st.integers(0, 60),
    st.integers(1, 4),
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
    RANDOM_PARAMS,
)
def test_candidates_equal_brute_force(  # noqa: PLR0917 - hypothesis gives them in this order
    num_docs: int, num_terms: int, num_sketches: int, num_words: int, seed: int, params: CandidateParams
) -> None:
    """Pairs, shared terms and every count equal the slow twin's, in crowded and oversized buckets too."""
    rng = np.random.default_rng(seed)
    terms = rng.integers(0, num_terms, (num_docs, 3), dtype=np.uint64)
    sketches = rng.choice(rng.integers(0, 2**64, (num_sketches, num_words), dtype=np.uint64), num_docs)
    buckets = make_buckets(terms, sketches)

    assert_same(candidate_pairs(buckets, params), brute_force_candidates(buckets, params))


@given(
    st.integers(0, 40),
    st.integers(0, 130),
    st.integers(1, 6),
    st.integers(1, 20),
    st.integers(0, 2**32 - 1),
    RANDOM_PARAMS,
)
def test_candidates_with_a_new_doc_equal_brute_force(  # noqa: PLR0917 - hypothesis gives them in this order
    num_docs: int, first_new_doc: int, num_terms: int, num_sketches: int, seed: int, params: CandidateParams
) -> None:
    """Only pairs whose right doc is new, with their shared terms and counts, wherever the new docs begin."""
    rng = np.random.default_rng(seed)
    terms = rng.integers(0, num_terms, (num_docs, 3), dtype=np.uint64)
    sketches = rng.choice(rng.integers(0, 2**64, (num_sketches, 2), dtype=np.uint64), num_docs)
    buckets = make_buckets(terms, sketches)

    assert_same(
        candidate_pairs(buckets, params, first_new_doc=first_new_doc),
        brute_force_candidates(buckets, params, first_new_doc=first_new_doc),
    )


def test_pairs_are_found_exactly_up_to_the_sketch_distance() -> None:
    """Docs that share a bucket are paired at the largest allowed distance and not one bit beyond."""
    sketches = np.array([0, 2**26 - 1, 2**27 - 1], dtype=np.uint64)
    buckets = make_buckets(np.zeros((3, 1), dtype=np.uint64), sketches)

    assert candidate_pairs(buckets, CandidateParams(max_sketch_distance=26)).pairs.tolist() == [[0, 3], [3, 6]]


def test_shared_terms_are_counted() -> None:
    """A pair appears once, with the number of terms it shares."""
    terms = np.array([[1, 2, 3], [1, 2, 4], [5, 2, 6]], dtype=np.uint64)
    found = candidate_pairs(make_buckets(terms, np.zeros(3, dtype=np.uint64)), CandidateParams())

    assert found.pairs.tolist() == [[0, 3], [0, 6], [3, 6]]
    assert found.shared_terms.tolist() == [2, 1, 1]


@pytest.mark.parametrize("cosine", [0.8, 0.89, 0.95, 0.99])
def test_sketches_lose_few_pairs_of_the_similarity_they_are_for(cosine: float) -> None:
    """Of pairs at exactly the lowest similarity at most one in 30 lies beyond the distance chosen for it."""
    rng = np.random.default_rng(0)
    left, change = (rng.normal(size=(20_000, 256)).astype(np.float32) for _ in range(2))
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    change -= np.einsum("nd,nd->n", change, left)[:, None] * left
    change /= np.linalg.norm(change, axis=1, keepdims=True)
    right = np.float32(cosine) * left + np.float32(np.sqrt(1 - cosine**2)) * change

    distances = hamming_distances(*(long_sketches(rows, num_words=WORDS_PER_SKETCH) for rows in (left, right)))

    limit = CandidateParams.for_similarity(cosine).max_sketch_distance
    assert (distances > limit).mean() <= 1 / 30
    assert np.median(distances) < limit - 2


def test_no_postings_have_no_candidates() -> None:
    """Empty buckets give empty arrays and zero counts."""
    found = candidate_pairs(Buckets.of(decode_term_blocks([])), CandidateParams())

    assert found.pairs.shape == (0, 2)
    assert (found.num_buckets, found.largest_bucket, found.num_cut_pairs) == (0, 0, 0)


def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tallying after every few buckets gives what tallying once gives, in oversized buckets too."""
    rng = np.random.default_rng(3)
    terms = rng.integers(0, 12, (400, 4), dtype=np.uint64)
    buckets = make_buckets(terms, rng.integers(0, 2**64, 400, dtype=np.uint64))
    params = CandidateParams(max_bucket_size=130, crowd_size=12, max_sketch_distance=30)
    expected = candidate_pairs(buckets, params)
    monkeypatch.setattr(candidates_module, "MIN_KEYS_PER_CHUNK", 50)

    assert expected.num_cut_buckets > 0
    assert expected.num_buckets > expected.num_cut_buckets
    assert_same(candidate_pairs(buckets, params), expected)


def crowded_buckets(kind: str, *, num_batches: int) -> Buckets:
    """50,000 docs in one bucket, with sketches that are all equal, all close to one, of 100 groups, or at random."""
    rng = np.random.default_rng(7)
    num_docs = 50_000
    bits = np.uint64(1) << rng.integers(0, 64, (num_docs, 4), dtype=np.uint64)
    sketches = {
        "equal": np.full(num_docs, 12345, dtype=np.uint64),
        "close": bits[:, 0] | bits[:, 1] | bits[:, 2] | bits[:, 3],
        "groups": rng.choice(rng.integers(0, 2**64, 100, dtype=np.uint64), num_docs),
        "random": rng.integers(0, 2**64, num_docs, dtype=np.uint64),
    }[kind]
    return make_buckets(np.full((num_docs, 1), 9, dtype=np.uint64), sketches, num_batches=num_batches)


@pytest.mark.parametrize("kind", ["equal", "close", "groups", "random"])
def test_an_oversized_bucket_is_bounded_and_counted(kind: str) -> None:
    """50,000 docs in a bucket yield at most `max_bucket_size` pairs a doc, and what was not compared is counted."""
    params = CandidateParams(max_sketch_distance=16)
    found = candidate_pairs(crowded_buckets(kind, num_batches=1), params)
    all_pairs = 50_000 * 49_999 // 2

    assert found.num_cut_buckets == 1
    assert found.largest_bucket == 50_000
    assert len(found.pairs) <= 50_000 * params.max_bucket_size
    assert all_pairs - 50_000 * params.max_bucket_size <= found.num_cut_pairs <= all_pairs - len(found.pairs)


@pytest.mark.parametrize("kind", ["equal", "close"])
def test_a_crowd_is_compared_with_one_head(kind: str) -> None:
    """All of 50,000 docs of equal or near sketches meet one and the same doc, and hardly any other."""
    found = candidate_pairs(crowded_buckets(kind, num_batches=1), CandidateParams(max_sketch_distance=16))

    assert np.bincount(np.unique(found.pairs, return_inverse=True)[1].ravel()).max() == 49_999
    assert len(found.pairs) <= MAX_HEADS * 50_000


def test_docs_of_equal_sketch_stay_together_in_an_oversized_bucket() -> None:
    """Halving an oversized bucket never parts docs of equal sketch, however few they are."""
    sketches = np.repeat(np.random.default_rng(3).integers(0, 2**64, 2500, dtype=np.uint64), 2)
    buckets = make_buckets(np.zeros((5000, 1), dtype=np.uint64), sketches, doc_step=1)
    params = CandidateParams(max_bucket_size=100, max_sketch_distance=9)
    pairs = {tuple(pair) for pair in candidate_pairs(buckets, params).pairs.tolist()}

    assert {(doc, doc + 1) for doc in range(0, 5000, 2)} <= pairs


def test_a_bucket_without_a_crowd_is_compared_completely() -> None:
    """Families of edits are no crowd: a bucket of 1,000 docs in families of 20 has all of its pairs compared."""
    sketches = np.repeat(np.random.default_rng(5).integers(0, 2**64, 50, dtype=np.uint64), 20)
    buckets = make_buckets(np.zeros((1000, 1), dtype=np.uint64), sketches)
    found = candidate_pairs(buckets, CandidateParams(max_sketch_distance=9))

    assert found.num_cut_buckets == found.num_cut_pairs == 0
    assert len(found.pairs) == 50 * 20 * 19 // 2


@pytest.mark.parametrize(("cosine", "least"), [(1.0, 1.0), (0.99, 1.0), (0.97, 0.9)])
def test_a_large_cluster_of_near_identical_images_is_one_cluster(cosine: float, least: float) -> None:
    """Images at one cosine to a common centre are cut into one cluster, the looser ones nearly."""
    rows, buckets = large_cluster(cosine, num_docs=6000)
    found = candidate_pairs(buckets, CandidateParams(max_sketch_distance=70))

    assert largest_cluster(rows, found) >= least * len(rows)
    assert len(found.pairs) <= 250 * len(rows)


def large_cluster(cosine: float, *, num_docs: int) -> tuple[NDArray[np.float32], Buckets]:
    """Rows at one cosine to a common centre, and their buckets."""
    dim = LARGE_CLUSTER_TERMS.dim
    rng = np.random.default_rng(4)
    centre = np.eye(1, dim, dtype=np.float32)
    noise = rng.standard_normal((num_docs, dim), dtype=np.float32)
    noise[:, 0] = 0
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    rows = (cosine * centre + np.sqrt(1 - cosine**2) * noise).astype(np.float32)
    terms = TermHasher(LARGE_CLUSTER_TERMS).terms(rows)
    return rows, make_buckets(terms, long_sketches(rows, num_words=4), doc_step=1)


def largest_cluster(rows: NDArray[np.float32], found: Candidates) -> int:
    """How many docs the largest cluster has that the candidates of cosine 0.8 make."""
    lefts, rights = found.pairs.astype(np.int64).T
    scores = pair_cosines(quantize(rows), quantize(rows), lefts, rights)
    is_match = scores >= 0.8
    clusters = greedy_cut(len(rows), lefts[is_match], rights[is_match], scores[is_match], np.arange(len(rows)))
    return int(np.bincount(clusters.canonical).max())


@pytest.mark.parametrize("kind", ["close", "groups"])
@pytest.mark.parametrize("num_batches", [2, 7, 16])
def test_an_oversized_bucket_does_not_depend_on_its_blocks(kind: str, num_batches: int) -> None:
    """However the docs of an oversized bucket come in, the sampled members and the pairs are the same."""
    split = candidate_pairs(crowded_buckets(kind, num_batches=num_batches), CandidateParams())

    assert_same(split, candidate_pairs(crowded_buckets(kind, num_batches=1), CandidateParams()))


def test_another_bucket_beside_it_does_not_change_an_oversized_one() -> None:
    """The pairs of an oversized bucket are the same when its partition holds other docs and buckets too."""
    rng = np.random.default_rng(11)
    sketches = rng.integers(0, 2**64, 120, dtype=np.uint64)
    terms = np.full((120, 1), 9, dtype=np.uint64)
    terms[::2] = 4
    params = CandidateParams(max_bucket_size=20, crowd_size=3, max_sketch_distance=64)
    buckets = make_buckets(terms, sketches)
    both = {tuple(pair) for pair in candidate_pairs(buckets, params).pairs.tolist()}
    alone: set[tuple[int, int]] = set()
    for bucket in (4, 9):
        rows = buckets.rows(buckets.terms.tolist().index(bucket))
        own_rows, end = np.arange(rows.size, dtype=np.uint32), np.array([rows.size])
        part = Buckets(np.array([bucket], np.uint64), end, own_rows, buckets.docs[rows], buckets.sketches[rows])
        alone |= {tuple(pair) for pair in candidate_pairs(part, params).pairs.tolist()}

    assert both == alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_bucket_size": 1}, "max_bucket_size=1 is out of range 2..16384"),
        ({"crowd_size": 0}, "crowd_size=0 is out of range 1..16384"),
        ({"max_sketch_distance": 4097}, "max_sketch_distance=4097 is out of range 0..4096"),
    ],
)
def test_bad_params_are_named(changes: dict[str, int], message: str) -> None:
    """A parameter out of range raises ParameterError with its name, value and range."""
    with pytest.raises(ParameterError, match=message):
        CandidateParams(**changes)
