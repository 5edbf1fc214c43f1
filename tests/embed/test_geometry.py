"""Rules of the geometric verifier, on photographs that come with scikit-image."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from embed.errors import EmbedError
from embed.evaluation.edits import EDITS, planted
from embed.geometry import (
    GeometryParams,
    LocalFeatures,
    Verdict,
    apply_transform,
    describe_transform,
    draw_inliers,
    find_features,
    mutual_matches,
    overlap_agreement,
    verify_geometry,
)

Pixels = NDArray[np.uint8]


@cache
def photo(name: str) -> Image.Image:
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("RGB").resize((384, 256))


@cache
def features_of(name: str) -> LocalFeatures:
    return find_features(np.asarray(photo(name)))


def edited(name: str, edit: str) -> Pixels:
    return np.asarray(planted(photo(name), edit, seed=0, photo_number=1))


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_of_a_photo_is_the_same_picture(edit: str) -> None:
    """What people do to a photo does not hide it, mirrored, turned or cut to a quarter."""
    found = verify_geometry(features_of("astronaut"), find_features(edited("astronaut", edit)))
    assert (found.verdict, found.is_mirrored) == (Verdict.SAME, edit == "mirror")


@pytest.mark.parametrize("other", ["chelsea", "coffee", "rocket"])
def test_another_photo_is_a_different_picture(other: str) -> None:
    """Keypoints of two photos do not agree on a transform."""
    assert verify_geometry(features_of("astronaut"), features_of(other)).verdict is Verdict.DIFFERENT


def test_one_caption_on_two_photos_is_not_the_same_picture() -> None:
    """The keypoints of the text agree perfectly, the pixels above it do not."""

    def captioned(name: str) -> LocalFeatures:
        canvas = photo(name).copy()
        draw = ImageDraw.Draw(canvas)
        draw.rectangle((0, 190, 384, 256), fill="white")
        for line in range(3):
            draw.text((8, 192 + 20 * line), "THE QUICK BROWN FOX JUMPS OVER IT", fill="black", font_size=19)
        return find_features(np.asarray(canvas))

    found = verify_geometry(captioned("astronaut"), captioned("coffee"))
    assert found.num_inliers > 30
    assert found.verdict is not Verdict.SAME


def test_images_without_texture_leave_the_verdict_open() -> None:
    """Two blank images may or may not be one picture; geometry cannot know."""
    blank = find_features(np.full((100, 100, 3), 128, np.uint8))
    assert verify_geometry(blank, blank).verdict is Verdict.UNSURE
    assert verify_geometry(blank, features_of("coffee")).verdict is Verdict.UNSURE


@pytest.mark.parametrize("edit", ["crop to 56 %", "mirror", "rotate 90"])
def test_the_answer_is_the_same_from_both_sides(edit: str) -> None:
    """Verdict, inliers and agreement are symmetric, and the transform of one side undoes that of the other."""
    copy = find_features(edited("coffee", edit))
    there, back = verify_geometry(features_of("coffee"), copy), verify_geometry(copy, features_of("coffee"))
    assert (there.verdict, there.num_inliers, there.agreement) == (back.verdict, back.num_inliers, back.agreement)
    points = np.array([(0.4, 0.4), (0.5, 0.6), (0.6, 0.5)], np.float32)
    np.testing.assert_allclose(apply_transform(back, apply_transform(there, points)), points, atol=1e-3)


@pytest.mark.parametrize("edit", ["crop to 56 %", "mirror", "rotate 90", "half size + JPEG 70"])
def test_the_transform_takes_each_inlier_to_its_match(edit: str) -> None:
    """Inliers lie where the transform puts them, within the error allowed."""
    found = verify_geometry(features_of("coffee"), find_features(edited("coffee", edit)))
    error = np.linalg.norm(apply_transform(found, found.left_points) - found.right_points, axis=1)
    assert np.median(error) < 0.005
    assert error.max() < 0.06


def test_the_transform_is_told_in_words() -> None:
    """Scale, turn, mirroring and the share that is shown are those of the edit."""

    def words(edit: str) -> str:
        pixels = edited("astronaut", edit)
        found = verify_geometry(features_of("astronaut"), find_features(pixels))
        return describe_transform(found, left_size=(384, 256), right_size=(pixels.shape[1], pixels.shape[0]))

    assert words("half size + JPEG 70").startswith("scaled to 0.50; shows 100%") or "0.50; shows 99%" in words(
        "half size + JPEG 70"
    )
    assert "scaled to 1.00, mirrored" in words("mirror")
    assert "turned by -90 degrees" in words("rotate 90")
    assert words("crop to 56 %").startswith("scaled to 1.00; shows 5")


def test_matches_choose_each_other_and_are_distinct() -> None:
    """The fast matching equals choosing row by row."""
    rng = np.random.default_rng(0)
    left, right = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.random((2, 40, 8)) - 0.5)
    expected = []
    for number, row in enumerate(left):
        distances = np.linalg.norm(right - row, axis=1)
        best, second = np.argsort(distances)[:2]
        chosen_back = np.argmin(np.linalg.norm(left - right[best], axis=1)) == number
        if chosen_back and distances[best] <= 0.85 * distances[second]:
            expected.append((number, int(best)))
    found = mutual_matches(left.astype(np.float32), right.astype(np.float32), max_ratio=0.85)
    assert [tuple(pair) for pair in found.tolist()] == expected
    assert len(expected) > 3


def test_agreement_is_full_on_itself_and_none_on_another_picture() -> None:
    """Under the identity a photo correlates with itself everywhere and with another one hardly anywhere."""
    one, other = (features_of(name).gray for name in ("astronaut", "coffee"))
    assert overlap_agreement(one, one, np.eye(3)) == 1.0
    assert overlap_agreement(one, other, np.eye(3)) < 0.2


def test_the_overlay_shows_both_images_and_lines() -> None:
    """Side by side at the height asked for, with something drawn on them."""
    pixels = np.asarray(photo("coffee"))
    found = verify_geometry(features_of("coffee"), find_features(edited("coffee", "mirror")))
    overlay = draw_inliers(pixels, edited("coffee", "mirror"), found, height=128)
    assert overlay.shape == (128, 2 * 192, 3)
    plain = draw_inliers(pixels, edited("coffee", "mirror"), found, height=128, max_lines=0)
    assert (overlay != plain).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_ratio": 1.5}, r"max_ratio=1\.5 is out of range 0\.1\.\.1\.0"),
        ({"min_inliers": 2}, r"min_inliers=2 is out of range 5\.\."),
        ({"many_inliers": 10}, r"many_inliers=10 is out of range 15\.\."),
    ],
)
def test_params_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    """Each is checked when made, with its value and range."""
    with pytest.raises(EmbedError, match=message):
        GeometryParams(**changes)  # type: ignore[arg-type]
