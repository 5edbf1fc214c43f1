"""Rules of the samples in which crowds are looked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsh.crowds import (
    MIN_LED,
    NUM_SAMPLED,
    are_crowded,
    are_sampled,
    brute_force_leaders,
    choose_leaders,
    crowd_heads,
    doc_ranks,
    sample_of,
)


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32), st.booleans())
def test_a_sample_has_the_lowest_ranks(
    num_rows: int, num_sampled: int, num_ordered: int, seed: int, are_uniform: bool
) -> None:
    """The sample is that of a full sort by rank, its first rows in that order, for ranks of any distribution."""
    ranks = np.random.default_rng(seed).permutation(5000).astype(np.uint64)
    ranks = doc_ranks(ranks) if are_uniform else ranks
    rows = np.sort(np.random.default_rng(seed + 1).choice(5000, num_rows, replace=False))
    expected = rows[np.argsort(ranks[rows])[:num_sampled]]
    sample = sample_of(rows, ranks, num_sampled, num_ordered)

    assert sample[:num_ordered].tolist() == expected[:num_ordered].tolist()
    assert sorted(sample.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("num_words", [1, 2, 4, 5])
@pytest.mark.parametrize("num_near", [31, 32])
def test_a_bucket_is_crowded_where_it_has_a_head(num_words: int, num_near: int) -> None:
    """For sketches of any length, from exactly `crowd_size` near docs on."""
    sketches = np.random.default_rng(2).integers(0, 2**64, (200, num_words), dtype=np.uint64)
    ranks = doc_ranks(np.arange(200, dtype=np.uint64))
    sketches[np.argsort(ranks)[:num_near]] = 0
    rows = np.arange(200)
    is_crowded = are_crowded(np.array([0]), np.array([200]), rows, ranks, sketches, 3, 32)

    assert is_crowded.tolist() == [num_near == 32]
    assert bool(crowd_heads(rows, ranks, sketches, 3, 32).size) == is_crowded[0]


@pytest.mark.parametrize("seed", range(4))
def test_leaders_equal_brute_force(seed: int) -> None:
    """For crowds of several sizes and widths that lie within one another's reach, in docs of any order."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 4, dtype=np.uint64)
    centres[1] = centres[0] ^ np.uint64((1 << 15) - 1)
    sketches = np.repeat(centres, [400, 200, MIN_LED, MIN_LED - 1])
    for _ in range(10):
        sketches ^= np.uint64(1) << rng.integers(0, 64, sketches.size, dtype=np.uint64)
    docs = rng.permutation(5000)[: sketches.size].astype(np.uint64)
    leaders = choose_leaders(docs, sketches.reshape(-1, 1))
    expected = brute_force_leaders(dict(zip(docs.tolist(), sketches.tolist(), strict=True)))

    assert leaders.docs.tolist() == expected
    assert leaders.sketches.ravel().tolist() == [sketches[docs == doc][0] for doc in expected]


@pytest.mark.parametrize("num_led", [MIN_LED - 1, MIN_LED])
def test_a_leader_has_a_crowd(num_led: int) -> None:
    """From exactly `MIN_LED` docs on, itself included; no docs have no leaders."""
    sketches = np.random.default_rng(2).integers(0, 2**64, (500, 4), dtype=np.uint64)
    sketches[:num_led] = 0
    leaders = choose_leaders(np.arange(500, dtype=np.uint64), sketches)

    assert leaders.docs.size == (num_led == MIN_LED)
    assert choose_leaders(np.empty(0, np.uint64), sketches[:0]).docs.size == 0


def test_a_sample_of_a_corpus_has_enough_and_not_all() -> None:
    """All docs of a small corpus; of a large one a few more than are needed."""
    docs = np.arange(300_000, dtype=np.uint64)

    assert are_sampled(docs[:NUM_SAMPLED], num_docs=NUM_SAMPLED).all()
    assert NUM_SAMPLED <= are_sampled(docs, num_docs=docs.size).sum() <= 1.5 * NUM_SAMPLED
