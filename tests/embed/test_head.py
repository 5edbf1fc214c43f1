"""The head: features to rows, equal to Keras' own layers and to cutting windows by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from embed.head import Head, Linear, unit
from embed.whitening import Whitening
from embed.zoom import Zoom

DRAWS = np.random.default_rng(0)
FEATURES = DRAWS.uniform(0, 2, (3, 5, 5, 6)).astype(np.float32)
PICTURES = DRAWS.integers(0, 256, (3, 40, 40, 3), np.uint8)


def normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def head(*, layout_weight: float = 0.0) -> Head:
    whitening = Whitening(mean=normal(7), projection=normal(7, 4))
    linear = Linear(kernel=normal(6, 7), bias=normal(7))
    return Head(gem_p=3.0, linear=linear, whitening=whitening, layout_weight=layout_weight)


@pytest.mark.tensorflow
def test_pooling_is_that_of_the_network_in_training() -> None:
    """Without a projection, rows are the pooled features of Keras' layer at unit length."""
    from embed.architectures import GeneralizedMeanPooling

    rows = Head(gem_p=2.5, linear=None, whitening=None, layout_weight=0.0).rows(FEATURES, PICTURES)

    np.testing.assert_allclose(rows, unit(GeneralizedMeanPooling(2.5)(FEATURES).numpy()), atol=1e-6)


def test_rows_are_projected_then_whitened() -> None:
    """Each step as its definition says, with unit length behind both."""
    made = head()
    assert made.linear is not None
    assert made.whitening is not None

    for row, features in zip(made.rows(FEATURES, PICTURES), FEATURES.astype(np.float64), strict=True):
        pooled = (features**3).mean(axis=(0, 1)) ** (1 / 3)
        projected = pooled @ made.linear.kernel + made.linear.bias
        whitened = (projected / np.linalg.norm(projected) - made.whitening.mean) @ made.whitening.projection
        np.testing.assert_allclose(row, whitened / np.linalg.norm(whitened), atol=1e-5)


def test_a_window_is_cut_out_of_features_and_picture_alike() -> None:
    """The rows of a zoom are those of each window by itself, row by row."""
    made = head()
    zoom = Zoom(factor=1.0, share=0.6, grid=2)

    expected = [made.rows(FEATURES[:, top : top + 3, left : left + 3], PICTURES) for top in (0, 2) for left in (0, 2)]

    np.testing.assert_allclose(made.window_rows(FEATURES, PICTURES, zoom), np.stack(expected, axis=1), atol=1e-6)


def test_the_one_window_of_a_whole_picture_is_its_row() -> None:
    """A grid of one window of everything changes nothing, the layout of what is not blank included."""
    made = head(layout_weight=0.25)

    windows = made.window_rows(FEATURES, PICTURES, Zoom(factor=1.0, share=1.0, grid=1))

    np.testing.assert_allclose(windows[:, 0], made.rows(FEATURES, PICTURES), atol=1e-2)


def test_features_of_nothing_give_finite_rows() -> None:
    """Where no feature is above zero, pooling does not divide by it."""
    assert np.isfinite(head().rows(np.zeros_like(FEATURES), PICTURES)).all()
