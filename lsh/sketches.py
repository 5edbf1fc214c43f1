"""Embeddings to 64-bit sketches, whose Hamming distance tells hopeless pairs apart before any vector is read.

Bit `b` is the sign of coordinate `b` of a seeded rotation, so two embeddings at angle `theta` differ in about
`64 * theta / pi` bits. Made beside the terms, carried once per doc through the blocked shuffle, read by `candidates`.

Source: sign random projections, Charikar, STOC 2002, section 3.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.bits import count_ones
from lsh.errors import ParameterError
from lsh.rotations import LANES, checked_embeddings, load_lanes, rotate_lanes, rotated_dim, rotation_signs

BITS_PER_SKETCH = 64
WORDS_PER_SKETCH = 4
_SKETCHES_STREAM = 2


def sketches(embeddings: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.uint64]:
    """`(n, dim)` float32 -> `(n,)` uint64; a row's sketch depends on that row alone, bit for bit.

    Raises ParameterError for an array that is not two-dimensional or holds NaN or infinity.
    """
    return long_sketches(embeddings, num_words=1, seed=seed)[:, 0]


def long_sketches(embeddings: NDArray[np.float32], *, num_words: int, seed: int = 0) -> NDArray[np.uint64]:
    """`(n, dim)` float32 -> `(n, num_words)` uint64 of 64 bits each; the first word is the sketch.

    More bits tell pairs apart more sharply. Raises as `sketches` does.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] == 0:
        raise ParameterError(f"embeddings of shape {embeddings.shape} cannot be sketched; pass an (n, dim) array")
    rows = checked_embeddings(embeddings, dim=embeddings.shape[1])
    result = np.zeros((rows.shape[0], num_words), dtype=np.uint64)
    sketch_rows(rows, sketch_signs(dim=rows.shape[1], num_words=num_words, seed=seed), result)
    return result


def sketch_signs(*, dim: int, num_words: int, seed: int) -> NDArray[np.float32]:
    """Signs `(num_rotations, 3, rotation_dim)` of as many rotations as `num_words` words take their bits from."""
    if num_words < 1:
        raise ParameterError(f"num_words={num_words} is out of range; pass 1 or more")
    rotation_dim = rotated_dim(max(dim, BITS_PER_SKETCH))
    num_rotations = -(-num_words * BITS_PER_SKETCH // rotation_dim)
    return rotation_signs(num_rotations=num_rotations, dim=rotation_dim, seed=seed, stream=_SKETCHES_STREAM)


def hamming_distances(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Number of differing bits, sketch by sketch, of two `(n,)` or `(n, num_words)` uint64 arrays; `(n,)` int64."""
    if left.shape != right.shape or left.ndim not in (1, 2):
        raise ParameterError(
            f"sketches of shapes {left.shape} and {right.shape} cannot be compared; pass equal (n,) or (n, num_words)"
        )
    num_words = left.shape[1] if left.ndim == 2 else 1
    words = (sides.astype(np.uint64, copy=False).reshape(len(left), num_words) for sides in (left, right))
    return _hamming_distances(*words)  # type: ignore[no-any-return]


def expected_distance(cosine: float, *, num_words: int = 1) -> float:
    """The mean Hamming distance of the sketches of two embeddings: `64 * num_words * acos(cosine) / pi`.

    >>> round(expected_distance(0.8), 1), round(expected_distance(0.8, num_words=4), 1)
    (13.1, 52.4)
    """
    return num_words * BITS_PER_SKETCH * math.acos(cosine) / math.pi


@njit(cache=True, nogil=True)
def sketch_rows(rows: NDArray[np.float32], signs: NDArray[np.float32], result: NDArray[np.uint64]) -> None:
    """Fills `result`, zeros before; words follow one another through the coordinates of a rotation, then the next."""
    words_per_rotation = signs.shape[2] // BITS_PER_SKETCH
    lanes, rotated = np.empty(signs.shape[2] * LANES, np.float32), np.empty(signs.shape[2] * LANES, np.float32)
    for first_row in range(0, rows.shape[0], LANES):
        num_rows = load_lanes(rows, first_row, lanes)
        for word in range(result.shape[1]):
            if word % words_per_rotation == 0:
                rotate_lanes(lanes, signs[word // words_per_rotation], rotated)
            first = (word % words_per_rotation) * BITS_PER_SKETCH
            for lane in range(num_rows):
                sketch = np.uint64(0)
                for bit in range(BITS_PER_SKETCH):
                    sketch |= np.uint64(rotated[(first + bit) * LANES + lane] < 0) << np.uint64(bit)
                result[first_row + lane, word] = sketch


@njit(cache=True, nogil=True)
def _hamming_distances(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.int64]:
    distances = np.zeros(len(left), np.int64)
    for i in range(len(left)):
        for word in range(left.shape[1]):
            distances[i] += np.int64(count_ones(left[i, word] ^ right[i, word]))
    return distances
