"""Trains the copy-detection embedder: two edited views of each photo must find each other in the batch.

`train_embedder` is what `neardup train-embedder` calls. Training goes through Keras' own `fit`, so it runs on
TensorFlow, JAX and torch; a checkpoint is written after each epoch and a stopped training resumes from the last one.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.architectures import vgg_copy
from embed.embedder_dir import EmbedderSpec, create_embedder_dir, describe_embedder
from embed.errors import TrainingError, TrainingInterrupted
from embed.keras_backend import keras, ops
from embed.keras_network import KERAS_POLICIES, load_weights
from embed.lineage import ModelKind, record
from embed.ranges import check_ranges
from embed.training import checkpoints as saved
from embed.training.augmentation import MILD, PLAIN, STRONG, random_view
from embed.training.composed import with_lookalikes
from embed.training.lookalikes import lookalike_order
from embed.training.loss import contrastive_loss, threshold_loss
from embed.training.photos import PhotoBatches, load_photos, photos_sha256
from embed.training.weights_file import save_weights
from embed.whitening import principal_rotation

Tensor = Any

_RANGES: Final = {
    "size": (18, 1024),
    "view_size": (18, 1024),
    "dim": (2, 4096),
    "layout_weight": (0.0, 1.0),
    "source_size": (18, 4096),
    "epochs": (1, 99_999),
    "batch_size": (2, 65_536),
    "learning_rate": (1e-8, 1.0),
    "warmup_steps": (0, 1_000_000),
    "weight_decay": (0.0, 1.0),
    "temperature": (1e-3, 10.0),
    "entropy_weight": (0.0, 100.0),
    "threshold": (0.0, 1.0),
    "threshold_width": (1e-3, 1.0),
    "false_weight": (0.0, 100.0),
    "min_area": (0.01, 1.0),
    "group_size": (1, 65_536),
    "num_composed": (0, 1_000_000),
    "max_gradient_norm": (1e-3, 1e6),
    "seed": (0, 2**31 - 1),
}


class Objective(StrEnum):
    """What is asked of the embeddings of a batch.

    `CONTRASTIVE`: each view finds its other one, and embeddings spread; for random first weights. `BOTH`: that, and one
    threshold for all pairs of mild and strong views; for going on. `THRESHOLD`: one threshold alone, strong views
    against nearly plain ones, as edited images are against a corpus. It finds more copies, but nothing holds strangers
    apart, so hash tables of a large corpus fill with them.
    """

    CONTRASTIVE = "contrastive"
    BOTH = "both"
    THRESHOLD = "threshold"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Everything that decides the weights, besides photos and first weights; raises TrainingError out of range.

    `size` is the side of the squares that the finished embedder takes, `view_size` that of the views it is trained on.
    A view shows a part of its photo enlarged, so things come out as large as in training when `size` is somewhat more
    (Touvron et al., arXiv 1906.06423), and small views cost less. The network is trained with `dim` columns; with a
    `layout_weight` the embedder keeps the first half of them, rotated to their principal axes, beside its layout's.

    With a `group_size` above 1 batches are made of groups of that many look-alikes. With `frozen_statistics` batch norm
    keeps the mean and variance it started from, so that the network trained is the network used: batch norm would take
    away what the look-alikes of a batch have in common, and the network would learn to rely on that. `num_composed`
    look-alikes are made of the photos beforehand. `threshold`, `threshold_width` and `false_weight` are those of
    `threshold_loss`; `min_area` is the least share of a photo that a strong view shows.
    """

    size: int = 112
    view_size: int = 96
    dim: int = 256
    layout_weight: float = 0.1
    source_size: int = 144
    epochs: int = 13
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    weight_decay: float = 0.02
    temperature: float = 0.08
    entropy_weight: float = 0.5
    objective: Objective = Objective.CONTRASTIVE
    threshold: float = 0.8
    threshold_width: float = 0.05
    false_weight: float = 1.0
    min_area: float = 0.3
    dtype: str = "bfloat16"
    group_size: int = 1
    num_composed: int = 0
    frozen_statistics: bool = False
    max_gradient_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES, error=TrainingError)
        if self.view_size % 6:
            raise TrainingError(f"view_size={self.view_size} is not a multiple of 6, which drawn letters need; try 96")
        if self.layout_weight and self.dim % 2:
            raise TrainingError(
                f"dim={self.dim} is odd, and the layout takes half; give an even one or layout_weight=0"
            )
        if self.source_size < self.view_size:
            raise TrainingError(
                f"source_size={self.source_size} is below view_size={self.view_size}; use sharper photos"
            )
        if self.dtype not in KERAS_POLICIES:
            raise TrainingError(f"dtype={self.dtype!r} is unknown; choose {' or '.join(KERAS_POLICIES)}")


