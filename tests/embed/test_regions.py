"""Regions: what a crop is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from embed.embedder import load_embedder
from embed.embedder_dir import create_embedder_dir
from embed.errors import EmbedderError
from embed.preprocessing import to_square
from embed.regions import NUM_REGIONS, RegionEmbedder, load_region_embedder
from embed.whitening import fit_whitening

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]


def photo(seed: int = 0) -> NDArray[np.uint8]:
    """A picture whose every part has something of its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((384, 288), Image.Resampling.BICUBIC))


def regions_of(regions: RegionEmbedder, photos: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    squares = [np.stack(zoomed) for zoomed in zip(*map(regions.squares, photos), strict=True)]
    return regions.embed(squares)


def test_an_image_has_one_unit_row_for_each_region(tiny_embedder: str) -> None:
    """`embed` gives `(n, NUM_REGIONS, dim)` float32 unit rows, whatever the size of a batch."""
    regions = load_region_embedder(tiny_embedder, batch_size=2)

    rows = regions_of(regions, [photo(seed) for seed in range(3)])

    assert rows.shape == (3, NUM_REGIONS, regions.spec.dim)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=2), 1.0, atol=1e-5)


def test_a_region_depends_on_its_own_image_alone(tiny_embedder: str) -> None:
    """The regions of an image are the same beside any others."""
    regions = load_region_embedder(tiny_embedder, batch_size=2)
    photos = [photo(seed) for seed in range(3)]

    together = regions_of(regions, photos)
    alone = [regions_of(regions, [one])[0] for one in photos]

    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("area", [0.5, 0.25])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_crop_is_closer_to_a_region_than_to_the_whole(area: float, place: float) -> None:
    """With the shipped weights the nearest region of a photo finds a crop that the photo's embedding does not."""
    embedder, regions = load_embedder(), load_region_embedder()
    whole = photo()
    height, width = (round(side * area**0.5) for side in whole.shape[:2])
    top, left = (round(place * (side - kept)) for side, kept in zip(whole.shape[:2], (height, width), strict=True))
    crop = whole[top : top + height, left : left + width]
    size = embedder.spec.size

    of_crop, of_whole = embedder.embed(np.stack([to_square(crop, size), to_square(whole, size)]))
    nearest = float((regions_of(regions, [whole])[0] @ of_crop).max())

    assert nearest > float(of_whole @ of_crop) + 0.02


def test_regions_are_whitened_like_embeddings(tmp_path: Path) -> None:
    """Regions and embeddings lie in one space: the whitening of the embedder directory applies to both."""
    plain = create_embedder_dir(tmp_path / "plain", architecture="vgg_copy", weights="seeded", size=32, dim=24)
    rows = load_embedder(tmp_path / "plain").embed(
        np.random.default_rng(0).integers(0, 256, (64, plain.size, plain.size, 3), np.uint8)
    )
    whitening = fit_whitening(rows, dim=8)
    create_embedder_dir(
        tmp_path / "white", architecture="vgg_copy", weights="seeded", size=32, dim=8, whitening=whitening
    )

    before = regions_of(load_region_embedder(tmp_path / "plain"), [photo()])[0]
    after = regions_of(load_region_embedder(tmp_path / "white"), [photo()])[0]

    projected = (before - whitening.mean) @ whitening.projection
    unit = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(after, unit, atol=1e-4)


def test_an_unknown_precision_is_refused(tiny_embedder: str) -> None:
    """As `load_embedder` does."""
    with pytest.raises(EmbedderError, match="dtype='float8' is unknown"):
        load_region_embedder(tiny_embedder, dtype="float8")
