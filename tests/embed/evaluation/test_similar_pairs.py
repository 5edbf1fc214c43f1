"""The most similar pairs, against all pairs sorted."""

from __future__ import annotations

import numpy as np
import pytest

from embed.evaluation import similar_pairs
from embed.evaluation.similar_pairs import most_similar_pairs


@pytest.mark.parametrize("num", [1, 7, 200, 10_000])
def test_they_are_the_first_of_all_pairs_sorted(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar_pairs, "ROWS_AT_ONCE", 16)
    # Products of such rows are exact, so that blocks and pairs agree to the last bit, and many are equal.
    rows = np.random.default_rng(0).choice([-0.5, 0.0, 0.5], (40, 8)).astype(np.float32)
    every = sorted((-float(rows[a] @ rows[b]), a, b) for a in range(40) for b in range(a + 1, 40))[:num]
    pairs, cosines = most_similar_pairs(rows, num)
    assert [(a, b) for _, a, b in every] == [tuple(pair) for pair in pairs.tolist()]
    assert [-negative for negative, _, _ in every] == cosines.tolist()


@pytest.mark.parametrize("num_rows", [0, 1])
def test_without_two_rows_there_is_no_pair(num_rows: int) -> None:
    pairs, cosines = most_similar_pairs(np.zeros((num_rows, 4), np.float32), 5)
    assert (pairs.shape, cosines.shape) == ((0, 2), (0,))
