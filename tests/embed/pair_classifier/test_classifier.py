"""The pair classifier at work: its logits, its symmetry, its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embed.errors import ClassifierError, EmbedderError
from embed.pair_classifier.classifier import (
    HOPELESS,
    MIN_SIMILARITY,
    Background,
    PairClassifier,
    classifier_bytes,
    read_classifier,
)
from lsh.codes import quantize

DIM, HIDDEN = 16, 5
DIGEST = "ab" * 32


def unit_rows(n: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Rows near one direction, so that most of their cosines are above `MIN_SIMILARITY`."""
    rows = np.random.default_rng(seed).normal(1.0, 0.8, (n, DIM)).astype(np.float32)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


@pytest.fixture
def classifier() -> PairClassifier:
    rng = np.random.default_rng(1)
    return PairClassifier(
        projection=rng.normal(size=(DIM, HIDDEN)).astype(np.float32),
        bias=rng.normal(size=HIDDEN).astype(np.float32),
        output=rng.normal(size=HIDDEN).astype(np.float32),
        line=np.array([20.0, -4.0, -15.0], np.float32),
        embedder_digest=DIGEST,
        background=Background(codes_of(unit_rows(30, seed=9))),
    )


def codes_of(rows: NDArray[np.float32]) -> NDArray[np.int8]:
    codes: NDArray[np.int8] = np.rint(rows / np.abs(rows).max(axis=1, keepdims=True) * 127).astype(np.int8)
    return codes


def slow_crowding(classifier: PairClassifier, row: NDArray[Any]) -> float:
    """The mean of the three greatest cosines of the row's code with the background, in double precision."""
    assert classifier.background is not None
    code, others = codes_of(row[None])[0].astype(np.float64), classifier.background.codes.astype(np.float64)
    cosines = others @ code / np.linalg.norm(others, axis=1) / np.linalg.norm(code)
    return max(float(np.mean(sorted(cosines)[-3:])), 0.3)


def slow_logit(classifier: PairClassifier, left: NDArray[Any], right: NDArray[Any]) -> float:
    """The slow twin: one pair, straight from the definition, in double precision."""
    left, right = (row.astype(np.float64) / np.linalg.norm(row.astype(np.float64)) for row in (left, right))
    cosine = float(left @ right)
    if cosine < MIN_SIMILARITY:
        return HOPELESS
    direction = (left + right) / np.linalg.norm(left + right)
    hidden = np.maximum(direction @ classifier.projection + classifier.bias, 0)
    crowding = slow_crowding(classifier, left) + slow_crowding(classifier, right)
    return float(classifier.line @ (cosine, crowding, 1.0) + hidden @ classifier.output)


def logits(classifier: PairClassifier, left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float32]:
    places = np.arange(len(left))
    cosines = np.einsum("nd,nd->n", left, right).astype(np.float32)
    return classifier.logits(cosines, classifier.project(left), classifier.project(right), places, places)


def test_logits_equal_the_slow_twin(classifier: PairClassifier) -> None:
    left, right = unit_rows(500, seed=2), unit_rows(500, seed=3)
    expected = [slow_logit(classifier, a, b) for a, b in zip(left, right, strict=True)]
    np.testing.assert_allclose(logits(classifier, left, right), expected, atol=2e-4)


def test_a_pair_and_its_reverse_have_the_same_logit(classifier: PairClassifier) -> None:
    left, right = unit_rows(200, seed=2), unit_rows(200, seed=3)
    np.testing.assert_array_equal(logits(classifier, left, right), logits(classifier, right, left))


def test_many_pairs_at_once_score_as_one_by_one(classifier: PairClassifier) -> None:
    """Pairs are worked on in parts; where a part ends makes no difference."""
    rows = unit_rows(40)
    projected = classifier.project(rows)
    left, right = np.random.default_rng(5).integers(0, 40, (2, 70_000))
    cosines = np.einsum("nd,nd->n", rows[left], rows[right])
    together = classifier.logits(cosines, projected, projected, left, right)
    some = np.r_[0:20, 65_530:65_540, 69_990:70_000]
    alone = [classifier.logits(cosines[[i]], projected, projected, left[[i]], right[[i]])[0] for i in some]
    np.testing.assert_allclose(together[some], alone, atol=1e-4)


def test_codes_are_projected_like_the_embeddings_they_stand_for(classifier: PairClassifier) -> None:
    rows = unit_rows(50)
    codes = codes_of(rows)
    np.testing.assert_allclose(classifier.project(codes), classifier.project(rows), atol=0.05)


def test_a_code_of_zeros_is_nowhere(classifier: PairClassifier) -> None:
    """Its crowding is the least there is, the rest zeros."""
    projected = classifier.project(np.zeros((2, DIM), np.int8))
    assert (projected[:, 0] == np.float32(0.3)).all()
    assert not projected[:, 1:].any()


