"""Rules of int8 codes and their cosines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lsh.codes import pair_cosines, quantize
from lsh.errors import ParameterError


def random_rows(num: int, dim: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(num).standard_normal((num, dim)).astype(np.float32)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def slow_cosine(left: NDArray[np.int8], right: NDArray[np.int8]) -> np.float32:
    """The slow twin, in Python integers."""
    a, b = left.tolist(), right.tolist()
    squares = float(sum(x * x for x in a)) * float(sum(y * y for y in b))
    return np.float32(sum(x * y for x, y in zip(a, b, strict=True)) / squares**0.5) if squares else np.float32(0)


def test_each_row_is_scaled_to_its_largest_magnitude() -> None:
    """The largest magnitude of a row becomes 127 with its sign, the rest keep their proportion."""
    rows = np.array([[0.5, -1.0, 0.25], [-0.002, 0.001, 0.0]], dtype=np.float32)

    assert quantize(rows).tolist() == [[64, -127, 32], [-127, 64, 0]]


def test_a_row_of_zeros_stays_zeros_and_is_like_nothing() -> None:
    """Zeros are quantised to zeros and have cosine 0 with everything, themselves included."""
    codes = quantize(np.array([[0, 0], [1, 0]], dtype=np.float32))

    assert codes.tolist() == [[0, 0], [127, 0]]
    assert pair_cosines(codes, codes, np.array([0, 0, 1]), np.array([0, 1, 1])).tolist() == [0, 0, 1]


def test_tiny_and_huge_rows_are_quantised() -> None:
    """The smallest and the largest floats keep the proportions of their row."""
    rows = np.array([[1e-45, -1e-45], [3e38, -1.5e38]], dtype=np.float32)

    assert quantize(rows).tolist() == [[127, -127], [127, -64]]


def test_cosines_are_near_those_of_the_embeddings() -> None:
    """The cosine of two codes is within 0.01 of that of the embeddings, 0.002 on average."""
    rows = random_rows(400, 256)
    left, right = np.triu_indices(400, 1)
    errors = np.abs(pair_cosines(quantize(rows), quantize(rows), left, right) - (rows @ rows.T)[left, right])

    assert errors.max() < 0.01
    assert errors.mean() < 0.002


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_cosines_equal_their_slow_twin(dim: int, seed: int) -> None:
    """Cosines equal those computed in Python integers, bit for bit."""
    rng = np.random.default_rng(seed)
    left_codes, right_codes = (rng.integers(-127, 128, (5, dim), dtype=np.int8) for _ in range(2))
    left_rows, right_rows = rng.integers(0, 5, 9), rng.integers(0, 5, 9)
    expected = [slow_cosine(left_codes[i], right_codes[j]) for i, j in zip(left_rows, right_rows, strict=True)]

    assert pair_cosines(left_codes, right_codes, left_rows, right_rows).tolist() == expected


def test_the_largest_dim_does_not_overflow() -> None:
    """Codes of 65,536 dimensions at full magnitude have cosines of exactly 1 and -1."""
    codes = np.full((2, 65_536), 127, dtype=np.int8)
    codes[1] = -127

    assert pair_cosines(codes, codes, np.array([0, 0]), np.array([0, 1])).tolist() == [1, -1]


def test_no_pairs_have_no_cosines() -> None:
    """Empty rows give an empty result, and so do empty codes."""
    no_rows = np.empty(0, dtype=np.int64)
    codes = quantize(np.empty((0, 8), dtype=np.float32))

    assert codes.shape == (0, 8)
    assert pair_cosines(codes, codes, no_rows, no_rows).shape == (0,)


@pytest.mark.parametrize(("left", "right"), [([3], [0]), ([0], [2]), ([-1], [0])])
def test_rows_outside_the_codes_raise(left: list[int], right: list[int]) -> None:
    """A row that is not one of the codes raises ParameterError instead of reading elsewhere."""
    with pytest.raises(ParameterError, match="out of range 0"):
        pair_cosines(np.ones((3, 4), np.int8), np.ones((2, 4), np.int8), np.array(left), np.array(right))


def test_shapes_that_do_not_fit_raise() -> None:
    """Codes of different dim, and lists of rows of different length, raise ParameterError."""
    codes, rows = np.ones((3, 4), np.int8), np.zeros(2, dtype=np.int64)
    with pytest.raises(ParameterError, match="differ in dim"):
        pair_cosines(codes, codes[:, :3], rows, rows)
    with pytest.raises(ParameterError, match="must be equal"):
        pair_cosines(codes, codes, rows, rows[:1])
    with pytest.raises(ParameterError, match="cannot be quantised"):
        quantize(np.ones(4, dtype=np.float32))
