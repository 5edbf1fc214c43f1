"""The pair classifier at work: a threshold on the cosine that depends on where in the space the pair lies.

Some regions are crowded with different pictures that look alike (drawings on pale ground, single flowers on black),
others are nearly empty. A pair's logit is a line in its cosine plus a small network on the direction between its two
embeddings. The first layer is linear in both, so it is computed once an image, and a pair costs a few dozen operations.

Trained with Keras (`embed.pair_classifier.training`), applied with numpy alone.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
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
_NUMBERS: Final = ("projection", "bias", "output", "line")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairClassifier:
    """`slope * cosine + intercept + relu(direction @ projection + bias) @ output`, where `line` is slope, intercept.

    `projection` `(dim, hidden)`, `bias` and `output` `(hidden,)`, `line` `(2,)`, all float32 and finite; the direction
    of two unit rows is their sum at unit length. `embedder_digest` names the embedder it was trained on.
    """

    projection: NDArray[np.float32]
    bias: NDArray[np.float32]
    output: NDArray[np.float32]
    line: NDArray[np.float32]
    embedder_digest: str

    def __post_init__(self) -> None:
        hidden = self.bias.shape
        if self.projection.ndim != 2 or (self.projection.shape[1],) != hidden or self.output.shape != hidden:
            raise ClassifierError(
                f"arrays of shapes {self.projection.shape}, {hidden} and {self.output.shape} do not fit together; "
                f"expected (dim, hidden), (hidden,) and (hidden,)"
            )
        if self.line.shape != (2,):
            raise ClassifierError(f"line of shape {self.line.shape} instead of (2,)")
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

    def project(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """What a pair needs of each of its images: `(n, dim)` embeddings or int8 codes -> `(n, hidden)` float32."""
        rows = rows.astype(np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        projected: NDArray[np.float32] = (rows @ self.projection) / np.maximum(lengths, np.float32(1e-12))
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
            hidden = left[left_rows[part]]
            hidden += right[right_rows[part]]
            hidden *= inverse_length[:, None]
            hidden += self.bias
            np.maximum(hidden, 0, out=hidden)
            logits[part] = hidden @ self.output + self.line[0] * cosines + self.line[1]
            logits[part][cosines < MIN_SIMILARITY] = HOPELESS
        return logits


def classifier_bytes(classifier: PairClassifier) -> bytes:
    """`classifier` as an `.npz` file; equal classifiers give equal bytes."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        projection=classifier.projection,
        bias=classifier.bias,
        output=classifier.output,
        line=classifier.line,
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
        classifier = PairClassifier(**given, embedder_digest=digest)
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
