"""The pair classifier at work: a threshold on the cosine that depends on where in the space the pair lies.

Some regions are crowded with different pictures that look alike (drawings on pale ground, single flowers on black),
others are nearly empty. How crowded it is around an image is measured: the mean cosine with the `CROWD` nearest of a
background of other images. A pair's logit is linear in its cosine and in the crowding of both images, plus a small
network on the direction between the two embeddings. All but the cosine is computed once an image, and a pair costs a
few dozen operations.

Source of the crowding: score normalisation in SSCD, Pizzi et al., arXiv 2202.10261, section 4.4.

Trained with Keras (`embed.pair_classifier.training`), applied with numpy alone.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.errors import ClassifierError, EmbedderError

CLASSIFIER_FILE: Final = "pair_classifier.npz"
MAX_BYTES: Final = 16 << 20
MIN_SIMILARITY: Final = 0.3
"""Pairs below are different, whatever the network says: it is not trained on them."""
HOPELESS: Final = -100.0
_PAIRS_AT_ONCE: Final = 65_536
CROWD: Final = 3
"""How many of the background's images, the nearest ones, say how crowded it is around an image."""
MIN_CROWDING: Final = 0.3
"""Where it is emptier it counts as this crowded, so that a pair's cosine bounds its logit."""
_ROUNDING: Final = 1e-4
_IMAGES_AT_ONCE: Final = 1024
_NUMBERS: Final = ("projection", "bias", "output", "line")


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """Images that a crowding is measured against, as int8 codes `(n, dim)`, none of them all zeros.

    Products of codes are sums of integers below 2**24, exact in float32 in any order of adding: an image's crowding
    does not depend on the batch it comes in.
    """

    codes: NDArray[np.int8]
    _rows: NDArray[np.float32] = field(init=False, repr=False)
    _inverse_lengths: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.dtype != np.int8 or len(self.codes) < CROWD:
            raise ClassifierError(
                f"a background of shape {self.codes.shape} {self.codes.dtype}; expected at least {CROWD} rows of int8"
            )
        if not self.codes.any(axis=1).all():
            raise ClassifierError("a code of the background is all zeros")
        rows = self.codes.astype(np.float32)
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_inverse_lengths", _inverse_lengths(rows))

    def crowding(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """The mean cosine with the `CROWD` nearest, at least `MIN_CROWDING`, `(n,)` float32.

        `rows` are `(n, dim)` embeddings or their int8 codes.
        """
        crowding = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _IMAGES_AT_ONCE):
            part = slice(start, start + _IMAGES_AT_ONCE)
            codes = as_codes(rows[part]).astype(np.float32)
            cosines = (codes @ self._rows.T) * self._inverse_lengths
            nearest = np.sort(np.partition(cosines, -CROWD, axis=1)[:, -CROWD:], axis=1)
            mean = nearest.mean(axis=1, dtype=np.float32) * _inverse_lengths(codes)
            crowding[part] = np.maximum(mean, np.float32(MIN_CROWDING))
        return crowding


def as_codes(rows: NDArray[Any]) -> NDArray[np.int8]:
    """Embeddings scaled to int8 by their largest coordinate, `(n, dim)`; codes as they are."""
    if rows.dtype == np.int8:
        return rows
    numbers = rows.astype(np.float64)
    largest = np.maximum(np.abs(numbers).max(axis=1, keepdims=True), 1e-12)
    codes: NDArray[np.int8] = np.rint(numbers * 127 / largest).astype(np.int8)
    return codes


