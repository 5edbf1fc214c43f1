"""Rules of the planted edits."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from embed.evaluation.edits import ALL_EDITS, EDITS, HARDER_EDITS, planted


@pytest.fixture
def photo() -> Image.Image:
    rng = np.random.default_rng(7)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8))
    return coarse.resize((300, 200), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(image, dtype=np.float64)


def edit(photo: Image.Image, name: str, seed: int = 0) -> Image.Image:
    return planted(photo, name, seed=seed, photo_number=3)


def test_there_are_fourteen_edits() -> None:
    """The registry holds the 14 edits that every figure is quoted for."""
    assert len(EDITS) == 14
    assert list(ALL_EDITS) == [*EDITS, *HARDER_EDITS]


@pytest.mark.parametrize("name", ALL_EDITS)
def test_an_edit_returns_a_changed_rgb_image_and_leaves_its_input_alone(photo: Image.Image, name: str) -> None:
    """Every edit gives a new RGB image and does not touch the photo it was given."""
    before = photo.copy()
    edited = edit(photo, name)
    assert edited.mode == "RGB"
    assert photo.tobytes() == before.tobytes()
    assert (edited.size, edited.tobytes()) != (photo.size, photo.tobytes())


@pytest.mark.parametrize("name", ALL_EDITS)
def test_an_edit_depends_only_on_its_seed(photo: Image.Image, name: str) -> None:
    """The same seed, edit and photo number give the same pixels."""
    assert edit(photo, name, seed=5).tobytes() == edit(photo, name, seed=5).tobytes()


@pytest.mark.parametrize("name", ALL_EDITS)
def test_an_edit_survives_a_tiny_photo(name: str) -> None:
    """A photo of a few pixels is edited without an error."""
    assert min(edit(Image.new("RGB", (5, 4), "red"), name).size) >= 1


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("half size + JPEG 70", (150, 100)),
        ("aspect 1.35", (405, 200)),
        ("crop to 80 %", (268, 179)),
        ("crop to 56 %", (224, 150)),
        ("crop to 25 %", (150, 100)),
        ("rotate 10", (300, 200)),
        ("rotate 90", (200, 300)),
        ("caption", (300, 200)),
        ("border 20 %", (420, 280)),
    ],
)
def test_an_edit_changes_the_frame_as_named(photo: Image.Image, name: str, size: tuple[int, int]) -> None:
    """The frame after an edit has exactly the size that the edit's name promises."""
    assert edit(photo, name).size == size


def test_a_crop_is_a_window_of_the_photo_at_a_place_that_the_seed_moves(photo: Image.Image) -> None:
    """Crops of different seeds are different windows, and each is found unchanged in the photo."""
    whole = np.asarray(photo)
    windows = [np.asarray(edit(photo, "crop to 25 %", seed=seed)) for seed in (0, 1)]
    assert not np.array_equal(windows[0], windows[1])
    for window in windows:
        corners = np.argwhere((whole[:101, :151] == window[0, 0]).all(axis=2))
        assert any(np.array_equal(whole[y : y + 100, x : x + 150], window) for y, x in corners)


def test_mirror_twice_and_four_quarter_turns_are_the_photo(photo: Image.Image) -> None:
    """Mirror and quarter turn move pixels and change none."""
    assert edit(edit(photo, "mirror"), "mirror").tobytes() == photo.tobytes()
    turned = photo
    for _ in range(4):
        turned = edit(turned, "rotate 90")
    assert turned.tobytes() == photo.tobytes()


def test_a_small_rotation_has_black_corners(photo: Image.Image) -> None:
    """What a rotation by 10 degrees brings into the frame is black."""
    corners = np.asarray(edit(photo, "rotate 10"))[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.max() == 0


def test_a_caption_covers_the_lower_22_percent_and_nothing_else(photo: Image.Image) -> None:
    """Above the band every pixel stays; the band is flat paper with ink on it."""
    captioned, original = pixels(edit(photo, "caption")), pixels(photo)
    assert np.array_equal(captioned[:156], original[:156])
    band = captioned[156:]
    assert {band.min(), band.max()} == {0.0, 255.0}
    paper = np.median(band)
    assert 0.05 < (np.abs(band - paper) > 128).mean() < 0.4


def test_a_border_surrounds_the_unchanged_photo_with_one_flat_color(photo: Image.Image) -> None:
    """The photo sits in the middle and everything around it has one colour."""
    framed = np.asarray(edit(photo, "border 20 %"))
    assert np.array_equal(framed[40:240, 60:360], np.asarray(photo))
    around = np.ones(framed.shape[:2], dtype=bool)
    around[40:240, 60:360] = False
    assert (framed[around] == framed[0, 0]).all()


def test_gray_has_equal_channels(photo: Image.Image) -> None:
    """A gray photo has the same value in all three channels."""
    channels = pixels(edit(photo, "gray"))
    assert np.ptp(channels, axis=2).max() == 0


def test_color_raises_contrast_and_brightness_and_lowers_saturation() -> None:
    """On two flat halves the colour edit gives the values worked out by hand.

    Luma of (150, 100, 50) is 109 and of (50, 50, 50) is 50, so Pillow's contrast pivot is 80:
    80 + 1.4 * (150 - 80) = 178, times 1.25 = 222.5, then 0.6 towards the luma of the whole.
    """
    halves = Image.new("RGB", (20, 10), (50, 50, 50))
    halves.paste((150, 100, 50), (0, 0, 10, 10))
    left, right = np.asarray(EDITS["color"](halves, np.random.default_rng(0)))[0, [0, -1]].astype(int)
    bright = np.array([222.5, 135.0, 47.5])
    luma = bright @ [0.299, 0.587, 0.114]
    assert np.abs(left - (luma + 0.6 * (bright - luma))).max() <= 2
    assert np.abs(right - 47.5).max() <= 2


def test_harsher_recompression_changes_more(photo: Image.Image) -> None:
    """JPEG 30 leaves an error, but a small one: it is the same picture."""
    error = np.abs(pixels(edit(photo, "JPEG 30")) - pixels(photo)).mean()
    assert 0 < error < 20
