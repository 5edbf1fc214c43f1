"""Rules of sorting by two keys."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lsh.sorting import order_by_two_keys, sort_by_two_keys, starts_of_runs

small = st.integers(0, 5)
word = st.integers(0, 2**64 - 1)
two_keys = st.lists(st.tuples(small, small), max_size=50) | st.lists(st.tuples(small | word, small | word), max_size=50)


@given(two_keys)
def test_sorting_equals_sorting_tuples(pairs: list[tuple[int, int]]) -> None:
    """Keys that fit in one word and keys that do not are sorted as Python sorts tuples."""
    major = np.array([pair[0] for pair in pairs], dtype=np.uint64)
    minor = np.array([pair[1] for pair in pairs], dtype=np.uint64)
    sorted_major, sorted_minor = sort_by_two_keys(major, minor)

    assert list(zip(sorted_major.tolist(), sorted_minor.tolist(), strict=True)) == sorted(pairs)


@given(two_keys)
def test_the_order_sorts(pairs: list[tuple[int, int]]) -> None:
    """Taking pairs in the given order sorts them, whether they fit in one word or not."""
    major = np.array([pair[0] for pair in pairs], dtype=np.uint64)
    minor = np.array([pair[1] for pair in pairs], dtype=np.uint64)

    assert [pairs[i] for i in order_by_two_keys(major, minor).tolist()] == sorted(pairs)


def test_keys_of_exactly_64_bits_together_are_sorted() -> None:
    """The widest keys that are packed, 64 bits together, keep all of their bits."""
    major = np.array([2**40 - 1, 0, 2**40 - 1], dtype=np.uint64)
    minor = np.array([2**24 - 1, 2**24 - 1, 0], dtype=np.uint64)
    sorted_major, sorted_minor = sort_by_two_keys(major, minor)

    assert sorted_major.tolist() == [0, 2**40 - 1, 2**40 - 1]
    assert sorted_minor.tolist() == [2**24 - 1, 0, 2**24 - 1]


def test_runs_start_where_either_key_changes() -> None:
    """A run ends where the major or the minor key differs from the one before."""
    major, minor = np.array([1, 1, 1, 2], dtype=np.uint64), np.array([4, 4, 5, 5], dtype=np.uint64)

    assert starts_of_runs(major, minor).tolist() == [True, False, True, True]
    assert starts_of_runs(major).tolist() == [True, False, False, True]
    assert starts_of_runs(major[:0]).tolist() == []
