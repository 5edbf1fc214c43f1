"""Rules of the leaders of huge crowds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lsh.buckets import Buckets
from lsh.candidates import CandidateParams, candidate_pairs
from lsh.leaders import (
    MIN_CLOSE,
    NO_LEADERS,
    NUM_SAMPLED,
    Leaders,
    are_sampled,
    brute_force_candidates_with_leaders,
    brute_force_leaders,
    candidates_with_leaders,
    choose_leaders,
)
from lsh.terms import TermHasher
from tests.lsh.test_candidates import (
    LARGE_CLUSTER_TERMS,
    RANDOM_PARAMS,
    assert_same,
    large_cluster,
    largest_cluster,
    make_buckets,
)


@pytest.mark.parametrize("seed", range(3))
def test_leaders_equal_brute_force(seed: int) -> None:
    """For crowds of several sizes and widths that lie within one another's reach, in docs of any order."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 4, dtype=np.uint64)
    centres[1] = centres[0] ^ np.uint64((1 << 15) - 1)
    sketches = np.repeat(centres, [MIN_CLOSE + 200, MIN_CLOSE, MIN_CLOSE, MIN_CLOSE - 1])
    for _ in range(10):
        sketches ^= np.uint64(1) << rng.integers(0, 64, sketches.size, dtype=np.uint64)
    docs = rng.permutation(5000)[: sketches.size].astype(np.uint64)
    leaders = choose_leaders(docs, sketches.reshape(-1, 1), np.zeros((docs.size, 16), np.uint64))
    expected = brute_force_leaders(dict(zip(docs.tolist(), sketches.tolist(), strict=True)))

    assert leaders.docs.tolist() == expected
    assert leaders.sketches.ravel().tolist() == [sketches[docs == doc][0] for doc in expected]


@pytest.mark.parametrize("num_close", [MIN_CLOSE - 1, MIN_CLOSE])
def test_a_leader_has_a_crowd(num_close: int) -> None:
    """From exactly `MIN_CLOSE` docs on, itself included; no docs have no leaders."""
    sketches = np.random.default_rng(2).integers(0, 2**64, (500, 4), dtype=np.uint64)
    sketches[:num_close] = 0
    terms = np.zeros((500, 16), np.uint64)
    leaders = choose_leaders(np.arange(500, dtype=np.uint64), sketches, terms)

    assert leaders.docs.size == (num_close == MIN_CLOSE)
    assert choose_leaders(np.empty(0, np.uint64), sketches[:0], terms[:0]).docs.size == 0


def test_a_sample_of_a_corpus_has_enough_and_not_all() -> None:
    """All docs of a small corpus; of a large one a few more than are needed."""
    docs = np.arange(300_000, dtype=np.uint64)

    assert are_sampled(docs[:NUM_SAMPLED], num_docs=NUM_SAMPLED).all()
    assert NUM_SAMPLED <= are_sampled(docs, num_docs=docs.size).sum() <= 1.5 * NUM_SAMPLED


@given(st.integers(0, 60), st.integers(0, 8), st.integers(1, 5), st.integers(0, 2**32 - 1), RANDOM_PARAMS)
def test_candidates_with_leaders_equal_brute_force(
    num_docs: int, num_present: int, num_absent: int, seed: int, params: CandidateParams
) -> None:
    """Docs meet all leaders of their buckets; the led ones none behind their own, be that in the bucket or not."""
    rng = np.random.default_rng(seed)
    terms = rng.integers(0, 3, (num_docs, 2), dtype=np.uint64)
    kinds = rng.integers(0, 2**64, (3, 1), dtype=np.uint64)
    sketches = rng.choice(kinds, num_docs) ^ (np.uint64(1) << rng.integers(0, 64, (num_docs, 1), dtype=np.uint64))
    buckets = make_buckets(terms, sketches)
    rows = rng.choice(buckets.docs.size, min(num_present, buckets.docs.size), replace=False)
    docs = np.concatenate([buckets.docs[rows], np.arange(num_absent, dtype=np.uint64) + np.uint64(10_000)])
    absent = rng.choice(np.append(kinds, [[np.uint64(0)]], axis=0), num_absent)
    leaders = Leaders(docs, np.concatenate([buckets.sketches[rows].reshape(-1, 1), absent]))
    found = candidates_with_leaders(buckets, params, leaders)
    expected = brute_force_candidates_with_leaders(buckets, params, leaders)

    assert dict(zip(map(tuple, found.pairs.tolist()), found.shared_terms.tolist(), strict=True)) == expected
    assert sorted(expected) == list(map(tuple, found.pairs.tolist()))


