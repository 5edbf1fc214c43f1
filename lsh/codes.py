"""Embeddings to int8 codes, and exact cosines of pairs of codes.

A quarter of the bytes of the embedding with a cosine within about 0.002 of it. Dot products and norms are integers,
so a pair's cosine is the same on every machine and in every batch; selection and the lookup service verify with it.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.errors import ParameterError
from lsh.rotations import MAX_DIM, checked_embeddings

MAX_LEVEL = 127


def quantize(embeddings: NDArray[np.float32]) -> NDArray[np.int8]:
    """`(n, dim)` float32 -> `(n, dim)` int8, each row scaled so that its largest magnitude becomes 127.

    A row of zeros stays zeros. Raises ParameterError for another shape, NaN or infinity.
    """
    if embeddings.ndim != 2 or not 0 < embeddings.shape[1] <= MAX_DIM:
        raise ParameterError(
            f"embeddings of shape {embeddings.shape} cannot be quantised; pass (n, dim) with dim in 1..{MAX_DIM}"
        )
    rows = checked_embeddings(embeddings, dim=embeddings.shape[1])
    codes = np.empty(rows.shape, dtype=np.int8)
    quantize_rows(rows, codes)
    return codes


def unit_rows(codes: NDArray[np.int8]) -> NDArray[np.float32]:
    """`(n, dim)` int8 codes -> `(n, dim)` float32 unit rows that have these codes; a row of zeros stays zeros."""
    rows = codes.astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(rows, lengths, out=rows, where=lengths > 0)
    return unit


def pair_cosines(
    left_codes: NDArray[np.int8],
    right_codes: NDArray[np.int8],
    left_rows: NDArray[np.int64],
    right_rows: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Cosine of `left_codes[left_rows[i]]` and `right_codes[right_rows[i]]` for each `i`, `(m,)` float32.

    Codes are `(a, dim)` and `(b, dim)` int8; a row of zeros has cosine 0 with everything. Raises ParameterError for
    shapes that do not fit and for rows outside the codes.
    """
    if left_codes.ndim != 2 or right_codes.ndim != 2 or left_codes.shape[1] != right_codes.shape[1]:
        raise ParameterError(f"codes of shapes {left_codes.shape} and {right_codes.shape} differ in dim")
    if left_codes.shape[1] > MAX_DIM:
        raise ParameterError(f"codes of dim={left_codes.shape[1]} are out of range 1..{MAX_DIM}")
    if left_rows.shape != right_rows.shape or left_rows.ndim != 1:
        raise ParameterError(f"left_rows {left_rows.shape} and right_rows {right_rows.shape} must be equal (m,)")
    left = _checked_rows("left_rows", left_rows, left_codes.shape[0])
    right = _checked_rows("right_rows", right_rows, right_codes.shape[0])
    cosines = np.empty(left.size, dtype=np.float32)
    _pair_cosines(np.ascontiguousarray(left_codes), np.ascontiguousarray(right_codes), left, right, cosines)
    return cosines


def _checked_rows(name: str, rows: NDArray[np.int64], num_codes: int) -> NDArray[np.int64]:
    if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= num_codes):
        raise ParameterError(
            f"{name} holds {int(rows.min())}..{int(rows.max())}, out of range 0..{num_codes - 1} of the codes given"
        )
    return np.ascontiguousarray(rows, dtype=np.int64)


@njit(cache=True, nogil=True)
def quantize_rows(rows: NDArray[np.float32], codes: NDArray[np.int8]) -> None:
    """Fills `codes` `(n, dim)` as `quantize` does."""
    for i in range(rows.shape[0]):
        largest = np.float32(0.0)
        for k in range(rows.shape[1]):
            largest = max(largest, abs(rows[i, k]))
        if largest == 0:
            codes[i, :] = 0
            continue
        for k in range(rows.shape[1]):
            codes[i, k] = np.int8(np.rint(np.float64(rows[i, k]) * MAX_LEVEL / np.float64(largest)))


@njit(cache=True, nogil=True)
def code_cosine(left: NDArray[np.int8], right: NDArray[np.int8]) -> np.float32:
    """The cosine of two codes `(dim,)`, for kernels, as `pair_cosines` has it."""
    squares = np.float64(_dot(left, left)) * np.float64(_dot(right, right))
    return np.float32(_dot(left, right) / np.sqrt(squares)) if squares > 0 else np.float32(0.0)


@njit(cache=True, nogil=True)
def _dot(left: NDArray[np.int8], right: NDArray[np.int8]) -> np.int32:
    # 127 * 127 * 65,536 < 2 ** 31: the sum of the largest dim allowed still fits.
    total = np.int32(0)
    for k in range(left.size):
        total += np.int32(left[k]) * np.int32(right[k])
    return total


@njit(cache=True, nogil=True)
def _pair_cosines(
    left_codes: NDArray[np.int8],
    right_codes: NDArray[np.int8],
    left_rows: NDArray[np.int64],
    right_rows: NDArray[np.int64],
    cosines: NDArray[np.float32],
) -> None:
    left_squares = np.empty(left_codes.shape[0], np.float64)
    for i in range(left_codes.shape[0]):
        left_squares[i] = _dot(left_codes[i], left_codes[i])
    right_squares = np.empty(right_codes.shape[0], np.float64)
    for i in range(right_codes.shape[0]):
        right_squares[i] = _dot(right_codes[i], right_codes[i])
    for i in range(cosines.size):
        left, right = left_rows[i], right_rows[i]
        squares = left_squares[left] * right_squares[right]
        if squares == 0:
            cosines[i] = 0.0
            continue
        cosines[i] = np.float32(_dot(left_codes[left], right_codes[right]) / np.sqrt(squares))
