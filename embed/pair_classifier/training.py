"""Trains a pair classifier on edits that find their photo and on the look-alikes that stand in their way.

Every edit of a photo with the photo, and with another of its edits, is a true pair; an edit with the files most similar
to it among the others is a false one. Labels from geometry or from people join them, those from people at a higher
weight. Through Keras' `fit` and `keras.ops`, so on any of its backends.

Source: hard negatives for a pairwise second stage as in Gusev and Xu, arXiv 2209.08433, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.errors import ClassifierError
from embed.keras_backend import keras, layers, ops
from embed.pair_classifier.classifier import Background, PairClassifier
from embed.ranges import check_ranges

HUMAN_WEIGHT: Final = 10.0
BATCH_SIZE: Final = 1024
_FIRST_SLOPE, _FIRST_THRESHOLD = 25.0, 0.75
_RANGES: Final = {
    "hidden": (0, 1024),
    "num_members": (1, 64),
    "num_lookalikes": (1, 1000),
    "epochs": (1, 1000),
    "learning_rate": (1e-6, 1.0),
    "weight_decay": (0.0, 10.0),
    "dropout": (0.0, 0.9),
    "seed": (0, 2**31 - 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierSettings:
    """How it is trained. The mean of `num_members` networks of `hidden` units is itself one network, and steadier.

    With `hidden` 0 the logit is linear in the cosine and the crowding.
    """

    hidden: int = 16
    num_members: int = 4
    num_lookalikes: int = 8
    epochs: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 0.3
    dropout: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES, error=ClassifierError)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingPairs:
    """Pairs of `rows` `(n, dim)` unit rows: `left`, `right` int64, `is_same` bool and `weight` float32, all `(m,)`."""

    rows: NDArray[np.float32]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    is_same: NDArray[np.bool_]
    weight: NDArray[np.float32]


def planted_pairs(
    edited: NDArray[np.float32],
    corpus: NDArray[np.float32],
    *,
    same: NDArray[np.bool_] | None = None,
    num_lookalikes: int,
    seed: int,
) -> TrainingPairs:
    """The pairs of `(n, num_edits, dim)` edits of the first `n` rows of the `(c, dim)` corpus.

    `same` `(n, c)` marks files of the corpus that show the same picture as a photo; they are no false pairs.
    """
    num_photos, num_edits, dim = edited.shape
    edits = edited.reshape(-1, dim)
    photo = np.repeat(np.arange(num_photos), num_edits)
    first_edit = len(corpus)
    rows = np.concatenate([corpus, edits])
    places = first_edit + np.arange(len(edits))
    rng = np.random.default_rng(seed)
    other_edit = (np.arange(len(edits)) + rng.integers(1, max(num_edits, 2), len(edits))) % num_edits
    with_edit = first_edit + photo * num_edits + other_edit
    num_lookalikes = min(num_lookalikes, len(corpus) - 1)
    lookalikes = _most_similar_others(edits, corpus, photo, same, num_lookalikes)
    false_left = np.repeat(places, num_lookalikes)
    is_false = lookalikes.ravel() >= 0
    left = np.concatenate([places, places, false_left[is_false]])
    right = np.concatenate([photo, with_edit, lookalikes.ravel()[is_false]])
    is_same = np.arange(len(left)) < 2 * len(places)
    return TrainingPairs(rows, left, right, is_same, np.ones(len(left), np.float32))


def _most_similar_others(
    edits: NDArray[np.float32],
    corpus: NDArray[np.float32],
    photo: NDArray[np.int64],
    same: NDArray[np.bool_] | None,
    num: int,
) -> NDArray[np.int64]:
    """`(n, num)` rows of the corpus nearest to each edit, its own photo and the same pictures left out; -1 for none."""
    nearest = np.empty((len(edits), num), np.int64)
    for start in range(0, len(edits), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        similarities = edits[part] @ corpus.T
        similarities[np.arange(len(similarities)), photo[part]] = -np.inf
        if same is not None:
            similarities[same[photo[part]]] = -np.inf
        top = np.argpartition(-similarities, num - 1, axis=1)[:, :num]
        top[np.take_along_axis(similarities, top, axis=1) == -np.inf] = -1
        nearest[part] = np.sort(top, axis=1)
    return nearest


def with_labels(
    pairs: TrainingPairs,
    rows: NDArray[np.float32],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    is_same: NDArray[np.bool_],
    *,
    weight: float,
) -> TrainingPairs:
    """`pairs` with labelled pairs of other `rows` `(k, dim)` added at `weight` each."""
    first = len(pairs.rows)
    return TrainingPairs(
        np.concatenate([pairs.rows, rows]),
        np.concatenate([pairs.left, first + left]),
        np.concatenate([pairs.right, first + right]),
        np.concatenate([pairs.is_same, is_same]),
        np.concatenate([pairs.weight, np.full(len(left), weight, np.float32)]),
    )


def train_classifier(
    pairs: TrainingPairs,
    settings: ClassifierSettings,
    *,
    embedder_digest: str,
    background: Background | None = None,
) -> PairClassifier:
    """Train all members and merge them into one classifier; the same pairs and seed give the same one.

    None of the rows may be in the background: it would be crowded by itself.
    """
    if pairs.is_same.all() or not pairs.is_same.any():
        raise ClassifierError("the pairs are all true or all false; give more photos, or labels of both kinds")
    crowding = np.zeros(len(pairs.rows), np.float32) if background is None else background.crowding(pairs.rows)
    members = [
        _train_member(pairs, crowding, settings, seed=settings.seed + number) for number in range(settings.num_members)
    ]
    return PairClassifier(
        projection=np.concatenate([member.projection for member in members], axis=1),
        bias=np.concatenate([member.bias for member in members]),
        output=np.concatenate([member.output / len(members) for member in members]).astype(np.float32),
        line=np.mean([member.line for member in members], axis=0, dtype=np.float32),
        embedder_digest=embedder_digest,
        background=background,
    )


def pair_network(dim: int, settings: ClassifierSettings) -> keras.Model:
    """Two unit rows `(n, dim)` and the crowding of both `(n, 1)` -> logits `(n, 1)`."""
    left, right, crowding = layers.Input((dim,)), layers.Input((dim,)), layers.Input((1,))
    cosine = layers.Dot(axes=1)([left, right])
    line = layers.Dense(
        1,
        kernel_initializer=_first_line,
        bias_initializer=keras.initializers.Constant(-_FIRST_SLOPE * _FIRST_THRESHOLD),
        name="line",
    )(layers.Concatenate()([cosine, crowding]))
    if settings.hidden == 0:
        return keras.Model([left, right, crowding], line)
    direction = layers.UnitNormalization()(layers.Add()([left, right]))
    # Unit rows have coordinates near 1 / sqrt(dim); layers start best from coordinates near 1.
    scaled = layers.Rescaling(float(np.sqrt(dim)))(direction)
    hidden = layers.Dense(settings.hidden, activation="relu", name="hidden")(scaled)
    hidden = layers.Dropout(settings.dropout, seed=settings.seed)(hidden)
    of_region = layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="output")(hidden)
    return keras.Model([left, right, crowding], layers.Add()([line, of_region]))


def _first_line(shape: tuple[int, ...], dtype: Any = None) -> Any:
    """The slopes of cosine and crowding that the training starts from."""
    return ops.convert_to_tensor(np.array([[_FIRST_SLOPE], [0.0]], np.float32).reshape(shape), dtype=dtype)


class _PairBatches(keras.utils.PyDataset):
    """Batches of pairs in a new order each epoch, a function of the seed."""

    def __init__(self, pairs: TrainingPairs, crowding: NDArray[np.float32], *, seed: int) -> None:
        super().__init__()
        self._pairs = pairs
        self._crowding = crowding
        self._rng = np.random.default_rng(seed)
        self.on_epoch_end()

    def on_epoch_end(self) -> None:
        self._order = self._rng.permutation(len(self._pairs.left))

    def __len__(self) -> int:
        return math.ceil(len(self._order) / BATCH_SIZE)

    def __getitem__(self, index: int) -> tuple[Any, Any, Any]:
        pairs, chosen = self._pairs, self._order[index * BATCH_SIZE : (index + 1) * BATCH_SIZE]
        left, right = pairs.left[chosen], pairs.right[chosen]
        inputs = (pairs.rows[left], pairs.rows[right], (self._crowding[left] + self._crowding[right])[:, None])
        return inputs, pairs.is_same[chosen].astype(np.float32)[:, None], pairs.weight[chosen]


def _train_member(
    pairs: TrainingPairs, crowding: NDArray[np.float32], settings: ClassifierSettings, *, seed: int
) -> PairClassifier:
    keras.utils.set_random_seed(seed)
    dim = pairs.rows.shape[1]
    network = pair_network(dim, settings)
    batches = _PairBatches(pairs, crowding, seed=seed)
    schedule = keras.optimizers.schedules.CosineDecay(settings.learning_rate, settings.epochs * len(batches))
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=settings.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["line"])
    network.compile(
        optimizer=optimizer,
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        jit_compile=keras.backend.backend() == "jax",
    )
    network.fit(batches, epochs=settings.epochs, shuffle=False, verbose=0)
    slopes, intercept = network.get_layer("line").get_weights()
    if settings.hidden == 0:
        projection, bias, output = np.empty((dim, 0), np.float32), np.empty(0, np.float32), np.empty((0, 1), np.float32)
    else:
        projection, bias = network.get_layer("hidden").get_weights()
        (output,) = network.get_layer("output").get_weights()
    if not all(np.isfinite(array).all() for array in (slopes, output)):
        raise ClassifierError("the training ended in numbers that are not finite; lower learning_rate")
    return PairClassifier(
        projection=projection * np.float32(np.sqrt(dim)),
        bias=bias,
        output=output[:, 0],
        line=np.concatenate([slopes[:, 0], intercept]),
        embedder_digest="",
    )
