"""Trained weights are kept in half precision and read in full."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]


def test_kernels_are_kept_in_half_precision(tmp_path: Path) -> None:
    """What Keras reads back are the kernels rounded to float16 and all else as it was, even beyond float16's range."""
    from embed.architectures import vgg_copy
    from embed.training.weights_file import save_weights

    network = vgg_copy(size=18, dim=8)
    drawn = np.random.default_rng(0)
    network.set_weights([drawn.normal(scale=1e6 if w.ndim == 1 else 1, size=w.shape) for w in network.weights])
    save_weights(network, tmp_path / "w.weights.h5")
    read = vgg_copy(size=18, dim=8)
    read.load_weights(tmp_path / "w.weights.h5")

    expected = [w.astype(np.float16).astype(np.float32) if w.ndim > 1 else w for w in network.get_weights()]
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(read.get_weights(), expected, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["w.weights.h5"]