def _inverse_lengths(codes: NDArray[np.float32]) -> NDArray[np.float32]:
    """One by the length of each row, 0 for a row of zeros."""
    squares = np.einsum("nd,nd->n", codes, codes)
    return np.where(squares > 0, 1 / np.sqrt(np.maximum(squares, 1)), 0).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairClassifier:
    """`line @ (cosine, crowding, 1) + relu(direction @ projection + bias) @ output`.

    `projection` `(dim, hidden)`, `bias` and `output` `(hidden,)`, `line` `(3,)`, all float32 and finite; there may be
    no hidden units. The crowding is the sum of that of both images, 0 without a `background`; the direction of two unit
    rows is their sum at unit length. `embedder_digest` names the embedder it was trained on.
    """

    projection: NDArray[np.float32]
    bias: NDArray[np.float32]
    output: NDArray[np.float32]
    line: NDArray[np.float32]
    embedder_digest: str
    background: Background | None = None

    def __post_init__(self) -> None:
        hidden = self.bias.shape
        if self.projection.ndim != 2 or (self.projection.shape[1],) != hidden or self.output.shape != hidden:
            raise ClassifierError(
                f"arrays of shapes {self.projection.shape}, {hidden} and {self.output.shape} do not fit together; "
                f"expected (dim, hidden), (hidden,) and (hidden,)"
            )
        if self.line.shape != (3,):
            raise ClassifierError(f"line of shape {self.line.shape} instead of (3,)")
        if self.background is not None and self.background.codes.shape[1] != self.dim:
            raise ClassifierError(f"a background of dimension {self.background.codes.shape[1]} instead of {self.dim}")
        if not all(np.isfinite(array).all() for array in (self.projection, self.bias, self.output, self.line)):
            raise ClassifierError("it holds values that are not finite")

    @property
    def dim(self) -> int:
        """The dimension of the embeddings it takes."""
        return int(self.projection.shape[0])

    @property
    def digest(self) -> str:
        """The identity of all its numbers."""
        return hashlib.sha256(classifier_bytes(self)).hexdigest()

    def lowest_similarity(self, logit: float) -> float:
        """No pair of a lower cosine reaches `logit`. What hidden units add has no such bound."""
        slope, of_crowding, intercept = map(float, self.line)
        if len(self.bias) or slope <= 0 or of_crowding > 0:
            return MIN_SIMILARITY
        least = 0.0 if self.background is None else 2 * MIN_CROWDING
        return max(MIN_SIMILARITY, (logit - intercept - of_crowding * least) / slope - _ROUNDING)

    def project(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """What a pair needs of each of its images: `(n, dim)` embeddings or int8 codes -> `(n, 1 + hidden)` float32."""
        numbers = rows.astype(np.float32)
        lengths = np.linalg.norm(numbers, axis=1, keepdims=True)
        projected = np.zeros((len(rows), 1 + len(self.bias)), np.float32)
        if self.background is not None:
            projected[:, 0] = self.background.crowding(rows)
        projected[:, 1:] = (numbers @ self.projection) / np.maximum(lengths, np.float32(1e-12))
        return projected

    def logits(
        self,
        similarities: NDArray[np.float32],
        left: NDArray[np.float32],
        right: NDArray[np.float32],
        left_rows: NDArray[np.int64],
        right_rows: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Cosines `(m,)` of the pairs of `left[left_rows]` and `right[right_rows]`, both projected -> `(m,)` float32.

        A pair and its reverse have the same logit.
        """
        logits = np.empty(len(similarities), np.float32)
        for start in range(0, len(similarities), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            cosines = similarities[part]
            inverse_length = 1 / np.sqrt(np.maximum(2 + 2 * cosines, np.float32(1e-6)))
            both = left[left_rows[part]]
            both += right[right_rows[part]]
            hidden = both[:, 1:] * inverse_length[:, None]
            hidden += self.bias
            np.maximum(hidden, 0, out=hidden)
            on_line = self.line[0] * cosines + self.line[1] * both[:, 0] + self.line[2]
            logits[part] = hidden @ self.output + on_line
            logits[part][cosines < MIN_SIMILARITY] = HOPELESS
        return logits


def classifier_bytes(classifier: PairClassifier) -> bytes:
    """`classifier` as an `.npz` file; equal classifiers give equal bytes."""
    background = classifier.background
    buffer = io.BytesIO()
    np.savez(
        buffer,
        projection=classifier.projection,
        bias=classifier.bias,
        output=classifier.output,
        line=classifier.line,
        background=np.empty((0, classifier.dim), np.int8) if background is None else background.codes,
        embedder_digest=np.frombuffer(classifier.embedder_digest.encode("ascii"), np.uint8),
    )
    return buffer.getvalue()


def read_classifier(path: Path, *, embedder_digest: str) -> PairClassifier:
    """The classifier of an `.npz`, never unpickled; raises EmbedderError when it is damaged or another's."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ClassifierError(f"more than {MAX_BYTES} bytes")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            given = {name: np.asarray(arrays[name], np.float32) for name in _NUMBERS}
            digest = np.asarray(arrays["embedder_digest"], np.uint8).tobytes().decode("ascii")
            codes = np.asarray(arrays["background"])
        background = Background(codes) if len(codes) else None
        classifier = PairClassifier(**given, embedder_digest=digest, background=background)
    except Exception as error:
        raise EmbedderError(
            f"{path} is no pair classifier ({error}); restore it, or run `neardup train-classifier` again"
        ) from error
    if classifier.embedder_digest != embedder_digest:
        raise EmbedderError(
            f"{path} was trained on embedder {classifier.embedder_digest[:12]}, not on {embedder_digest[:12]}; "
            f"run `neardup train-classifier` on this embedder"
        )
    return classifier
