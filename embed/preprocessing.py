"""Decoded pixels to the fixed square that a network takes; between `decoding` and `embedder`, without Keras."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SQUEEZE_BICUBIC: Final = "squeeze_bicubic"
"""The name that `embedder.json` gives to `to_square`."""


def to_square(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """`(h, w, 3)` uint8 RGB squeezed to `(size, size, 3)` uint8, antialiased; a change of aspect leaves no trace."""
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(squeezed(Image.fromarray(pixels), size))


def squeezed(image: Image.Image, size: int) -> Image.Image:
    """As `to_square`, from Pillow's image to its image, for who makes several squares of one."""
    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
