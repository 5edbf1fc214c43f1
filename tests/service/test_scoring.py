"""Scores of the service: the same classifier and calibration as the run that its generation was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from embed.calibration.calibration import Calibration, Promise
from embed.pair_classifier.classifier import PairClassifier
from embed.pair_scoring import PairScorer, scorer_files
from lsh.index.publishing import promote
from service.engine import Engine
from service.errors import GenerationRefused
from tests.service.corpora import DIGEST, DIM, add_generation, image_ids, near, open_engine, random_embeddings

EMBEDDINGS = random_embeddings(200)
PROMISE = Promise(
    target=0.9,
    precision=0.9,
    lower_bound=0.9,
    upper_bound=0.9,
    recall=1.0,
    true_pairs_per_query=1.0,
    corpus_size=4,
)
CALIBRATION = Calibration(
    method="logistic",
    raw_scores=(0.6, 1.0),
    probabilities=(0.0, 1.0),
    threshold=0.8,
    promise=PROMISE,
    scored_by="",
)
Serve = Callable[..., Engine]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """`serve(scorer, min_score=...)`: an engine over 200 images whose run was scored so."""
    engines: list[Engine] = []

    def engine_of(scorer: PairScorer, *, min_score: float = 0.5, **changed: bytes) -> Engine:
        files = {**scorer_files(scorer), **{name.replace("__", "."): content for name, content in changed.items()}}
        generation_id = add_generation(
            tmp_path / "index", image_ids(200), EMBEDDINGS, min_score=min_score, scorer_files=files
        )
        promote(tmp_path / "index", generation_id)
        engines.append(open_engine(tmp_path / "index", generation_id, tmp_path / "log.db"))
        return engines[-1]

    yield engine_of
    for engine in engines:
        engine.close()


def crowded_around(row: np.ndarray) -> PairClassifier:
    """A classifier that asks for more where a pair lies near `row`."""
    return PairClassifier(
        projection=row[:, None].astype(np.float32),
        bias=np.array([-0.9], np.float32),
        output=np.array([-200.0], np.float32),
        line=np.array([20.0, 0.0, -10.0], np.float32),
        embedder_digest=DIGEST,
    )


def test_a_score_is_the_calibrated_probability(serve: Serve) -> None:
    """In the hash tables and among uploads; the similarity stays the cosine."""
    engine = serve(PairScorer(calibration=CALIBRATION))
    engine.register("upload", near(EMBEDDINGS[3], 0.9, seed=5))[1].result(timeout=30)
    _, (answer,) = engine.lookup(EMBEDDINGS[3][None], k=5, min_score=None)
    scores = {match.image_id: (match.score, match.similarity) for match in answer.matches}
    assert scores["image-3"] == pytest.approx((1.0, 1.0), abs=0.02)
    assert scores["upload"] == pytest.approx((0.75, 0.9), abs=0.02)


def test_min_score_is_compared_with_the_probability(serve: Serve) -> None:
    """A cosine of 0.79 is a probability of 0.475, below 0.5 and above 0.3."""
    engine = serve(PairScorer(calibration=CALIBRATION))
    query = near(EMBEDDINGS[3], 0.79, seed=2)[None]
    assert engine.lookup(query, k=5, min_score=0.5)[1][0].matches == ()
    assert [match.image_id for match in engine.lookup(query, k=5, min_score=0.3)[1][0].matches] == ["image-3"]


def test_the_classifier_decides_as_the_run_did(serve: Serve) -> None:
    """What the engine scores is what the pair scorer says, and a crowded region asks for more."""
    scorer = PairScorer(crowded_around(EMBEDDINGS[3]))
    engine = serve(scorer)
    for doc, is_found in ((3, False), (4, True)):
        query = near(EMBEDDINGS[doc], 0.9, seed=1)
        _, (answer,) = engine.lookup(query[None], k=5, min_score=None)
        assert [match.image_id for match in answer.matches] == ([f"image-{doc}"] if is_found else [])
        for match in answer.matches:
            raw = scorer.pairs(query[None], EMBEDDINGS[doc][None])
            assert match.score == pytest.approx(float(1 / (1 + np.exp(-raw[0]))), abs=0.02)


def test_a_classifier_of_another_embedder_is_refused(serve: Serve) -> None:
    """The generation is not served, and the reason names the file."""
    other = PairClassifier(
        projection=np.zeros((DIM, 1), np.float32),
        bias=np.zeros(1, np.float32),
        output=np.zeros(1, np.float32),
        line=np.zeros(3, np.float32),
        embedder_digest="cd" * 32,
    )
    with pytest.raises(GenerationRefused, match=r"pair_classifier\.npz was trained on embedder cdcdcdcdcdcd"):
        serve(PairScorer(other))


def test_a_damaged_calibration_is_refused(serve: Serve) -> None:
    with pytest.raises(GenerationRefused, match=r"calibration\.json is no calibration"):
        serve(PairScorer(), calibration__json=b"{}")
