"""The layout columns: a picture's low frequencies in gray."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from embed.evaluation.edits import gray, sepia
from embed.layout import frequencies, layout, with_layout

SIZE = 40


def pictures(n: int) -> NDArray[np.uint8]:
    """Pictures with something everywhere, more of it in lower frequencies, and more light and dark than color."""
    draws = np.random.default_rng(0)
    small = (draws.integers(40, 180, (n, 10, 10, 1)) + draws.integers(-20, 20, (n, 10, 10, 3))).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for one in small])


def layouts(of: NDArray[np.uint8], *, dim: int = 32) -> NDArray[np.float32]:
    return layout(of, dim=dim)


def amplitude(luma: NDArray[np.float64], down: int, across: int) -> float:
    """One coefficient of the orthonormal two-dimensional DCT-II, summed over the pixels."""
    size = len(luma)
    total = 0.0
    for row in range(size):
        for column in range(size):
            waves = math.cos(math.pi * down * (2 * row + 1) / (2 * size)) * math.cos(
                math.pi * across * (2 * column + 1) / (2 * size)
            )
            total += float(luma[row, column]) * waves
    return total * 2 / size


def test_a_layout_is_that_of_its_definition() -> None:
    """Columns are the products of two soft signs of amplitudes, each summed pixel by pixel here."""
    (picture,) = pictures(1)
    luma = picture.astype(np.float64) @ (0.299, 0.587, 0.114)
    pairs = [(1, 3), (2, 4), (1, 5), (3, 5), (2, 6), (4, 6)]
    both = np.array([[amplitude(luma, *pair), amplitude(luma, *pair[::-1])] for pair in pairs])
    both *= np.hypot(*np.array(pairs).T)[:, None]
    products = np.tanh(4 * both / math.sqrt((both**2).mean() + 1)).prod(axis=1) + 1e-3

    np.testing.assert_allclose(layouts(picture[None], dim=6)[0], products / np.linalg.norm(products), atol=1e-4)


@pytest.mark.parametrize(
    "turn",
    [np.fliplr, np.flipud, np.rot90, lambda picture: np.rot90(picture, 2), lambda picture: np.swapaxes(picture, 0, 1)],
)
def test_mirror_images_and_quarter_turns_have_one_layout(
    turn: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> None:
    """None of the eight ways to lay a square changes it."""
    (picture,) = pictures(1)

    np.testing.assert_allclose(layouts(turn(picture)[None]), layouts(picture[None]), atol=1e-4)


@pytest.mark.parametrize("edit", [gray, sepia])
def test_colors_do_not_matter(edit: Callable[[Image.Image, np.random.Generator], Image.Image]) -> None:
    """A gray copy and a brown one have nearly the layout of the original, strangers have not."""
    one, stranger = pictures(2)
    copy = np.asarray(edit(Image.fromarray(one), np.random.default_rng(0)))

    of_one, of_copy, of_stranger = layouts(np.stack([one, copy, stranger]), dim=128)

    assert of_one @ of_copy > 0.9
    assert abs(of_one @ of_stranger) < 0.5


@pytest.mark.parametrize("blank", [1.0, -1.0])
@pytest.mark.parametrize("shade", [0, 77, 255])
def test_a_picture_of_one_color_has_the_layout_given(shade: int, blank: float) -> None:
    """There are no signs where nothing is, and a row is of unit length all the same."""
    rows = layout(np.full((1, SIZE, SIZE, 3), shade, np.uint8), dim=32, blank=blank)

    np.testing.assert_allclose(rows, blank / np.sqrt(32), atol=1e-2)


def test_the_cosine_weighs_network_and_layout() -> None:
    """`(a + weight * b) / (1 + weight)`, of unit rows."""
    draws = np.random.default_rng(0).standard_normal((2, 2, 8))
    rows, shapes = (draws / np.linalg.norm(draws, axis=-1, keepdims=True)).astype(np.float32)

    first, second = with_layout(rows, shapes, weight=0.25)

    expected = (rows[0] @ rows[1] + 0.25 * shapes[0] @ shapes[1]) / 1.25
    assert float(first @ second) == pytest.approx(expected, abs=1e-6)
    assert float(first @ first) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 3, 12, 128, 2048])
def test_every_column_has_frequencies_of_its_own(dim: int) -> None:
    """Each pair comes once, lower before higher, both odd or both even; fewer columns are the first of more."""
    low, high = frequencies(dim)

    assert len(set(zip(low, high, strict=True))) == dim
    assert (low >= 1).all()
    assert (low < high).all()
    assert ((low + high) % 2 == 0).all()
    np.testing.assert_array_equal((low, high), [each[:dim] for each in frequencies(dim + 1)])
