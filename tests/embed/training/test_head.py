"""The head trained alone, on a handful of tiny photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from embed.embedder_dir import EmbedderSpec, create_embedder_dir
from embed.errors import TrainingError
from embed.whitening import principal_rotation

pytestmark = [
    pytest.mark.tensorflow,
    # Keras saves variables through an `__array__` that numpy 2 would like to have one more parameter.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]

SIZE, DIM = 18, 8


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures of noise."""
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(20):
        pixels = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 30)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def first(tmp_path: Path) -> EmbedderSpec:
    """An embedder of random weights, its batch norms not at rest."""
    from embed.architectures import seed_weights, vgg_copy
    from embed.keras_backend import layers
    from embed.training.weights_file import save_weights

    network = vgg_copy(size=SIZE, dim=DIM)
    seed_weights(network, 0)
    generator = np.random.default_rng(1)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(generator.normal(0.0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(generator.uniform(0.5, 2.0, layer.moving_variance.shape))
    save_weights(network, tmp_path / "first.weights.h5")
    return create_embedder_dir(
        tmp_path / "first", architecture="vgg_copy", weights=tmp_path / "first.weights.h5", size=SIZE, dim=DIM
    )


def trained(photos: Path, first: EmbedderSpec, output: Path, **changes: Any) -> EmbedderSpec:
    from embed.training.head import HeadSettings, train_head

    settings = HeadSettings(**({"source_size": 24, "batch_size": 16, "epochs": 30, "threshold": 0.8} | changes))
    return train_head(photos, settings, start_from=first.directory, output=output, verbose=0)


def weights(spec: EmbedderSpec) -> dict[str, NDArray[np.float32]]:
    from embed.architectures import vgg_copy

    network = vgg_copy(size=SIZE, dim=DIM)
    network.load_weights(spec.directory / spec.weights)
    return {f"{number} {weight.path}": weight.numpy() for number, weight in enumerate(network.weights)}


def cosines(spec: EmbedderSpec) -> NDArray[np.float32]:
    from embed.embedder import load_embedder

    images = np.random.default_rng(2).integers(0, 256, (12, SIZE, SIZE, 3), dtype=np.uint8)
    rows = load_embedder(spec.directory, batch_size=4).embed(images)
    similarity: NDArray[np.float32] = rows @ rows.T
    return similarity


def test_only_the_head_changes(tmp_path: Path, photos: Path, first: EmbedderSpec) -> None:
    """The convolutions keep their weights; the linear layer and the mean behind it do not."""
    before, after = weights(first), weights(trained(photos, first, tmp_path / "second"))

    changed = [not np.array_equal(before[old], after[new]) for old, new in zip(before, after, strict=True)]

    assert changed == [False] * (len(changed) - 3) + [True, True, False]


def test_a_head_that_hardly_learns_is_the_head_it_started_from(
    tmp_path: Path, photos: Path, first: EmbedderSpec
) -> None:
    """Folding the head, splitting it off and putting it back changes no cosine."""
    same = trained(photos, first, tmp_path / "second", epochs=1, learning_rate=1e-8)

    np.testing.assert_allclose(cosines(same), cosines(first), atol=1e-4)


def test_training_lowers_the_loss(tmp_path: Path, photos: Path, first: EmbedderSpec) -> None:
    """More epochs end with a lower loss, which the lineage says beside photos, settings and first embedder."""
    from embed.lineage import ModelKind, read_lineages

    few, many = (
        read_lineages(trained(photos, first, tmp_path / str(epochs), epochs=epochs, learning_rate=1e-3).directory)[
            ModelKind.EMBEDDER
        ]
        for epochs in (1, 60)
    )

    assert many.metrics["final_loss"] < few.metrics["final_loss"]
    assert many.parents == {"start_from": first.digest}
    assert many.parameters.items() >= {"trained": "head", "epochs": 60, "num_photos": 20}.items()
    assert many.data == few.data


def test_a_layout_is_kept(tmp_path: Path, photos: Path, first: EmbedderSpec) -> None:
    """The head of an embedder with a layout is trained with all columns of the network, and half of them are kept."""
    rows = np.random.default_rng(3).standard_normal((64, DIM)).astype(np.float32)
    both = create_embedder_dir(
        tmp_path / "both",
        architecture="vgg_copy",
        weights=first.directory / first.weights,
        size=SIZE,
        whitening=principal_rotation(rows).first(DIM // 2),
        layout_weight=0.2,
    )

    second = trained(photos, both, tmp_path / "second", epochs=1)

    assert (second.dim, second.network_dim, second.layout_weight) == (DIM, DIM // 2, 0.2)
    assert cosines(second).shape == (12, 12)


def test_settings_out_of_range_are_refused() -> None:
    """The error says which setting, its value and its range."""
    from embed.training.head import HeadSettings

    with pytest.raises(TrainingError, match=r"threshold=1\.5 is out of range 0\.0\.\.1\.0"):
        HeadSettings(threshold=1.5)


def test_photos_smaller_than_the_embedder_takes_are_refused(tmp_path: Path, photos: Path, first: EmbedderSpec) -> None:
    """Edits are made of photos no smaller than what the embedder looks at."""
    tall = create_embedder_dir(tmp_path / "tall", architecture="vgg_copy", weights="seeded", size=32, dim=DIM)

    with pytest.raises(TrainingError, match="source_size=24 is below size=32"):
        trained(photos, tall, tmp_path / "second")


def test_an_output_that_exists_is_refused(tmp_path: Path, photos: Path, first: EmbedderSpec) -> None:
    """No embedder is overwritten."""
    with pytest.raises(TrainingError, match="already exists"):
        trained(photos, first, tmp_path)


def test_a_share_lies_between_both_heads(tmp_path: Path, photos: Path, first: EmbedderSpec) -> None:
    """Half of the way is the mean of the head it started from and the one trained."""
    none, half, whole = (
        weights(trained(photos, first, tmp_path / f"{share}", share=share)) for share in (0.0, 0.5, 1.0)
    )

    for start, mean, end in zip(none.values(), half.values(), whole.values(), strict=True):
        np.testing.assert_allclose(mean, (start + end) / 2, atol=1e-4, rtol=2**-10)  # kernels are rounded to float16


def test_the_threshold_is_the_least_score_until_it_is_calibrated(
    tmp_path: Path, photos: Path, first: EmbedderSpec
) -> None:
    """Cosines move, so the least score of the embedder it started from would mean something else."""
    assert trained(photos, first, tmp_path / "second", epochs=1, threshold=0.7).min_score == 0.7
