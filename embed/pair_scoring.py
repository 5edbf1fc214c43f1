"""The score of a pair: what selection and the lookup service compare with `min_score`.

A raw score comes from the pair classifier of the embedder directory, or is the cosine where there is none; the
calibration turns it into the probability that the pair is a near-duplicate. Without either, the score is the cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.calibration.calibration import CALIBRATION_FILE, Calibration, calibration_bytes, read_calibration
from embed.embedder_dir import EmbedderSpec
from embed.errors import EmbedderError
from embed.pair_classifier.classifier import (
    CLASSIFIER_FILE,
    HOPELESS,
    MIN_SIMILARITY,
    PairClassifier,
    classifier_bytes,
    read_classifier,
)


@dataclass(frozen=True, slots=True, eq=False)
class PairScorer:
    """Scores pairs of embeddings or codes; keep what `project` gave for an image as long as its pairs come."""

    classifier: PairClassifier | None = None
    calibration: Calibration | None = None

    @property
    def is_cosine(self) -> bool:
        """Whether the score of a pair is its cosine."""
        return self.classifier is None and self.calibration is None

    def project(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """What a pair needs of each of its images: `(n, dim)` unit rows or int8 codes -> `(n, width)` float32."""
        if self.classifier is None:
            return np.empty((len(rows), 0), np.float32)
        return self.classifier.project(rows)

    def raw_scores(
        self,
        similarities: NDArray[np.float32],
        left: NDArray[np.float32],
        right: NDArray[np.float32],
        left_rows: NDArray[np.int64],
        right_rows: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Cosines of the pairs of `left[left_rows]` and `right[right_rows]`, both projected, to `(m,)` raw scores."""
        if self.classifier is None:
            return similarities
        return self.classifier.logits(similarities, left, right, left_rows, right_rows)

    def scores(
        self,
        similarities: NDArray[np.float32],
        left: NDArray[np.float32],
        right: NDArray[np.float32],
        left_rows: NDArray[np.int64],
        right_rows: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """As `raw_scores`, within -1..1: probabilities, calibrated where possible, or cosines without a classifier."""
        return self._within_one(self.raw_scores(similarities, left, right, left_rows, right_rows))

    def scores_above(
        self,
        similarities: NDArray[np.float32],
        left: NDArray[Any],
        right: NDArray[Any],
        left_rows: NDArray[np.int64],
        right_rows: NDArray[np.int64],
        *,
        lowest_similarity: float,
    ) -> NDArray[np.float32]:
        """As `scores`, of embeddings or codes; a pair of a lower cosine is hopeless, and its images cost nothing."""
        if self.classifier is None:
            return self._within_one(similarities)
        raw = np.full(len(similarities), HOPELESS, np.float32)
        near = np.flatnonzero(similarities >= lowest_similarity)
        lefts, left_places = np.unique(left_rows[near], return_inverse=True)
        rights, right_places = np.unique(right_rows[near], return_inverse=True)
        raw[near] = self.raw_scores(
            similarities[near], self.project(left[lefts]), self.project(right[rights]), left_places, right_places
        )
        return self._within_one(raw)

    def _within_one(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.calibration is not None:
            return self.calibration.apply(raw)
        return raw if self.classifier is None else sigmoid(raw)

    def lowest_similarity(self, min_score: float) -> float:
        """No pair of a lower cosine reaches `min_score`."""
        raw = min_score if self.calibration is None else self.calibration.invert(min_score)
        if self.classifier is None:
            return raw
        return self.classifier.lowest_similarity(raw if self.calibration is not None else logit(raw))

    def matrix(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw scores of all pairs of unit rows, `(a, dim)` and `(b, dim)` -> `(a, b)` float32, for evaluation."""
        return self.matrix_of(left @ right.T, left, right)

    def matrix_of(
        self, similarities: NDArray[np.float32], left: NDArray[np.float32], right: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """As `matrix`, were the pairs so similar, `(a, b)` float32."""
        if self.classifier is None:
            return similarities
        raw = np.full(similarities.shape, HOPELESS, np.float32)
        left_rows, right_rows = np.nonzero(similarities >= MIN_SIMILARITY)
        near = similarities[left_rows, right_rows]
        raw[left_rows, right_rows] = self.raw_scores(
            near, self.project(left), self.project(right), left_rows, right_rows
        )
        return raw

    def pairs(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw scores of the pairs of unit rows `left[i]`, `right[i]`, both `(m, dim)` -> `(m,)` float32."""
        return self.pairs_of(np.einsum("nd,nd->n", left, right), left, right)

    def pairs_of(
        self, similarities: NDArray[np.float32], left: NDArray[np.float32], right: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """As `pairs`, were the pairs so similar, `(m,)` float32."""
        places = np.arange(len(left))
        return self.raw_scores(similarities, self.project(left), self.project(right), places, places)


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits to probabilities, without overflow."""
    half: NDArray[np.float32] = np.tanh(logits * np.float32(0.5)) * np.float32(0.5) + np.float32(0.5)
    return half


def logit(probability: float) -> float:
    """The inverse of `sigmoid`, infinite at 0 and 1."""
    if 0 < probability < 1:
        return math.log(probability / (1 - probability))
    return math.inf if probability >= 1 else -math.inf


def scorer_files(scorer: PairScorer) -> dict[str, bytes]:
    """The files that `read_pair_scorer` makes the scorer of again; none for plain cosines."""
    files = {}
    if scorer.classifier is not None:
        files[CLASSIFIER_FILE] = classifier_bytes(scorer.classifier)
    if scorer.calibration is not None:
        files[CALIBRATION_FILE] = calibration_bytes(scorer.calibration)
    return files


def read_pair_scorer(folder: Path, *, embedder_digest: str) -> PairScorer:
    """The scorer whose `scorer_files` lie in a folder, as a run or an index keeps them; raises EmbedderError."""
    classifier, calibration = folder / CLASSIFIER_FILE, folder / CALIBRATION_FILE
    return PairScorer(
        read_classifier(classifier, embedder_digest=embedder_digest) if classifier.exists() else None,
        read_calibration(calibration) if calibration.exists() else None,
    )


def load_pair_scorer(spec: EmbedderSpec) -> PairScorer:
    """What the embedder directory of `spec` scores pairs with; raises EmbedderError."""
    classifier = calibration = None
    if spec.pair_classifier is not None:
        classifier = read_classifier(spec.directory / spec.pair_classifier, embedder_digest=spec.digest)
    if spec.calibration is not None:
        path = spec.directory / spec.calibration
        calibration = read_calibration(path)
        if calibration.scored_by != spec.raw_scorer_digest:
            raise EmbedderError(
                f"{path} calibrates the scores of {calibration.scored_by[:12]}, but {spec.directory} scores with "
                f"{spec.raw_scorer_digest[:12]}; run `neardup calibrate` on it"
            )
    return PairScorer(classifier, calibration)
