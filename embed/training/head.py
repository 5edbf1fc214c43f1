"""Trains the head of a finished embedder alone: pooled features to embedding, one threshold for all pairs.

The convolutions stay as they are, so every photo goes through them twice, plain and edited, and the linear layer behind
them is trained on the stored features in seconds. A batch is thousands of photos, and each edited one is compared with
every plain one, as a lookup does.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.architectures import GEM_P, fold_batch_norm, vgg_copy
from embed.embedder import stored_whitening
from embed.embedder_dir import EmbedderSpec, create_embedder_dir, describe_embedder
from embed.errors import TrainingError
from embed.keras_backend import keras, layers, ops
from embed.keras_network import load_weights
from embed.lineage import ModelKind, record
from embed.ranges import check_ranges
from embed.training.augmentation import STRONG, random_view
from embed.training.loss import edited_threshold_loss
from embed.training.photos import load_photos, photos_sha256
from embed.training.weights_file import save_weights
from embed.whitening import principal_rotation

Tensor = Any

FEATURE_BATCH: Final = 128

_RANGES: Final = {
    "source_size": (18, 4096),
    "epochs": (1, 99_999),
    "batch_size": (2, 65_536),
    "learning_rate": (1e-8, 1.0),
    "threshold": (0.0, 1.0),
    "threshold_width": (1e-3, 1.0),
    "false_weight": (0.0, 100.0),
    "share": (0.0, 1.0),
    "seed": (0, 2**31 - 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    """Everything that decides the head, besides photos and embedder; raises TrainingError out of range.

    `threshold`, `threshold_width` and `false_weight` are those of `edited_threshold_loss`. The threshold belongs near
    the cosine at which the embedder is used; it is the least score of the one written until that is calibrated. The
    head written lies `share` of the way from the first one to the trained one: less gain on photos like these, less
    loss on others (Wortsman et al., arXiv 2109.01903).
    """

    source_size: int = 144
    epochs: int = 10
    batch_size: int = 2048
    learning_rate: float = 5e-4
    threshold: float = 0.87
    threshold_width: float = 0.02
    false_weight: float = 0.25
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES, error=TrainingError)


class ThresholdHead(keras.Model):
    """`(n, 2, features)`, plain and edited, -> `(n, 2, dim)` unit rows, with the loss of one threshold."""

    def __init__(self, linear: layers.Dense, settings: HeadSettings) -> None:
        super().__init__()
        self.linear = linear
        self.unit = layers.UnitNormalization(dtype="float32")
        self.settings = settings

    def call(self, pairs: Tensor, training: bool = False) -> Tensor:  # noqa: ARG002 - Keras' signature
        """The unit rows of both."""
        return self.unit(self.linear(pairs))

    def compute_loss(
        self,
        x: Tensor = None,  # noqa: ARG002 - Keras' signature
        y: Tensor = None,  # noqa: ARG002
        y_pred: Tensor = None,
        sample_weight: Tensor = None,  # noqa: ARG002
        training: bool = True,  # noqa: ARG002
    ) -> Tensor:
        """The loss of a batch's edited photos against its plain ones."""
        return edited_threshold_loss(
            y_pred[:, 1],
            y_pred[:, 0],
            threshold=self.settings.threshold,
            width=self.settings.threshold_width,
            false_weight=self.settings.false_weight,
        )


