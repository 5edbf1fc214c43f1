"""Decoded pixels to the fixed square that a network takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def to_square(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`(h, w, 3)` uint8 RGB squeezed to `(size, size, 3)` uint8, antialiased; a changed aspect ratio leaves no trace."""
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0))
