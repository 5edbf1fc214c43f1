"""`to_square`: any picture as the square that a network takes."""

from __future__ import annotations

import numpy as np
import pytest

from embed.preprocessing import to_square


@pytest.mark.parametrize("shape", [(5, 7), (96, 96), (300, 200), (1, 20_000), (20_000, 1), (95, 97)])
def test_every_shape_becomes_the_square(shape: tuple[int, int]) -> None:
    """The result is `(size, size, 3)` uint8, and a flat colour stays itself."""
    square = to_square(np.full((*shape, 3), (10, 120, 230), dtype=np.uint8), 96)

    assert square.shape == (96, 96, 3)
    assert square.dtype == np.uint8
    assert (square == (10, 120, 230)).all()


def test_shrinking_averages_instead_of_skipping() -> None:
    """A fine checkerboard becomes gray: no moire decides an embedding."""
    board = (np.indices((768, 768)).sum(axis=0) % 2 * 255).astype(np.uint8)

    square = to_square(np.repeat(board[..., None], 3, axis=2), 96)

    assert np.abs(square.astype(int) - 127).max() <= 2


def test_the_input_is_not_changed() -> None:
    """Pixels handed in stay as they are."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    before = pixels.copy()

    to_square(pixels, 32)

    assert np.array_equal(pixels, before)
