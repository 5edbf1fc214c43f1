"""Rules of the samples in which crowds are looked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsh.crowds import bases_of, crowd_heads, doc_ranks, gather_words, is_crowd, sample_of


@given(
    st.integers(1, 3000),
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(0, 2**32),
    st.sampled_from(["consecutive", "gaps", "late"]),
)
def test_a_sample_has_the_lowest_ranks(num_rows: int, num_sampled: int, num_ordered: int, seed: int, kind: str) -> None:
    """The sample is that of a full sort by rank, its first rows in that order, for docs with and without gaps.

    Some docs all have high ranks, which no sample may expect.
    """
    docs = np.arange(seed, seed + 20_000, dtype=np.uint64)
    docs = {"consecutive": docs[:5000], "gaps": docs[::4], "late": docs[np.argsort(doc_ranks(docs))[-5000:]]}[kind]
    docs, rows = np.sort(docs), np.sort(np.random.default_rng(seed + 1).choice(5000, num_rows, replace=False))
    expected = rows[np.argsort(doc_ranks(docs)[rows])[:num_sampled]]
    sample = sample_of(rows.astype(np.uint32), docs, bases_of(docs), num_sampled, num_ordered)

    assert sample[:num_ordered].tolist() == expected[:num_ordered].tolist()
    assert sorted(sample.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("num_docs", [200, 300])
@pytest.mark.parametrize("num_words", [1, 2, 4, 5])
@pytest.mark.parametrize("num_near", [31, 32])
def test_a_bucket_is_crowded_where_it_has_a_head(num_docs: int, num_words: int, num_near: int) -> None:
    """For sketches of any length, from exactly `crowd_size` near docs on."""
    sketches = np.random.default_rng(2).integers(0, 2**64, (num_docs, num_words), dtype=np.uint64)
    docs, rows = np.arange(num_docs, dtype=np.uint64), np.arange(num_docs, dtype=np.uint32)
    sketches[np.argsort(doc_ranks(docs))[:num_near]] = 0

    bases, words = bases_of(docs), np.empty((num_words, num_docs), np.uint64)
    gather_words(rows, sketches, words)

    assert is_crowd(rows, docs, bases, sketches, words, 3, 32) == (num_near == 32)
    assert bool(crowd_heads(rows, docs, bases, sketches, 3, 32).size) == (num_near == 32)


@given(st.sets(st.integers(0, 300) | st.integers(2**64 - 200, 2**64 - 1), min_size=1), st.booleans())
def test_bases_are_of_docs_without_gaps(docs: set[int], is_filled: bool) -> None:
    """A base is there where 64 docs, or those that are left at last, follow one another, and says which these are."""
    listed = sorted(docs | set(range(100, 280)) if is_filled else docs)
    starts = range(0, len(listed), 64)
    parts = [listed[start : start + 64] for start in starts]
    expected = [part[0] if part == list(range(part[0], part[0] + len(part))) else 2**64 - 1 for part in parts]

    assert bases_of(np.array(listed, np.uint64)).tolist() == expected
