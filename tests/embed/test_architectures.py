"""The networks: folding changes nothing, seeds decide everything."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.tensorflow


def test_folding_batch_norm_changes_no_output() -> None:
    """The folded network equals the trained one in inference, for any batch norm statistics."""
    from embed.architectures import fold_batch_norm, vgg_copy

    generator = np.random.default_rng(0)
    network = vgg_copy(size=32, dim=16)
    for weight in network.weights:
        if len(weight.shape) == 1:
            weight.assign(generator.uniform(0.5, 1.5, tuple(weight.shape)))
    folded = fold_batch_norm(network)
    images = generator.uniform(0, 255, (3, 32, 32, 3)).astype(np.float32)

    for each in (network, folded):
        each.compile(jit_compile=False)

    np.testing.assert_allclose(folded.predict_on_batch(images), network.predict_on_batch(images), atol=1e-5)


def test_vgg_copy_fits_in_the_repository() -> None:
    """The default network has 2.6 million parameters: its float32 weights stay below 12 MB."""
    from embed.architectures import vgg_copy

    num_parameters = vgg_copy(size=96, dim=256).count_params()

    assert num_parameters == 2_637_320
    assert num_parameters * 4 < 12 * 10**6


def test_seeded_weights_are_the_same_everywhere() -> None:
    """The first kernel of seed 0 never changes, so golden embeddings in tests stay golden."""
    from embed.architectures import seed_weights, vgg_copy

    network = vgg_copy(size=32, dim=16)
    seed_weights(network, 0)

    first = network.trainable_variables[0].numpy()[0, 0, 0, :3]

    np.testing.assert_allclose(first, [0.30417818, -0.37752758, -0.11609809], rtol=1e-6)


def test_gem_lies_between_mean_and_maximum() -> None:
    """GeM with p = 1 is the mean, and with a large p nearly the maximum."""
    from embed.architectures import GeneralizedMeanPooling

    features = np.random.default_rng(0).uniform(0.1, 1, (2, 4, 4, 3)).astype(np.float32)

    mean, high = (GeneralizedMeanPooling(p)(features).numpy() for p in (1.0, 60.0))

    np.testing.assert_allclose(mean, features.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(high, features.max(axis=(1, 2)), rtol=0.06)
