"""Layout: what lies where in a picture, as signs of its low frequencies in gray, for the last columns of an embedding.

Color casts, filters, stickers and JPEG hardly change them and crops change all of them, which is the other way round
for the network: a pair that one of the two finds alike is more alike in their sum. A column is the product of two
signs. So pictures that only resemble each other, with three signs in four the same, agree in 0.62 of the columns,
hardly more than strangers' half.

Sources: the perceptual hash pHash, Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010,
section 3.2.2, with soft edges here, so that rounding moves no cosine by much; products of signs, the parity features of
Kar and Karnick, arXiv 1201.6530, for a kernel's square.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]

_LUMA: Final = np.array((0.299, 0.587, 0.114), np.float32)
_STEEPNESS: Final = np.float32(4.0)
_BLANK: Final = 1e-3
"""Little beside products of signs, much beside what rounding leaves of a picture of one color."""


def with_layout(rows: Rows, layouts: Rows, *, weight: float) -> Rows:
    """`(n, c)` unit rows and their pictures' layouts, `(n, c)` -> `(n, 2c)` unit rows.

    The cosine of two is `(a + weight * b) / (1 + weight)`: `a` that of the given rows, `b` that of the layouts.
    """
    of_rows, of_layouts = (np.float32(np.sqrt(part / (1 + weight))) for part in (1, weight))
    return np.concatenate([of_rows * rows, of_layouts * layouts], axis=-1)


def layout(pictures: NDArray[np.uint8], *, dim: int, blank: float = 1.0) -> Rows:
    """`(n, side, side, 3)` uint8 RGB -> `(n, dim)` unit rows, the same for mirror images and quarter turns.

    A picture of one color has no signs; all its columns are that of `blank`. Windows get -1: what has a black corner is
    no copy of a black image.
    """
    low, high = frequencies(dim)
    waves = cosines(pictures.shape[1], count=int(high[-1]))
    gray = np.stack([picture.astype(np.float32) @ _LUMA for picture in pictures])
    spectrum = waves @ gray @ waves.T
    # Amplitudes of natural pictures fall like 1 / frequency, so this makes them equal on average.
    evened = np.hypot(low, high).astype(np.float32)
    across, down = (spectrum[:, rows - 1, columns - 1] * evened for rows, columns in ((low, high), (high, low)))
    deviation = np.sqrt((np.square(across) + np.square(down)).mean(axis=1, keepdims=True) / 2 + 1)
    signs = [np.tanh(_STEEPNESS * amplitudes / deviation) for amplitudes in (across, down)]
    products = signs[0] * signs[1] + np.float32(_BLANK * blank)
    unit: Rows = products / np.sqrt(np.square(products).sum(axis=1, keepdims=True))
    return unit


def frequencies(dim: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lower and the higher frequency of each of `dim` columns, in half waves a side, lowest first.

    A column multiplies the amplitude of one across and the other down with that of the other across and the one down: a
    quarter turn exchanges these two. A mirror image changes the sign of odd frequencies along its axis, so the two are
    both odd or both even, and their product stays.

    >>> frequencies(5)
    (array([1, 2, 1, 3, 2]), array([3, 4, 5, 5, 6]))
    """
    highest = 3 + int(2 * np.sqrt(dim))
    pairs = [(low, high) for high in range(3, highest + 1) for low in range(2 - high % 2, high - 1, 2)]
    low, high = np.array(pairs[:dim]).T
    return low, high


def cosines(size: int, *, count: int) -> NDArray[np.float32]:
    """The rows 1 to `count` of the orthonormal DCT-II of `size` values, `(count, size)`."""
    turns = np.outer(np.arange(1, count + 1), 2 * np.arange(size) + 1) / (2 * size)
    rows: NDArray[np.float32] = (np.sqrt(2 / size) * np.cos(np.pi * turns)).astype(np.float32)
    return rows
