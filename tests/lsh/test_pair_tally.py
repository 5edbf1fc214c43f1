"""Rules of the tally of candidates."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lsh import pair_tally
from lsh.blocks import decode_pair_blocks, encode_pair_block
from lsh.pair_tally import PairTally

DOCS = np.arange(20, dtype=np.uint64) * np.uint64(3)
KEYS = st.tuples(st.integers(0, 9), st.integers(10, 19)).map(lambda rows: rows[0] << 32 | rows[1])


class Spilled:
    """Keeps what was spilled, as blocks."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []

    def __call__(self, pairs: NDArray[np.uint64], shared_terms: NDArray[np.uint32]) -> None:
        self.blocks.append(encode_pair_block(pairs, shared_terms))


def test_a_tally_counts_each_pair_and_is_empty_afterwards() -> None:
    """Pairs come back once, ascending, with how often each was added; then there is nothing left."""
    tally = PairTally(DOCS)
    for keys in ([1 << 32 | 2, 0 << 32 | 3, 1 << 32 | 2], [0 << 32 | 3], []):
        tally.add(np.array(keys, np.uint64))
    pairs, shared_terms = tally.take()

    assert pairs.tolist() == [[0, 9], [3, 6]]
    assert shared_terms.tolist() == [2, 2]
    assert [part.size for part in tally.take()] == [0, 0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(KEYS, max_size=30), max_size=12), st.integers(1, 40))
def test_spills_add_up_to_what_one_tally_holds(
    monkeypatch: pytest.MonkeyPatch, chunks: list[list[int]], most: int
) -> None:
    """However often a tally is spilled, the blocks give each pair with all that it shares, and little is held."""
    monkeypatch.setattr(pair_tally, "MAX_TALLIED", most)
    spilled = Spilled()
    tally = PairTally(DOCS, spilled)
    for keys in chunks:
        tally.add(np.array(keys, np.uint64))
    rest = tally.take()
    spilled(*rest)
    pairs, shared_terms = decode_pair_blocks(spilled.blocks)

    expected = Counter((3 * (key >> 32), 3 * (key & 31)) for keys in chunks for key in keys)
    assert dict(zip(map(tuple, pairs.tolist()), shared_terms.tolist(), strict=True)) == expected
    assert len(rest[0]) < most
