"""Rules of sorting by several keys."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lsh.sorting import sort_by_keys, starts_of_runs

word = st.integers(0, 5) | st.integers(0, 2**64 - 1)
rows = st.one_of(
    st.lists(st.tuples(*[st.integers(0, 5)] * 2), max_size=50),
    st.lists(st.tuples(*[st.integers(0, 5)] * 3), max_size=50),
    st.lists(st.tuples(*[word] * 2), max_size=50),
    st.lists(st.tuples(*[word] * 3), max_size=50),
)


@given(rows)
def test_sorting_equals_sorting_tuples(rows: list[tuple[int, ...]]) -> None:
    """Keys that fit in one word and keys that do not are sorted as Python sorts tuples."""
    num_keys = len(rows[0]) if rows else 2
    keys = np.array(rows, dtype=np.uint64).reshape(-1, num_keys).T

    assert list(zip(*(key.tolist() for key in sort_by_keys(*keys)), strict=True)) == sorted(rows)


def test_keys_of_exactly_64_bits_together_are_sorted() -> None:
    """The widest keys that are packed, 64 bits together, keep all of their bits."""
    major = np.array([2**40 - 1, 0, 2**40 - 1], dtype=np.uint64)
    minor = np.array([2**24 - 1, 2**24 - 1, 0], dtype=np.uint64)
    sorted_major, sorted_minor = sort_by_keys(major, minor)

    assert sorted_major.tolist() == [0, 2**40 - 1, 2**40 - 1]
    assert sorted_minor.tolist() == [2**24 - 1, 0, 2**24 - 1]


def test_the_given_keys_stay_as_they_are() -> None:
    """Sorting returns new arrays and leaves its input alone."""
    major, minor = np.array([2, 1], dtype=np.uint64), np.array([3, 4], dtype=np.uint64)
    sort_by_keys(major, minor)

    assert (major.tolist(), minor.tolist()) == ([2, 1], [3, 4])


def test_runs_start_where_either_key_changes() -> None:
    """A run ends where the major or the minor key differs from the one before."""
    major, minor = np.array([1, 1, 1, 2], dtype=np.uint64), np.array([4, 4, 5, 5], dtype=np.uint64)

    assert starts_of_runs(major, minor).tolist() == [True, False, True, True]
    assert starts_of_runs(major).tolist() == [True, False, False, True]
    assert starts_of_runs(major[:0]).tolist() == []
