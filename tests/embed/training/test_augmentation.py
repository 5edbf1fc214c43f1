"""Random views: shape, range and determinism, and edits that are switched off."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

pytestmark = pytest.mark.tensorflow


def photos(n: int = 6, size: int = 36) -> NDArray[np.float32]:
    coarse = np.random.default_rng(0).uniform(0, 255, (n, 4, 4, 3))
    return np.repeat(np.repeat(coarse, size // 4, axis=1), size // 4, axis=2).astype(np.float32)


def view(seed: int, strength: str) -> NDArray[np.float32]:
    from embed.keras_backend import keras, ops
    from embed.training import augmentation

    generator = keras.random.SeedGenerator(seed)
    edited = augmentation.random_view(photos(), getattr(augmentation, strength), size=24, seed=generator)
    rows: NDArray[np.float32] = ops.convert_to_numpy(edited)
    return rows


@pytest.mark.parametrize("strength", ["MILD", "STRONG"])
def test_views_are_pictures_of_the_asked_size(strength: str) -> None:
    """A view is `(n, size, size, 3)` float32 within 0..255, whatever was drawn."""
    for seed in range(5):
        edited = view(seed, strength)

        assert edited.shape == (6, 24, 24, 3)
        assert edited.dtype == np.float32
        assert np.isfinite(edited).all()
        assert edited.min() >= 0
        assert edited.max() <= 255


def test_the_seed_alone_decides_the_view() -> None:
    """The same seed draws the same edits, another seed draws others."""
    assert np.array_equal(view(1, "STRONG"), view(1, "STRONG"))
    assert not np.array_equal(view(1, "STRONG"), view(2, "STRONG"))


def test_each_photo_gets_its_own_edits() -> None:
    """Equal photos in one batch come out different."""
    from embed.keras_backend import keras, ops
    from embed.training.augmentation import STRONG, random_view

    same = np.tile(photos(1), (4, 1, 1, 1))
    edited = ops.convert_to_numpy(random_view(same, STRONG, size=24, seed=keras.random.SeedGenerator(0)))

    assert len(np.unique(edited.reshape(4, -1), axis=0)) == 4


def test_no_strength_leaves_the_photo_or_its_mirror() -> None:
    """With every edit at zero a view is the photo itself, mirrored or not."""
    from embed.keras_backend import keras, ops
    from embed.training.augmentation import MILD, random_view

    rates = {field.name: 0.0 for field in dataclasses.fields(MILD)}
    none = dataclasses.replace(MILD, **rates | {"min_area": 1.0, "max_zoom_out": 1.0, "max_aspect": 1.0})
    source = photos(size=24)

    edited = ops.convert_to_numpy(random_view(source, none, size=24, seed=keras.random.SeedGenerator(0)))

    for before, after in zip(source, edited, strict=True):
        assert min(np.abs(after - before).max(), np.abs(after - before[:, ::-1]).max()) < 0.1