class CopyDetector(keras.Model):
    """The network under training: `fit` gives it photos, its loss compares two random views of each."""

    def __init__(self, network: keras.Model, settings: TrainingSettings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.seed = keras.random.SeedGenerator(settings.seed)

    def start_epoch(self, epoch: int) -> None:
        """Draw the edits of `epoch` as a function of the seed and its number: checkpoints do not keep random state."""
        state = np.random.SeedSequence([self.settings.seed, epoch]).generate_state(2) >> 1
        self.seed.state.assign(state.astype(keras.backend.standardize_dtype(self.seed.state.dtype)))

    def call(self, photos: Tensor, training: bool = False) -> Tensor:
        """`(n, source, source, 3)` uint8 -> `(2n, dim)`: first every plain or mild view, then every strong one."""
        photos = ops.cast(photos, "float32")
        first = PLAIN if self.settings.objective is Objective.THRESHOLD else MILD
        second = dataclasses.replace(STRONG, min_area=self.settings.min_area)
        size = self.settings.view_size
        views = [random_view(photos, strength, size=size, seed=self.seed) for strength in (first, second)]
        updates_statistics = training and not self.settings.frozen_statistics
        return self.network(ops.concatenate(views, axis=0), training=updates_statistics)

    def compute_loss(
        self,
        x: Tensor = None,  # noqa: ARG002 - Keras' signature
        y: Tensor = None,  # noqa: ARG002
        y_pred: Tensor = None,
        sample_weight: Tensor = None,  # noqa: ARG002
        training: bool = True,  # noqa: ARG002
    ) -> Tensor:
        """The loss of a batch's two views."""
        settings = self.settings
        first, second = ops.split(y_pred, 2, axis=0)
        loss: Tensor = 0.0
        if settings.objective is not Objective.THRESHOLD:
            loss += contrastive_loss(
                first, second, temperature=settings.temperature, entropy_weight=settings.entropy_weight
            )
        if settings.objective is not Objective.CONTRASTIVE:
            loss += threshold_loss(
                first,
                second,
                threshold=settings.threshold,
                width=settings.threshold_width,
                false_weight=settings.false_weight,
            )
        return loss


class _EachEpoch(keras.callbacks.Callback):
    """Orders the photos before an epoch, saves after it, and gives up when the loss is no number."""

    def __init__(self, batches: PhotoBatches, settings: TrainingSettings, folder: Path) -> None:
        super().__init__()
        self._batches = batches
        self._settings = settings
        self._folder = folder

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        self.model.start_epoch(epoch)
        generator = np.random.default_rng([self._settings.seed, epoch])
        if self._settings.group_size == 1:
            self._batches.start_epoch(generator.permutation(len(self._batches.photos)))
            return
        rows = _plain_rows(self.model.network, self._batches.photos, self._settings)
        group_size = self._settings.group_size
        self._batches.start_epoch(lookalike_order(rows, group_size=group_size, generator=generator))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if math.isnan(loss):
            raise TrainingError(f"the loss became NaN in epoch {epoch + 1}; lower learning_rate or use float32")
        saved.save(self._folder, self.model, epoch + 1)


def _plain_rows(network: keras.Model, photos: NDArray[np.uint8], settings: TrainingSettings) -> NDArray[np.float32]:
    """The embeddings of the unedited photos, `(n, dim)`."""
    describe = keras.Sequential(
        [keras.layers.Resizing(settings.view_size, settings.view_size, dtype="float32"), network]
    )
    describe.compile(jit_compile=keras.backend.backend() == "jax")
    rows: NDArray[np.float32] = describe.predict(photos, batch_size=settings.batch_size, verbose=0)
    return rows


def train_embedder(
    photos: Path,
    checkpoints: Path,
    settings: TrainingSettings,
    *,
    output: Path,
    start_from: Path | None = None,
    min_score: float = 0.8,
    tracking_uri: str | None = None,
    verbose: int = 2,
) -> EmbedderSpec:
    """Train on every image under `photos` and write the embedder directory `output`, which must not exist yet.

    Starts from random weights, or from those of the embedder directory `start_from`. Resumes from `checkpoints` when
    the same training was stopped there. The directory says in its lineage what it was trained on; the MLflow store
    `tracking_uri` gets the same as a run. `verbose` is Keras' (0 silent, 2 a line an epoch). Raises TrainingError, and
    TrainingInterrupted on Ctrl-C.
    """
    if output.exists():
        raise TrainingError(f"{output} already exists; choose another output directory or remove it first")
    pixels = load_photos(photos, size=settings.source_size, batch_size=settings.batch_size)
    if settings.num_composed:
        pixels = with_lookalikes(pixels, num=settings.num_composed, seed=settings.seed)
    parameters = dataclasses.asdict(settings) | {"num_photos": len(pixels)}
    data = {"photos": photos_sha256(pixels)}
    first = describe_embedder(start_from) if start_from else None
    saved.claim(
        checkpoints,
        parameters | {"photos_sha256": data["photos"], "start_from": first.digest if first else None},
    )
    batches = PhotoBatches(pixels, batch_size=settings.batch_size)
    try:
        network, final_loss = _fit(batches, checkpoints, settings, first, verbose)
    except KeyboardInterrupt as interrupt:
        raise TrainingInterrupted(
            f"stopped after {saved.last_epoch(checkpoints)} of {settings.epochs} epochs; the state is kept in "
            f"{checkpoints}: run the same command again to go on from there"
        ) from interrupt
    except OSError as error:
        raise TrainingError(
            f"the training cannot go on: {error}; free the disk and run the same command again"
        ) from error
    with tempfile.TemporaryDirectory(prefix=".trained-", dir=checkpoints) as folder:
        weights = Path(folder) / "trained.weights.h5"
        save_weights(network, weights)
        rotation = principal_rotation(_plain_rows(network, pixels, settings))
        trained = create_embedder_dir(
            output,
            architecture="vgg_copy",
            weights=weights,
            size=settings.size,
            whitening=rotation.first(settings.dim // 2) if settings.layout_weight else rotation,
            layout_weight=settings.layout_weight,
            min_score=min_score,
        )
    record(
        trained.directory,
        kind=ModelKind.EMBEDDER,
        digest=trained.digest,
        tracking_uri=tracking_uri,
        seed=parameters.pop("seed"),
        parents={"start_from": first.digest} if first else {},
        data=data,
        parameters=parameters,
        metrics={} if final_loss is None else {"final_loss": final_loss},
    )
    return trained


def _fit(
    batches: PhotoBatches, checkpoints: Path, settings: TrainingSettings, first: EmbedderSpec | None, verbose: int
) -> tuple[keras.Model, float | None]:
    """The trained network, in float32, and the loss of its last epoch, None when an earlier process ran that."""
    keras.utils.set_random_seed(settings.seed)
    network = vgg_copy(size=settings.view_size, dim=settings.dim, dtype=KERAS_POLICIES[settings.dtype])
    if first is not None:
        load_weights(network, first)
    detector = CopyDetector(network, settings)
    num_steps = settings.epochs * len(batches)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=settings.learning_rate / 100,
        decay_steps=max(1, num_steps - settings.warmup_steps),
        warmup_target=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
    )
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=settings.weight_decay, clipnorm=settings.max_gradient_norm
    )
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta"])
    detector.compile(optimizer=optimizer, jit_compile=keras.backend.backend() == "jax")
    detector(batches[0][0])  # A checkpoint can be restored only into a model that was called once.
    optimizer.build(detector.trainable_variables)
    history = detector.fit(
        batches,
        initial_epoch=saved.restore(checkpoints, detector),
        epochs=settings.epochs,
        shuffle=False,
        verbose=verbose,
        callbacks=[_EachEpoch(batches, settings, checkpoints)],
    )
    trained = vgg_copy(size=settings.view_size, dim=settings.dim)
    trained.set_weights(network.get_weights())
    losses = history.history.get("loss", [])
    return trained, float(losses[-1]) if losses else None
