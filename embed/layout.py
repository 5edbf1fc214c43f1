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

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.keras_backend import layers, ops

Tensor = Any

_LUMA: Final = (0.299, 0.587, 0.114)
_STEEPNESS: Final = 4.0
_BLANK: Final = 1e-3
"""Little beside products of signs, much beside what rounding leaves of a picture of one color."""


def with_layout(rows: Tensor, layouts: Tensor, *, weight: float) -> Tensor:
    """`(..., c)` unit rows and their pictures' layouts, `(..., c)` -> `(..., 2c)` unit rows.

    The cosine of two is `(a + weight * b) / (1 + weight)`: `a` that of the given rows, `b` that of the layouts.
    """
    both = ops.concatenate([rows, float(np.sqrt(weight)) * layouts], axis=-1)
    return layers.UnitNormalization(dtype="float32")(both)


def layout(pictures: Tensor, *, dim: int, blank: float = 1.0) -> Tensor:
    """`(n, side, side, 3)` in 0..255 -> `(n, dim)` unit rows, the same for mirror images and quarter turns.

    A picture of one color has no signs; all its columns are that of `blank`. Windows get -1: what has a black corner is
    no copy of a black image.
    """
    low, high = frequencies(dim)
    waves = cosines(pictures.shape[1], count=int(high[-1]))
    gray = ops.sum(ops.cast(pictures, "float32") * np.array(_LUMA, np.float32), axis=-1)
    spectrum = ops.matmul(ops.matmul(waves, gray), waves.T)
    flat = ops.reshape(spectrum, (-1, spectrum.shape[1] * spectrum.shape[2]))
    # Amplitudes of natural pictures fall like 1 / frequency, so this makes them equal on average.
    across, down = (
        ops.take(flat, (rows - 1) * len(waves) + columns - 1, axis=1) * np.hypot(low, high).astype(np.float32)
        for rows, columns in ((low, high), (high, low))
    )
    deviation = ops.sqrt(ops.mean(ops.square(across) + ops.square(down), axis=1, keepdims=True) / 2 + 1.0)
    signs = [ops.tanh(_STEEPNESS * amplitudes / deviation) for amplitudes in (across, down)]
    return layers.UnitNormalization(dtype="float32")(signs[0] * signs[1] + _BLANK * blank)


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
