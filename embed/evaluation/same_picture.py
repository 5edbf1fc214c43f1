"""Files of a photo collection that hold one and the same picture, so that nobody counts finding them as a mistake.

Decided on plain pixels, with none of the descriptors under test: two recompressions of a picture differ by about one
gray level at 32 x 32, the two nearest different pictures that were looked at by 8 (packshots on white), other photos
by 20 and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embed.decoding import decode_image

THUMBNAIL_SIZE = 32
MAX_DIFFERENCE = 3.0


def same_pictures(photos: Sequence[Path]) -> list[tuple[int, int]]:
    """Pairs `left < right` of positions in `photos` whose thumbnails differ by at most `MAX_DIFFERENCE` (RMS)."""
    return same_thumbnails(np.stack([thumbnail(path) for path in photos]))


def same_thumbnails(thumbnails: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs `left < right` of rows of `(n, d)` thumbnails in 0..255, in ascending order."""
    squares = np.einsum("nd,nd->n", thumbnails, thumbnails)
    pairs = []
    for left in range(len(thumbnails) - 1):
        squared = squares[left + 1 :] + squares[left] - 2.0 * (thumbnails[left + 1 :] @ thumbnails[left])
        for right in np.flatnonzero(squared <= MAX_DIFFERENCE**2 * thumbnails.shape[1]):
            pairs.append((left, left + 1 + int(right)))
    return pairs


def are_same_thumbnails(one: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the `(n, d)` thumbnails show the picture of the one `(d,)`."""
    same: NDArray[np.bool_] = np.mean((others - one) ** 2, axis=1) <= MAX_DIFFERENCE**2
    return same


def thumbnail(path: Path) -> NDArray[np.float64]:
    """`(d,)` gray levels in 0..255; raises ImageRejected."""
    photo = Image.fromarray(decode_image(path.read_bytes()))
    small = photo.resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64).ravel()
