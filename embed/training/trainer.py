"""Trains the copy-detection embedder: two edited views of each photo must find each other in the batch.

`train_embedder` is what `neardup train-embedder` calls. Training goes through Keras' own `fit`, so it runs on
TensorFlow, JAX and torch; a checkpoint is written after each epoch and a killed training resumes from the last one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from embed.architectures import vgg_copy
from embed.training.augmentation import MILD, STRONG, random_view
from embed.training.loss import contrastive_loss
from embed.training.photos import PhotoBatches, load_photos

Tensor = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Everything that decides the weights, besides the photos."""

    size: int = 96
    dim: int = 256
    source_size: int = 144
    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    weight_decay: float = 0.02
    temperature: float = 0.06
    entropy_weight: float = 0.5
    dtype: str = "mixed_bfloat16"
    seed: int = 0


class CopyDetector(keras.Model):
    """The network under training: `fit` gives it photos, its loss compares two random views of each."""

    def __init__(self, network: keras.Model, settings: TrainingSettings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.seed = keras.random.SeedGenerator(settings.seed)

    def call(self, photos: Tensor, training: bool = False) -> Tensor:
        """`(n, source, source, 3)` uint8 -> `(2n, dim)`: first every mild view, then every strong one."""
        photos = ops.cast(photos, "float32")
        views = [random_view(photos, strength, size=self.settings.size, seed=self.seed) for strength in (MILD, STRONG)]
        return self.network(ops.concatenate(views, axis=0), training=training)

    def compute_loss(
        self,
        x: Tensor = None,
        y: Tensor = None,
        y_pred: Tensor = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        first, second = ops.split(y_pred, 2, axis=0)
        return contrastive_loss(
            first,
            second,
            temperature=self.settings.temperature,
            entropy_weight=self.settings.entropy_weight,
        )


def train_embedder(photos: Path, checkpoints: Path, settings: TrainingSettings, *, verbose: int = 2) -> keras.Model:
    """The trained network, in float32. Resumes from `checkpoints` when an earlier training was stopped there."""
    keras.utils.set_random_seed(settings.seed)
    batches = PhotoBatches(
        load_photos(photos, size=settings.source_size), batch_size=settings.batch_size, seed=settings.seed
    )
    network = vgg_copy(size=settings.size, dim=settings.dim, dtype=settings.dtype)
    detector = CopyDetector(network, settings)
    num_steps = settings.epochs * len(batches)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=settings.learning_rate / 100,
        decay_steps=max(1, num_steps - settings.warmup_steps),
        warmup_target=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=settings.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta"])
    detector.compile(optimizer=optimizer, jit_compile=keras.backend.backend() == "jax")
    detector(batches[0][0])  # Keras restores a checkpoint only into a model that was called once.
    detector.fit(
        batches,
        epochs=settings.epochs,
        verbose=verbose,
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: batches.start_epoch(epoch)),
            keras.callbacks.BackupAndRestore(str(checkpoints), delete_checkpoint=False),
        ],
    )
    trained = vgg_copy(size=settings.size, dim=settings.dim)
    trained.set_weights(network.get_weights())
    return trained