def train_head(
    photos: Path,
    settings: HeadSettings,
    *,
    start_from: Path,
    output: Path,
    tracking_uri: str | None = None,
    verbose: int = 2,
) -> EmbedderSpec:
    """Train the head of the `vgg_copy` embedder `start_from` on every image under `photos`; write it to `output`.

    The photos should be free of near-duplicates: every other photo of a batch counts as a stranger. Raises
    TrainingError.
    """
    if output.exists():
        raise TrainingError(f"{output} already exists; choose another output directory or remove it first")
    first = describe_embedder(start_from)
    if first.architecture != "vgg_copy":
        raise TrainingError(f"{start_from} is a {first.architecture}; only the head of a vgg_copy can be trained")
    if first.gem_p != GEM_P:
        raise TrainingError(f"{start_from} pools with gem_p={first.gem_p}; only {GEM_P} can be trained")
    if settings.source_size < first.size:
        raise TrainingError(f"source_size={settings.source_size} is below size={first.size} of {start_from}")
    keras.utils.set_random_seed(settings.seed)
    whitening = stored_whitening(first)
    network = vgg_copy(size=first.size, dim=first.network_dim if whitening is None else len(whitening.mean))
    load_weights(network, first)
    trunk, linear = _split(fold_batch_norm(network, dtype="mixed_bfloat16"))

    pixels = load_photos(photos, size=settings.source_size, batch_size=2)
    pairs = np.stack(
        [
            _plain_features(trunk, load_photos(photos, size=first.size, batch_size=2)),
            _edited_features(trunk, pixels, size=first.size, seed=settings.seed),
        ],
        axis=1,
    )
    before = linear.get_weights()
    final_loss = _fit(pairs, linear, settings, verbose)
    linear.set_weights(
        [old + settings.share * (new - old) for old, new in zip(before, linear.get_weights(), strict=True)]
    )
    _put_back(network, linear)

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "trained.weights.h5"
        save_weights(network, weights)
        rows = _unit(pairs[:, 0] @ linear.kernel.numpy() + linear.bias.numpy())
        trained = create_embedder_dir(
            output,
            architecture="vgg_copy",
            weights=weights,
            size=first.size,
            whitening=principal_rotation(rows).first(first.network_dim),
            layout_weight=first.layout_weight,
            min_score=settings.threshold,
        )
    parameters = dataclasses.asdict(settings) | {"trained": "head", "num_photos": len(pixels)}
    record(
        trained.directory,
        kind=ModelKind.EMBEDDER,
        digest=trained.digest,
        tracking_uri=tracking_uri,
        seed=parameters.pop("seed"),
        parents={"start_from": first.digest},
        data={"photos": photos_sha256(pixels)},
        parameters=parameters,
        metrics={"final_loss": final_loss},
    )
    return trained


def _split(folded: keras.Model) -> tuple[keras.Model, layers.Dense]:
    """The convolutions and pooling of a folded `vgg_copy`, and a linear layer that computes what its own did."""
    dense = next(layer for layer in folded.layers if isinstance(layer, layers.Dense))
    linear = layers.Dense(dense.units, dtype="float32")
    linear.build((None, dense.kernel.shape[0]))
    linear.set_weights(dense.get_weights())
    return keras.Model(folded.input, dense.input), linear


def _plain_features(trunk: keras.Model, photos: NDArray[np.uint8]) -> NDArray[np.float32]:
    starts = range(0, len(photos), FEATURE_BATCH)
    return np.concatenate([trunk.predict_on_batch(photos[start : start + FEATURE_BATCH]) for start in starts])


def _edited_features(trunk: keras.Model, photos: NDArray[np.uint8], *, size: int, seed: int) -> NDArray[np.float32]:
    """The features of one strong view of each photo."""
    draws = keras.random.SeedGenerator(seed)
    features = []
    for start in range(0, len(photos), FEATURE_BATCH):
        batch = ops.cast(photos[start : start + FEATURE_BATCH], "float32")
        views = random_view(batch, STRONG, size=size, seed=draws)
        features.append(trunk.predict_on_batch(views))
    return np.concatenate(features)


def _fit(pairs: NDArray[np.float32], linear: layers.Dense, settings: HeadSettings, verbose: int) -> float:
    """Train `linear` in place; returns the loss of the last epoch."""
    num_steps = settings.epochs * -(-len(pairs) // settings.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(settings.learning_rate, decay_steps=num_steps)
    head = ThresholdHead(linear, settings)
    head.compile(
        optimizer=keras.optimizers.Adam(schedule, beta_2=0.98, clipnorm=1.0),
        jit_compile=keras.backend.backend() == "jax",
    )
    history = head.fit(pairs, batch_size=settings.batch_size, epochs=settings.epochs, shuffle=True, verbose=verbose)
    loss = float(history.history["loss"][-1])
    if not np.isfinite(loss):
        raise TrainingError("the loss of the head became NaN; lower learning_rate")
    return loss


def _put_back(network: keras.Model, linear: layers.Dense) -> None:
    """Give a `vgg_copy` the trained linear layer: as a kernel and the mean of the batch norm behind it, which has none.

    `y = (Wx - mean) / sqrt(var + eps)`, so `W = W' sqrt(var + eps)` and `mean = -b' sqrt(var + eps)`.
    """
    dense = next(layer for layer in network.layers if isinstance(layer, layers.Dense))
    norm = network.layers[network.layers.index(dense) + 1]
    deviation = np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    dense.kernel.assign(linear.kernel.numpy() * deviation)
    norm.moving_mean.assign(-linear.bias.numpy() * deviation)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
