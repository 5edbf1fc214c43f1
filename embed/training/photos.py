"""The training photos, held in memory as small squares, and the order in which `fit` sees them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from embed.decoding import ImageRejected, decode_image
from embed.errors import TrainingError
from embed.preprocessing import to_square

MIN_PHOTOS = 256


def load_photos(folder: Path, *, size: int) -> NDArray[np.uint8]:
    """Every decodable image under `folder`, in path order, as `(n, size, size, 3)` uint8; raises TrainingError."""

    def load(path: Path) -> NDArray[np.uint8] | None:
        try:
            return to_square(decode_image(path.read_bytes()), size)
        except ImageRejected:
            return None

    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        photos = [photo for photo in pool.map(load, paths) if photo is not None]
    if len(photos) < MIN_PHOTOS:
        raise TrainingError(
            f"{folder} holds {len(photos)} readable images; training needs at least {MIN_PHOTOS}, better 20,000"
        )
    return np.stack(photos)


class PhotoBatches(keras.utils.PyDataset):
    """Whole batches of photos, in an order that only `seed` and the number of the epoch decide."""

    def __init__(self, photos: NDArray[np.uint8], *, batch_size: int, seed: int) -> None:
        super().__init__()
        self._photos = photos
        self._batch_size = batch_size
        self._seed = seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._photos))

    def __len__(self) -> int:
        return len(self._photos) // self._batch_size

    def __getitem__(self, index: int) -> tuple[Any]:
        rows = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        return (self._photos[np.sort(rows)],)
