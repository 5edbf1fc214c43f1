"""The weights file of a trained embedder: Keras' own, kernels in half precision, since it goes wherever the code goes.

Rounding them moves a cosine by some 0.000001, where computing in bfloat16 moves it by 0.001.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from embed.keras_backend import keras


def save_weights(network: keras.Model, path: Path) -> None:
    """Write the weights of `network` to the `.weights.h5` file `path`, which Keras reads into float32 again."""
    network.save_weights(path)
    whole = path.with_suffix(".whole")
    path.rename(whole)
    with h5py.File(whole) as source, h5py.File(path, "w") as target:
        source.visititems(lambda name, item: _copy(name, item, target))
    whole.unlink()


def _copy(name: str, item: h5py.Group | h5py.Dataset, target: h5py.File) -> None:
    """Copy a group with its attributes or an array: kernels halved, vectors, of which variances may be large, not."""
    if isinstance(item, h5py.Dataset):
        values = item[()]
        target.create_dataset(name, data=values.astype(np.float16) if np.ndim(values) > 1 else values)
    else:
        target.require_group(name).attrs.update(item.attrs)
