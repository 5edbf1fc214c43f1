"""Seeded pseudo-random rotations of embeddings, the randomness behind terms and sketches.

A rotation is three rounds of "flip the sign of each coordinate at random, then apply the Walsh-Hadamard transform".
It costs `dim * log2(dim)` additions where a Gaussian matrix costs `dim ** 2` multiplications, and it makes the same
additions in the same order whatever rows stand next to a row. So a row's hash depends on that row alone: not on the
batch, the partition, the BLAS or the processor. Only additions, subtractions and sign flips happen, unscaled: the
norm of a row grows by `dim ** 1.5`, which neither an argmax nor a sign can see.

All rotations share their first two rounds, which spread a row over all coordinates, and have only the third of their
own: many rotations of a row cost little more than a third, and keep as many near pairs together (`docs/benchmarks.md`).

Source: Andoni, Indyk, Laarhoven, Razenshteyn and Schmidt, "Practical and Optimal LSH for Angular Distance",
arXiv 1509.02897, section 5.1 (pseudo-random rotations).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.errors import ParameterError

LANES = 16
NUM_ROUNDS = 3
MAX_DIM = 1 << 16
_EXPONENT = np.uint32(0x7F800000)
"""The bits of a float32 that are all set in NaN and infinity alone."""


def rotated_dim(dim: int) -> int:
    """The smallest power of two that holds `dim` coordinates; the rest are zeros.

    >>> rotated_dim(256), rotated_dim(200), rotated_dim(1)
    (256, 256, 1)
    """
    return 1 << (dim - 1).bit_length()


def rotation_signs(*, num_rotations: int, dim: int, seed: int, stream: int) -> NDArray[np.float32]:
    """The signs `(num_rotations, 3, dim)` float32 of the rotations of `seed`; another `stream` shares nothing.

    The first two rounds are those of the first rotation.

    Only raw words of the bit generator are used: numpy promises that these never change between its versions.
    """
    num_signs = num_rotations * NUM_ROUNDS * dim
    words = np.random.PCG64(np.random.SeedSequence([seed, stream])).random_raw(-(-num_signs // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[:num_signs]
    signs = (1.0 - 2.0 * bits.astype(np.float32)).astype(np.float32).reshape(num_rotations, NUM_ROUNDS, dim)
    signs[1:, :-1] = signs[:1, :-1]
    return signs


def checked_embeddings(embeddings: NDArray[np.float32], *, dim: int) -> NDArray[np.float32]:
    """`embeddings` as contiguous `(n, dim)` float32; raises ParameterError for another shape or non-finite values."""
    if embeddings.ndim != 2 or embeddings.shape[1] != dim:
        raise ParameterError(f"embeddings of shape {embeddings.shape} do not fit dim={dim}; pass an (n, {dim}) array")
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)
    bad_row = first_non_finite_row(rows)
    if bad_row >= 0:
        raise ParameterError(f"embedding in row {bad_row} holds NaN or infinity; embed that image again or reject it")
    return rows


@njit(cache=True, nogil=True)
def first_non_finite_row(rows: NDArray[np.float32]) -> int:
    """The first row with a NaN or an infinity, -1 if there is none."""
    words = rows.view(np.uint32)
    for row in range(len(rows)):
        # Integers, whose largest is found by vectors: sums of floats have to be made one after the other.
        largest = np.uint32(0)
        for k in range(np.uint64(rows.shape[1])):
            largest = max(largest, words[row, k] & _EXPONENT)
        if largest == _EXPONENT:
            return row
    return -1


@njit(cache=True, nogil=True)
def load_lanes(rows: NDArray[np.float32], first_row: int, lanes: NDArray[np.float32]) -> int:
    """Up to 16 rows, transposed into `lanes[coordinate * 16 + lane]` and padded with zeros; returns how many."""
    num_rows = min(LANES, len(rows) - first_row)
    lanes[:] = 0.0
    for lane in range(num_rows):
        for k in range(rows.shape[1]):
            lanes[k * LANES + lane] = rows[first_row + lane, k]
    return num_rows


@njit(cache=True, nogil=True)
def rotate_lanes(lanes: NDArray[np.float32], signs: NDArray[np.float32], rotated: NDArray[np.float32]) -> None:
    """One rotation, `signs` `(3, dim)`, of the 16 rows in `lanes`, written to `rotated` in the same layout."""
    spread_lanes(lanes, signs, rotated)
    turn_lanes(rotated, signs, rotated)


@njit(cache=True, nogil=True)
def spread_lanes(lanes: NDArray[np.float32], signs: NDArray[np.float32], spread: NDArray[np.float32]) -> None:
    """The rounds that all rotations share."""
    _flip(lanes, signs[0], spread)
    _hadamard(spread)
    for number in range(1, NUM_ROUNDS - 1):
        _flip(spread, signs[number], spread)
        _hadamard(spread)


@njit(cache=True, nogil=True)
def turn_lanes(spread: NDArray[np.float32], signs: NDArray[np.float32], rotated: NDArray[np.float32]) -> None:
    """The last round, of one rotation alone, of what `spread_lanes` gave."""
    _flip(spread, signs[NUM_ROUNDS - 1], rotated)
    _hadamard(rotated)


def rotations_in_lanes(signs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The signs `(num_rotations, 3, dim)` for `rotate_row`: `(num_groups, 3, dim * 16)`, padded with ones."""
    num_rotations, num_rounds, dim = signs.shape
    num_groups = -(-num_rotations // LANES)
    padded = np.ones((num_groups * LANES, num_rounds, dim), dtype=np.float32)
    padded[:num_rotations] = signs
    grouped = padded.reshape(num_groups, LANES, num_rounds, dim).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(grouped).reshape(num_groups, num_rounds, dim * LANES)


@njit(cache=True, nogil=True)
def rotate_row(row: NDArray[np.float32], signs: NDArray[np.float32], rotated: NDArray[np.float32]) -> None:
    """All rotations of one row: the lanes of each group hold rotations where those of `rotate_lanes` hold rows.

    `signs` come from `rotations_in_lanes`, `rotated` is `(num_groups, dim * 16)`. A query pays for one row, not for
    sixteen, and makes the same additions in the same order.
    """
    for group in range(signs.shape[0]):
        lanes, flips = rotated[group], signs[group]
        lanes[:] = 0.0
        for k in range(row.size):
            value = row[k]
            target, flip = lanes[k * LANES : (k + 1) * LANES], flips[0, k * LANES : (k + 1) * LANES]
            for lane in range(LANES):
                target[lane] = value * flip[lane]
        _hadamard(lanes)
        for number in range(1, NUM_ROUNDS):
            flip = flips[number]
            for i in range(lanes.size):
                lanes[i] *= flip[i]
            _hadamard(lanes)


@njit(cache=True, nogil=True)
def _flip(source: NDArray[np.float32], signs: NDArray[np.float32], target: NDArray[np.float32]) -> None:
    for k in range(signs.size):
        sign = signs[k]
        source_lanes, target_lanes = source[k * LANES : (k + 1) * LANES], target[k * LANES : (k + 1) * LANES]
        for lane in range(LANES):
            target_lanes[lane] = source_lanes[lane] * sign


@njit(cache=True, nogil=True)
def _hadamard(lanes: NDArray[np.float32]) -> None:
    """The unscaled Walsh-Hadamard transform of 16 rows in place, two butterfly stages per pass over memory."""
    half = LANES
    while half < lanes.size:
        if 2 * half == lanes.size:
            low, high = lanes[:half], lanes[half:]
            for j in range(half):
                a, b = low[j], high[j]
                low[j], high[j] = a + b, a - b
            return
        for first in range(0, lanes.size, 4 * half):
            p = lanes[first : first + half]
            q = lanes[first + half : first + 2 * half]
            r = lanes[first + 2 * half : first + 3 * half]
            s = lanes[first + 3 * half : first + 4 * half]
            for j in range(half):
                a, b, c, d = p[j], q[j], r[j], s[j]
                a, b, c, d = a + b, a - b, c + d, c - d
                p[j], q[j], r[j], s[j] = a + c, b + d, a - c, b - d
        half *= 4
