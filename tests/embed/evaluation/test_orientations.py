"""Rules of queries in several orientations."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from embed.evaluation.orientations import BestOrientation, OrientedDescriptor, oriented
from embed.evaluation.scored_pairs import DotProduct, RowScorer

SIZE = 6
SQUARE = np.random.default_rng(0).random((SIZE, SIZE), np.float32)


class Pixels:
    """A descriptor that sees every pixel, so that only the right orientation matches."""

    name = "pixels"
    scorer: RowScorer = DotProduct()

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        return np.frombuffer(content, np.uint8)

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return pixels.astype(np.float32)

    def rows(self, prepared: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = prepared.reshape(len(prepared), -1)
        unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


@pytest.mark.parametrize("num", [1, 4, 8])
def test_orientations_are_distinct_and_upright_comes_first(num: int) -> None:
    squares = oriented(SQUARE, num)
    assert len({square.tobytes() for square in squares}) == len(squares) == num
    np.testing.assert_array_equal(squares[0], SQUARE)


@pytest.mark.parametrize("edited", [np.rot90(SQUARE), np.rot90(SQUARE, 2), SQUARE[:, ::-1], SQUARE[::-1], SQUARE.T])
def test_every_turn_and_mirror_image_matches_in_eight_orientations(edited: NDArray[np.float32]) -> None:
    descriptor = OrientedDescriptor(Pixels(), 8, SIZE * SIZE)
    rows = descriptor.rows(np.stack([descriptor.prepare(edited), descriptor.prepare(SQUARE)]))  # type: ignore[arg-type]
    assert descriptor.scorer.pairs(rows[:1], rows[1:])[0] == pytest.approx(1.0, abs=1e-6)


def test_matrix_and_pairs_agree() -> None:
    rows = np.random.default_rng(1).random((5, 4 * 7), np.float32)
    scorer = BestOrientation(DotProduct(), 7)
    np.testing.assert_allclose(np.diag(scorer.matrix(rows, rows[::-1])), scorer.pairs(rows, rows[::-1]), rtol=1e-6)