def test_what_leaders_leave_out_is_counted() -> None:
    """Of ten led docs in one bucket the leader's nine pairs are compared, in a bucket without it none of its three."""
    terms = np.full((10, 2), 7, dtype=np.uint64)
    terms[:, 1] = [9, 9, 9, *range(20, 27)]
    buckets = make_buckets(terms, np.zeros(10, dtype=np.uint64), doc_step=1)
    leaders = Leaders(np.array([5], np.uint64), np.zeros((1, 1), np.uint64))
    found = candidates_with_leaders(buckets, CandidateParams(), leaders)

    assert found.pairs.tolist() == [[0, 5], [1, 5], [2, 5], [3, 5], [4, 5], [5, 6], [5, 7], [5, 8], [5, 9]]
    assert (found.num_cut_buckets, found.num_cut_pairs) == (2, 45 - 9 + 3)
    assert (found.num_buckets, found.largest_bucket) == (9, 10)


def test_a_doc_that_may_not_match_a_leader_is_not_led() -> None:
    """Two docs 3 bits from a leader stay candidates of each other where the sketch distance is 4, and of the leader."""
    sketches = np.array([0, 7, 7], dtype=np.uint64)
    buckets = make_buckets(np.zeros((3, 1), dtype=np.uint64), sketches, doc_step=1)
    leaders = Leaders(np.array([0], np.uint64), np.zeros((1, 1), np.uint64))
    found = candidates_with_leaders(buckets, CandidateParams(max_sketch_distance=4), leaders)

    assert found.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]


def test_a_doc_meets_the_leaders_up_to_its_own() -> None:
    """Of three leaders of one bucket: docs led by the second meet the first two, an unled one and leaders meet all."""
    sketches = np.array([0, 0x3F, 0xFF, 0x3F << 20, 0xFF << 30], dtype=np.uint64)
    buckets = make_buckets(np.zeros((5, 1), dtype=np.uint64), sketches, doc_step=1)
    leaders = Leaders(np.array([0, 1, 3], np.uint64), sketches[[0, 1, 3]].reshape(-1, 1))
    found = candidates_with_leaders(buckets, CandidateParams(max_sketch_distance=14), leaders)

    assert found.pairs.tolist() == [[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [1, 3], [1, 4], [3, 4]]


def test_without_leaders_candidates_are_as_ever() -> None:
    """No leaders change nothing."""
    _, buckets = large_cluster(0.99, num_docs=500)

    assert_same(
        candidates_with_leaders(buckets, CandidateParams(), NO_LEADERS), candidate_pairs(buckets, CandidateParams())
    )


def crowd_leaders(rows: NDArray[np.float32], buckets: Buckets) -> Leaders:
    """The leaders of a `large_cluster`."""
    return choose_leaders(buckets.docs, buckets.sketches, TermHasher(LARGE_CLUSTER_TERMS).terms(rows))


def test_a_crowd_that_would_miss_its_leader_has_none() -> None:
    """Docs that share a fifth of 16 terms with one another share none too often; of 64 they always share some."""
    docs, rng = np.arange(1000, dtype=np.uint64), np.random.default_rng(3)
    sketches = np.zeros((1000, 4), np.uint64)
    terms = rng.integers(0, 5, (1000, 64), dtype=np.uint64)

    assert choose_leaders(docs, sketches, terms[:, :16]).docs.size == 0
    assert choose_leaders(docs, sketches, terms).docs.size == 1


@pytest.mark.parametrize("cosine", [1.0, 0.99])
def test_a_tight_crowd_is_led_and_one_cluster(cosine: float) -> None:
    """Images at one cosine to a common centre are cut into one cluster, though most meet nothing but leaders."""
    rows, buckets = large_cluster(cosine, num_docs=6000)
    leaders = crowd_leaders(rows, buckets)
    found = candidates_with_leaders(buckets, CandidateParams(max_sketch_distance=70), leaders)

    assert leaders.docs.size
    assert largest_cluster(rows, found) == len(rows)


def test_a_loose_crowd_is_not_led() -> None:
    """Hundreds are close to one doc and thousands of the same crowd are not: heads have them, of each bucket."""
    rows, buckets = large_cluster(0.97, num_docs=20_000)

    assert crowd_leaders(rows, buckets).docs.size == 0


def test_a_doc_of_a_tight_crowd_meets_few_leaders() -> None:
    """Where buckets alone give every doc a dozen others, one leader is about all that it meets."""
    rows, buckets = large_cluster(0.99, num_docs=20_000)
    leaders = crowd_leaders(rows, buckets)
    found = candidates_with_leaders(buckets, CandidateParams(), leaders)

    assert leaders.docs.size
    assert len(candidate_pairs(buckets, CandidateParams()).pairs) > 10 * 20_000
    assert len(found.pairs) < 2 * 20_000
