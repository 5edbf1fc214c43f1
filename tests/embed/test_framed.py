"""Pictures within pictures are found, straightened and cleared of glare; photographs without one stay as they are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from embed.evaluation.edits import rephotograph
from embed.framed import MAX_SIDE, framed_picture, without_glare
from embed.views import Picture, unframed
from tests.photos import synthetic_photo

CORNERS = np.array([(70, 40), (330, 62), (318, 262), (58, 240)], np.float32)


def picture(seed: int = 0) -> NDArray[np.uint8]:
    return np.asarray(synthetic_photo(seed, width=240, height=180))


def hung(of: NDArray[np.uint8], *, wall: tuple[int, int, int] = (120, 140, 90)) -> NDArray[np.uint8]:
    """A picture on a wall, seen from one side."""
    height, width = of.shape[:2]
    edges = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    mapping = cv2.getPerspectiveTransform(edges, CORNERS)
    scene = np.full((300, 400, 3), wall, np.uint8)
    seen = cv2.warpPerspective(of, mapping, (400, 300), dst=scene, borderMode=cv2.BORDER_TRANSPARENT)
    return np.asarray(seen, np.uint8)


def with_band(of: NDArray[np.uint8], color: tuple[int, int, int], width: int) -> NDArray[np.uint8]:
    banded = cv2.copyMakeBorder(of, width, width, width, width, cv2.BORDER_CONSTANT, value=color)
    return np.asarray(banded, np.uint8)


def difference(found: NDArray[np.uint8] | None, expected: NDArray[np.uint8]) -> float:
    """The mean difference of two pictures at one size, in shades."""
    assert found is not None
    found, expected = (np.asarray(Image.fromarray(each).resize((48, 48))) for each in (found, expected))
    return float(np.abs(found.astype(float) - expected.astype(float)).mean())


@pytest.mark.parametrize("seed", range(4))
def test_a_print_on_a_wall_is_cut_out_and_straightened(seed: int) -> None:
    """What comes back is the picture, not the wall around it."""
    scene = hung(picture(seed))

    assert difference(framed_picture(scene), picture(seed)) < 6
    assert difference(scene, picture(seed)) > 20


def test_frame_and_mat_are_left_out() -> None:
    """Of quadrilaterals inside each other the innermost is the picture."""
    framed = with_band(with_band(picture(), (240, 238, 230), 14), (60, 30, 20), 12)

    assert difference(framed_picture(hung(framed)), picture()) < 8


def test_a_photograph_that_shows_no_picture_has_none() -> None:
    """Smooth shapes, noise, one color and a picture that fills its image to the edges are no frames."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(noise[:5, :6]).resize((300, 200), Image.Resampling.BICUBIC))

    for image in (smooth, noise, np.full((200, 300, 3), 77, np.uint8)):
        assert framed_picture(image) is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (2, 3), (9, 9)])
def test_tiny_images_are_no_error(shape: tuple[int, int]) -> None:
    """Nothing is seen in them, and their square is still made."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)

    assert framed_picture(pixels) is None
    assert unframed(Picture.of(pixels, 32)).shape == (32, 32, 3)


def test_work_and_result_are_bounded_for_large_images() -> None:
    """What is cut out of a large image is no larger than the copy that it was looked for in."""
    large = cv2.resize(hung(picture()), (4000, 3000))

    found = framed_picture(large)

    assert difference(found, picture()) < 6
    assert found is not None
    assert max(found.shape) <= MAX_SIDE


def test_glare_is_taken_off() -> None:
    """Where something dark is near every place, a veil of white light is less than two thirds of what it was."""
    blocks = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    square = np.asarray(Image.fromarray(blocks).resize((120, 120), Image.Resampling.BILINEAR), np.float32)
    y, x = np.mgrid[-1:1:120j, -1:1:120j]
    veil = 0.6 * np.exp(-((x - 0.3) ** 2 + y**2) / 0.2)[..., None]
    veiled = ((1 - veil) * square + 255 * veil).astype(np.uint8)

    cleared = without_glare(veiled).astype(np.float32)

    assert np.abs(cleared - square).mean() < 0.67 * np.abs(veiled - square).mean()


def test_a_planted_photo_of_a_photo_is_undone() -> None:
    """Angle, frame, wall and glare of the planted edit are taken away: the square is nearer to the original's."""
    photo = synthetic_photo(3, width=384, height=256)
    copy = np.asarray(rephotograph(photo, np.random.default_rng(3)))
    original = np.asarray(photo.resize((120, 120)))

    assert difference(unframed(Picture.of(copy, 120)), original) < 0.6 * difference(copy, original)
