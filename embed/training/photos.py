"""The training photos, held in memory as small squares, and the order in which `fit` sees them."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.decoding import ImageRejected, decode_image
from embed.errors import TrainingError
from embed.keras_backend import keras
from embed.preprocessing import to_square

MIN_BATCHES = 2


def load_photos(folder: Path, *, size: int, batch_size: int, most: int | None = None) -> NDArray[np.uint8]:
    """Every decodable image under `folder`, in path order, as `(n, size, size, 3)` uint8; raises TrainingError.

    Files that are no images are passed over; fewer than two batches of photos are an error. With `most` at most so many
    files are read, evenly spread over the paths.
    """

    def load(path: Path) -> NDArray[np.uint8] | None:
        try:
            return to_square(decode_image(path.read_bytes()), size)
        except (ImageRejected, OSError):
            return None

    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a directory; give the folder that holds the training photos")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if most is not None:
        paths = [paths[number * len(paths) // most] for number in range(most)] if len(paths) > most else paths
    with ThreadPoolExecutor() as pool:
        photos = [photo for photo in pool.map(load, paths) if photo is not None]
    if len(photos) < MIN_BATCHES * batch_size:
        raise TrainingError(
            f"{folder} holds {len(photos)} readable images in {len(paths)} files; batches of {batch_size} need at "
            f"least {MIN_BATCHES * batch_size}, and a useful embedder 20,000"
        )
    return np.stack(photos)


def photos_sha256(photos: NDArray[np.uint8]) -> str:
    """The identity of a training set: pixels and order."""
    return hashlib.sha256(photos.data).hexdigest()


class PhotoBatches(keras.utils.PyDataset):
    """Whole batches of photos, in the order that `start_epoch` was given; in path order before."""

    def __init__(self, photos: NDArray[np.uint8], *, batch_size: int) -> None:
        super().__init__()
        self.photos = photos
        self._batch_size = batch_size
        self._order = np.arange(len(photos))

    def start_epoch(self, order: NDArray[np.int64]) -> None:
        """Use `order`, a permutation of the photos, from now on."""
        self._order = order

    def __len__(self) -> int:
        return len(self.photos) // self._batch_size

    def __getitem__(self, index: int) -> tuple[Any]:
        rows = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        return (self.photos[np.sort(rows)],)
