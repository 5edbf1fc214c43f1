"""Rules of the report's thumbnails."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cli.report import ReportError, make_thumbnail
from cli.report.thumbnails import media_type


def smooth_image(height: int, width: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / (17 + 5 * channel)) + np.cos(columns / (23 + 7 * channel)) for channel in range(3)]
    return (np.stack(waves, axis=-1) * 60 + 128).astype(np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((600, 800), (160, 120)), ((800, 600), (120, 160)), ((1, 5000), (160, 1)), ((3, 5), (5, 3)), ((1, 1), (1, 1))],
)
def test_longer_side_is_limited(shape: tuple[int, int], size: tuple[int, int]) -> None:
    """A thumbnail keeps the image's shape within `side`, at least one pixel wide and high, and never enlarges."""
    with Image.open(io.BytesIO(make_thumbnail(smooth_image(*shape), side=160))) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("WEBP", size)


def test_thumbnail_looks_like_its_image() -> None:
    """The thumbnail differs from a plain reduction of the image by little, on average."""
    pixels = smooth_image(640, 480)
    with Image.open(io.BytesIO(make_thumbnail(pixels, side=160))) as thumbnail:
        expected = np.asarray(Image.fromarray(pixels).resize(thumbnail.size, Image.Resampling.BOX), np.int16)
        actual = np.asarray(thumbnail.convert("RGB"), np.int16)

    assert np.abs(expected - actual).mean() < 6


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 5), (5, 5, 4)])
def test_other_arrays_are_refused(shape: tuple[int, ...]) -> None:
    """Only uint8 RGB pixels, at least one, have a thumbnail."""
    with pytest.raises(ReportError, match="uint8"):
        make_thumbnail(np.zeros(shape, np.uint8))


def test_side_out_of_range_is_refused() -> None:
    """The error names the side and its range."""
    with pytest.raises(ReportError, match=r"side=8 is out of range 16\.\.1024"):
        make_thumbnail(smooth_image(20, 20), side=8)


def test_media_type_is_read_from_the_bytes() -> None:
    """WebP, JPEG and PNG are told apart by how they begin."""
    image = Image.new("RGB", (4, 4))
    for name in ("webp", "jpeg", "png"):
        content = io.BytesIO()
        image.save(content, name)
        assert media_type(content.getvalue()) == f"image/{name}"