def test_crowding_does_not_depend_on_the_batch(classifier: PairClassifier) -> None:
    """Not even in the last bit: a pair's score is the same in every partition."""
    assert classifier.background is not None
    rows = unit_rows(1100)
    together = classifier.background.crowding(rows)
    for part in (slice(0, 1), slice(500, 507), slice(1023, 1100)):
        np.testing.assert_array_equal(classifier.background.crowding(rows[part]), together[part])


def test_embeddings_and_their_codes_have_one_crowding(classifier: PairClassifier) -> None:
    """Uploads come as embeddings, known images as codes."""
    assert classifier.background is not None
    rows = unit_rows(50)
    np.testing.assert_array_equal(classifier.background.crowding(rows), classifier.background.crowding(quantize(rows)))


def test_the_cosine_bounds_the_logit_without_hidden_units(classifier: PairClassifier) -> None:
    """A pair below the bound never reaches the logit, and where it is empty one just above does."""
    bounded = replace(
        classifier,
        projection=np.empty((DIM, 0), np.float32),
        bias=np.empty(0, np.float32),
        output=np.empty(0, np.float32),
    )
    left, right = unit_rows(3000, seed=2), unit_rows(3000, seed=3)
    cosines, found = np.einsum("nd,nd->n", left, right), logits(bounded, left, right)
    for wanted in (-8.0, -4.0, 0.0):
        assert not (found[cosines < bounded.lowest_similarity(wanted)] >= wanted).any()
    # 20 c - 4 * 0.6 - 15 = -4
    assert bounded.lowest_similarity(-4.0) == pytest.approx(0.67, abs=1e-3)
    assert classifier.lowest_similarity(-4.0) == MIN_SIMILARITY


def test_without_hidden_units_and_background_only_the_cosine_counts() -> None:
    left, right = unit_rows(50, seed=2), unit_rows(50, seed=3)
    plain = PairClassifier(
        projection=np.empty((DIM, 0), np.float32),
        bias=np.empty(0, np.float32),
        output=np.empty(0, np.float32),
        line=np.array([2.0, 5.0, -1.0], np.float32),
        embedder_digest=DIGEST,
    )
    cosines = np.einsum("nd,nd->n", left, right)
    expected = np.where(cosines < MIN_SIMILARITY, HOPELESS, 2 * cosines - 1)
    np.testing.assert_allclose(logits(plain, left, right), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "codes",
    [np.ones((2, DIM), np.int8), np.ones((5, DIM), np.float32), np.zeros((5, DIM), np.int8), np.ones(5, np.int8)],
)
def test_a_background_that_cannot_be_is_refused(codes: NDArray[Any]) -> None:
    """Too few, of another type, all zeros, no rows."""
    with pytest.raises(ClassifierError):
        Background(codes)


def test_pairs_far_apart_are_hopeless(classifier: PairClassifier) -> None:
    row = unit_rows(1)
    assert logits(classifier, row, -row)[0] == np.float32(HOPELESS)


def test_a_classifier_is_read_as_it_was_written(classifier: PairClassifier, tmp_path: Path) -> None:
    path = tmp_path / "pair_classifier.npz"
    path.write_bytes(classifier_bytes(classifier))
    assert read_classifier(path, embedder_digest=DIGEST).digest == classifier.digest


def test_another_embedders_classifier_is_refused(classifier: PairClassifier, tmp_path: Path) -> None:
    path = tmp_path / "pair_classifier.npz"
    path.write_bytes(classifier_bytes(classifier))
    with pytest.raises(EmbedderError, match="was trained on embedder abababababab, not on cdcdcdcdcdcd"):
        read_classifier(path, embedder_digest="cd" * 32)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY" + bytes(50)])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pair_classifier.npz"
    path.write_bytes(content)
    with pytest.raises(EmbedderError, match=r"pair_classifier\.npz is no pair classifier"):
        read_classifier(path, embedder_digest=DIGEST)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "pair_classifier.npz"
    np.savez(path, projection=np.array([object()]))
    with pytest.raises(EmbedderError, match="is no pair classifier"):
        read_classifier(path, embedder_digest=DIGEST)


@pytest.mark.parametrize(
    "change",
    [
        {"bias": np.zeros(HIDDEN + 1, np.float32)},
        {"output": np.full(HIDDEN, np.nan, np.float32)},
        {"line": np.zeros(2, np.float32)},
        {"background": Background(np.ones((4, DIM + 1), np.int8))},
    ],
)
def test_numbers_that_do_not_fit_are_refused(classifier: PairClassifier, change: dict[str, Any]) -> None:
    with pytest.raises(ClassifierError):
        replace(classifier, **change)
