"""Rules of the hashes and lengths of rows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lsh.row_hashes import hash_rows


def brute_force_hashes(rows: NDArray[np.float32]) -> list[int]:
    """The sums of words times weights, modulo 2^64, in Python's integers."""
    weights = np.random.default_rng(0).integers(0, 2**64, rows.shape[1], dtype=np.uint64)
    sums = rows.view(np.uint32).astype(object) @ weights.astype(object)
    return [int(one) % 2**64 for one in sums]


@pytest.mark.parametrize("dim", [1, 15, 16, 17, 256])
def test_hashes_and_lengths_are_those_of_plain_sums(dim: int) -> None:
    """Workspaces keep the hashes, so they stay what they are; lengths are exact to the bits that a float32 holds."""
    rows = np.random.default_rng(1).normal(size=(9, dim)).astype(np.float32)
    hashes, squares = hash_rows(rows)
    assert hashes.view(np.uint64).tolist() == brute_force_hashes(rows)
    np.testing.assert_allclose(squares, (rows.astype(np.float64) ** 2).sum(axis=1), rtol=1e-5)


def test_hashes_change_with_any_bit() -> None:
    """Equal rows have equal hashes, in any batch; a flipped sign, also two, or the least bit give another."""
    row = np.random.default_rng(0).normal(size=256).astype(np.float32)
    changed = np.repeat(row[None], 6, axis=0)
    changed[1, 0] *= -1
    changed[2, [3, 5]] *= -1
    changed[3, 255] = np.nextafter(row[255], np.float32(9))
    changed[4] = row[::-1]
    hashes, _ = hash_rows(changed)
    assert len(set(hashes[:5].tolist())) == 5
    assert hashes[5] == hashes[0] == hash_rows(row[None])[0][0]


def test_a_row_of_no_number_has_no_length() -> None:
    """NaN and infinity reach the square, so that whoever checks lengths sees them."""
    _, squares = hash_rows(np.array([[np.nan, 1], [np.inf, 1]], np.float32))
    assert not np.isfinite(squares).any()
