"""Look-alikes composed of photos: what is cut out, and how the members of a family are alike and different."""

from __future__ import annotations

from itertools import cycle, islice

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from embed.errors import TrainingError
from embed.training.composed import (
    DRAWS_PER_TEXTURE,
    PATTERNS_PER_OUTLINE,
    THINGS_PER_GROUND,
    find_cutouts,
    patterns_in_outlines,
    textures_drawn_again,
    things_on_grounds,
    with_lookalikes,
)

SIZE = 96


def packshot(seed: int) -> NDArray[np.uint8]:
    """A patterned ellipse on white."""
    rng = np.random.default_rng(seed)
    pattern = Image.fromarray(rng.integers(0, 200, (6, 6, 3), dtype=np.uint8)).resize((SIZE, SIZE))
    mask = Image.new("L", (SIZE, SIZE))
    half_width, half_height = rng.integers(18, 32, 2).tolist()
    middle = SIZE // 2
    box = (middle - half_width, middle - half_height, middle + half_width, middle + half_height)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    picture = Image.new("RGB", (SIZE, SIZE), "white")
    picture.paste(pattern, mask=mask)
    return np.asarray(picture)


def scene(seed: int) -> NDArray[np.uint8]:
    """A picture that fills its frame."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def photos() -> NDArray[np.uint8]:
    """Fifty packshots, then ten scenes."""
    return np.stack([packshot(seed) for seed in range(50)] + [scene(seed) for seed in range(10)])


def distance(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    return float(np.abs(left - right).mean())


def test_things_on_a_flat_ground_are_cut_out_and_nothing_else(photos: NDArray[np.uint8]) -> None:
    """Each packshot gives its thing, close to the ellipse; a scene gives none."""
    cutouts = list(find_cutouts(photos, np.random.default_rng(0)))
    assert {cutout.photo for cutout in cutouts} <= set(range(50))
    assert len(cutouts) >= 40
    assert all(0.7 < cutout.mask.mean() < 0.85 for cutout in cutouts)  # an ellipse fills 0.785 of its box


def test_a_family_shares_its_ground_and_shows_different_things(photos: NDArray[np.uint8]) -> None:
    """Within a family the upper corner is nearly the same and the middle is not."""
    rng = np.random.default_rng(1)
    things = cycle(find_cutouts(photos, rng))
    family = list(islice(things_on_grounds(things, SIZE, rng), THINGS_PER_GROUND))
    corners = [picture[:8, :8].mean() for picture in family]
    middles = [picture[32:64, 32:64] for picture in family]
    assert max(corners) - min(corners) < 60
    assert min(distance(middles[0], other) for other in middles[1:]) > 8


def test_an_outline_is_filled_with_different_patterns(photos: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(2)
    things = cycle(find_cutouts(photos, rng))
    family = list(islice(patterns_in_outlines(things, photos, rng), PATTERNS_PER_OUTLINE))
    middles = [picture[32:64, 32:64] for picture in family]
    assert min(distance(middles[0], other) for other in middles[1:]) > 8


def test_a_texture_drawn_again_has_the_same_spectrum_and_other_pixels(photos: NDArray[np.uint8]) -> None:
    first, second = islice(textures_drawn_again(photos, np.random.default_rng(3)), DRAWS_PER_TEXTURE - 2)
    spectra = [
        np.abs(np.fft.fft2(picture.mean(axis=2) - picture.mean())) / picture.std() for picture in (first, second)
    ]
    assert np.corrcoef(spectra[0].ravel(), spectra[1].ravel())[0, 1] > 0.9
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.5


def test_photos_that_were_cut_from_are_left_out(photos: NDArray[np.uint8]) -> None:
    """The thing on another ground would be a copy of its photo, and training would push copies apart."""
    made = with_lookalikes(photos, num=80, seed=0)
    kept = {picture.tobytes() for picture in made[:-80]}
    used = [number for number in range(len(photos)) if photos[number].tobytes() not in kept]
    assert used
    assert max(used) < 50
    assert made.shape[1:] == photos.shape[1:]
    assert made.dtype == np.uint8


def test_the_same_seed_composes_the_same(photos: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(with_lookalikes(photos, num=80, seed=4), with_lookalikes(photos, num=80, seed=4))


def test_photos_without_single_things_are_refused() -> None:
    scenes = np.stack([scene(seed) for seed in range(40)])
    with pytest.raises(TrainingError, match="only 0 of 40 are such; set it to 0"):
        with_lookalikes(scenes, num=80, seed=0)
