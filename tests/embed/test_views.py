"""Views: what crops, gray and turned copies are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from embed.embedder import load_embedder
from embed.embedder_dir import create_embedder_dir
from embed.errors import EmbedderError
from embed.evaluation.edits import caption, gray, rephotograph, rotate_10
from embed.layout import layout
from embed.preprocessing import to_square
from embed.views import NUM_VIEWS, VIEW_MARGINS, ViewEmbedder, load_view_embedder
from embed.whitening import fit_whitening

pytestmark = pytest.mark.tensorflow


def photo(seed: int = 0) -> NDArray[np.uint8]:
    """A picture whose every part has something of its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((384, 288), Image.Resampling.BICUBIC))


def views_of(views: ViewEmbedder, photos: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    squares = [np.stack(of_one_size) for of_one_size in zip(*map(views.squares, photos), strict=True)]
    return views.embed(squares)


def test_an_image_has_one_unit_row_for_each_view(tiny_embedder: str) -> None:
    """`embed` gives `(n, NUM_VIEWS, dim)` float32 unit rows, whatever the size of a batch."""
    views = load_view_embedder(tiny_embedder, batch_size=2)

    rows = views_of(views, [photo(seed) for seed in range(3)])

    assert rows.shape == (3, NUM_VIEWS, views.spec.dim)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=2), 1.0, atol=1e-5)


def test_a_view_depends_on_its_own_image_alone(tiny_embedder: str) -> None:
    """The views of an image are the same beside any others."""
    views = load_view_embedder(tiny_embedder, batch_size=2)
    photos = [photo(seed) for seed in range(3)]

    together = views_of(views, photos)
    alone = [views_of(views, [one])[0] for one in photos]

    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("area", [0.5, 0.25])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_crop_is_closer_to_a_view_than_to_the_whole(area: float, place: float) -> None:
    """With the shipped weights the nearest view of a photo finds a crop that the photo's embedding does not."""
    embedder, views = load_embedder(), load_view_embedder()
    whole = photo()
    height, width = (round(side * area**0.5) for side in whole.shape[:2])
    top, left = (round(place * (side - kept)) for side, kept in zip(whole.shape[:2], (height, width), strict=True))
    crop = whole[top : top + height, left : left + width]
    size = embedder.spec.size

    of_crop, of_whole = embedder.embed(np.stack([to_square(crop, size), to_square(whole, size)]))
    nearest = float((views_of(views, [whole])[0] @ of_crop).max())

    assert nearest > float(of_whole @ of_crop) + 0.02


@pytest.mark.parametrize(("edit", "place"), [(gray, -4), (rotate_10, -3), (caption, -2), (rephotograph, -1)])
def test_a_version_finds_a_copy_that_was_edited_so(
    edit: Callable[[Image.Image, np.random.Generator], Image.Image], place: int
) -> None:
    """One of a photo and its copy is closer to its version of the other than the two are to each other."""
    embedder, views = load_embedder(), load_view_embedder()
    whole = photo()
    copy = np.asarray(edit(Image.fromarray(whole), np.random.default_rng(0)))

    of_both = embedder.embed(np.stack([to_square(pixels, embedder.spec.size) for pixels in (whole, copy)]))
    versions = views_of(views, [whole, copy])[:, place]

    by_version = max(float(versions[0] @ of_both[1]), float(versions[1] @ of_both[0]))
    assert by_version > float(of_both[0] @ of_both[1]) + 0.01


def test_views_are_whitened_like_embeddings(tmp_path: Path) -> None:
    """Views and embeddings lie in one space: the whitening of the embedder directory applies to both."""
    plain = create_embedder_dir(tmp_path / "plain", architecture="vgg_copy", weights="seeded", size=32, dim=24)
    rows = load_embedder(tmp_path / "plain").embed(
        np.random.default_rng(0).integers(0, 256, (64, plain.size, plain.size, 3), np.uint8)
    )
    whitening = fit_whitening(rows, dim=8)
    create_embedder_dir(
        tmp_path / "white", architecture="vgg_copy", weights="seeded", size=32, dim=8, whitening=whitening
    )

    before = views_of(load_view_embedder(tmp_path / "plain"), [photo()])[0]
    after = views_of(load_view_embedder(tmp_path / "white"), [photo()])[0]

    projected = (before - whitening.mean) @ whitening.projection
    unit = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(after, unit, atol=1e-4)


def test_a_view_has_the_layout_of_its_own_part(tmp_path: Path) -> None:
    """Windows have that of the pixels they show, where these are not blank, versions that of their squares."""
    create_embedder_dir(tmp_path / "e", architecture="vgg_copy", weights="seeded", size=48, dim=24, layout_weight=0.25)
    views = load_view_embedder(tmp_path / "e")
    squares = [square[None] for square in views.squares(photo())]

    layouts = views_of(views, [photo()])[0, :, 12:] * np.sqrt(1.25) / 0.5

    first_window, last_window = squares[0][:, :45, :45], squares[1][:, -51:, -51:]
    for place, part, blank in ((0, first_window, -1), (12, last_window, -1), (13, squares[2], 1), (16, squares[-1], 1)):
        np.testing.assert_allclose(layouts[place], layout(part, dim=12, blank=blank)[0], atol=1e-4)


def test_a_black_corner_is_no_black_image() -> None:
    """With the shipped weights no window of one color takes a picture for a copy of an image of that color."""
    embedder, views = load_embedder(), load_view_embedder()
    corner = photo().copy()
    corner[:200, :260] = 0
    black = embedder.embed(np.zeros((1, embedder.spec.size, embedder.spec.size, 3), np.uint8))[0]

    assert float((views_of(views, [corner])[0] @ black - VIEW_MARGINS).max()) < 0.8


def test_an_unknown_precision_is_refused(tiny_embedder: str) -> None:
    """As `load_embedder` does."""
    with pytest.raises(EmbedderError, match="dtype='float8' is unknown"):
        load_view_embedder(tiny_embedder, dtype="float8")
