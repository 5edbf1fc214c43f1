"""One score for a pair: from the cosine, the classifier and the calibration of an embedder directory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embed.calibration.calibration import Calibration, Promise
from embed.embedder_dir import EmbedderSpec, create_embedder_dir, describe_embedder, extend_embedder_dir
from embed.errors import EmbedderError
from embed.pair_classifier.classifier import PairClassifier
from embed.pair_scoring import PairScorer, load_pair_scorer

DIM = 24
PROMISE = Promise(
    target=0.99,
    precision=0.995,
    lower_bound=0.99,
    upper_bound=1.0,
    recall=0.8,
    true_pairs_per_query=1.0,
    corpus_size=100,
)


@pytest.fixture
def spec(tmp_path: Path) -> EmbedderSpec:
    return create_embedder_dir(tmp_path / "plain", architecture="vgg_copy", weights="seeded", size=32, dim=DIM)


def classifier_for(spec: EmbedderSpec, *, slope: float = 10.0) -> PairClassifier:
    rng = np.random.default_rng(0)
    return PairClassifier(
        projection=rng.normal(size=(DIM, 4)).astype(np.float32),
        bias=np.zeros(4, np.float32),
        output=rng.normal(size=4).astype(np.float32),
        line=np.array([slope, 0.0, -5.0], np.float32),
        embedder_digest=spec.digest,
    )


def calibration_for(spec: EmbedderSpec) -> Calibration:
    return Calibration(
        method="logistic",
        raw_scores=(0.0, 1.0),
        probabilities=(0.0, 1.0),
        threshold=0.6,
        promise=PROMISE,
        scored_by=spec.raw_scorer_digest,
    )


def scores(scorer: PairScorer) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and scores of some pairs of rows."""
    rows = np.random.default_rng(3).normal(1, 1, (40, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    places = np.arange(20)
    cosines = np.einsum("nd,nd->n", rows[:20], rows[20:])
    projected = scorer.project(rows)
    return cosines, scorer.scores(cosines, projected, projected, places, places + 20)


def test_without_classifier_and_calibration_the_score_is_the_cosine(spec: EmbedderSpec) -> None:
    cosines, found = scores(load_pair_scorer(spec))
    np.testing.assert_array_equal(found, cosines)


def test_a_classifiers_score_is_a_probability(spec: EmbedderSpec, tmp_path: Path) -> None:
    extended = extend_embedder_dir(spec, tmp_path / "c", pair_classifier=classifier_for(spec), min_score=0.7)
    _, found = scores(load_pair_scorer(extended))
    assert ((found >= 0) & (found <= 1)).all()
    assert extended.min_score == 0.7


def test_a_calibration_maps_raw_scores_and_sets_the_threshold(spec: EmbedderSpec, tmp_path: Path) -> None:
    extended = extend_embedder_dir(spec, tmp_path / "c", calibration=calibration_for(spec))
    cosines, found = scores(load_pair_scorer(extended))
    np.testing.assert_allclose(found, np.clip(cosines, 0, 1), atol=1e-6)
    assert extended.min_score == pytest.approx(0.6)


def test_matrix_and_pairs_agree(spec: EmbedderSpec) -> None:
    scorer = PairScorer(classifier_for(spec))
    rows = np.random.default_rng(3).normal(0.5, 1, (30, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(
        np.diag(scorer.matrix(rows[:15], rows[15:])), scorer.pairs(rows[:15], rows[15:]), atol=1e-4
    )


def test_the_embeddings_digest_stays_and_the_scorers_changes(spec: EmbedderSpec, tmp_path: Path) -> None:
    """What was embedded stays valid; what was selected does not."""
    first = extend_embedder_dir(spec, tmp_path / "1", pair_classifier=classifier_for(spec))
    second = extend_embedder_dir(spec, tmp_path / "2", pair_classifier=classifier_for(spec, slope=11.0))
    calibrated = extend_embedder_dir(first, tmp_path / "3", calibration=calibration_for(first))
    assert spec.digest == first.digest == second.digest == calibrated.digest
    assert len({each.scorer_digest for each in (spec, first, second, calibrated)}) == 4
    assert calibrated.raw_scorer_digest == first.raw_scorer_digest


def test_a_new_classifier_leaves_the_old_calibration_behind(spec: EmbedderSpec, tmp_path: Path) -> None:
    calibrated = extend_embedder_dir(spec, tmp_path / "1", calibration=calibration_for(spec))
    extended = extend_embedder_dir(calibrated, tmp_path / "2", pair_classifier=classifier_for(spec))
    assert extended.calibration is None
    assert sorted(path.name for path in extended.directory.iterdir()) == ["embedder.json", "pair_classifier.npz"]


def test_a_calibration_of_other_scores_is_refused(spec: EmbedderSpec, tmp_path: Path) -> None:
    extended = extend_embedder_dir(spec, tmp_path / "1", calibration=calibration_for(spec))
    other = extend_embedder_dir(spec, tmp_path / "2", pair_classifier=classifier_for(spec))
    path = other.directory / "embedder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration": "calibration.json"}))
    (other.directory / "calibration.json").write_bytes((extended.directory / "calibration.json").read_bytes())
    with pytest.raises(EmbedderError, match=r"calibrates the scores of .* run `neardup calibrate`"):
        load_pair_scorer(describe_embedder(other.directory))


def test_an_existing_directory_is_never_overwritten(spec: EmbedderSpec) -> None:
    with pytest.raises(EmbedderError, match="already exists"):
        extend_embedder_dir(spec, spec.directory, min_score=0.5)


def test_pairs_too_far_apart_cost_nothing_and_the_others_score_the_same(spec: EmbedderSpec) -> None:
    scorer = PairScorer(classifier_for(spec))
    rows = np.random.default_rng(3).normal(1, 1, (40, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    left, right = np.random.default_rng(4).integers(0, 40, (2, 100))
    cosines = np.einsum("nd,nd->n", rows[left], rows[right])
    above = scorer.scores_above(cosines, rows, rows, left, right, lowest_similarity=0.6)
    projected = scorer.project(rows)
    every = scorer.scores(cosines, projected, projected, left, right)
    assert 0 < (cosines >= 0.6).sum() < 100
    np.testing.assert_allclose(above[cosines >= 0.6], every[cosines >= 0.6], rtol=1e-5)
    assert (above[cosines < 0.6] < 1e-6).all()


@pytest.mark.parametrize("min_score", [0.2, 0.5, 0.9])
def test_below_the_lowest_similarity_nothing_reaches_the_score(spec: EmbedderSpec, min_score: float) -> None:
    """With a classifier of no hidden units, whose logit the cosine bounds."""
    plain = replace(
        classifier_for(spec),
        projection=np.empty((DIM, 0), np.float32),
        bias=np.empty(0, np.float32),
        output=np.empty(0, np.float32),
    )
    cosines = np.linspace(0.3, 1.0, 200, dtype=np.float32)
    nothing, places = np.zeros((200, 1), np.float32), np.arange(200)
    found = PairScorer(plain).scores(cosines, nothing, nothing, places, places)
    lowest = PairScorer(plain).lowest_similarity(min_score)
    assert not (found[cosines < lowest] >= min_score).any()
    assert (found[cosines > lowest + 1e-3] >= min_score).all()
