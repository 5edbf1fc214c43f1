"""Rules of selecting matches, on the blocks of one range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs.make_terms import binary_rows
from batch_jobs.select_matches import (
    DOCS_PER_STRIP,
    Selection,
    _by_right_range,
    read_codes,
    term_overlap,
    verified,
)
from embed.calibration.calibration import Calibration, Promise
from embed.pair_classifier.classifier import PairClassifier
from embed.pair_scoring import PairScorer
from lsh.errors import ParameterError

PAIRS = np.array([[0, 1], [0, 2], [1, 3]], dtype=np.uint64)
SHARED_TERMS = np.array([1, 3, 8], dtype=np.uint32)


def selected(selection: Selection, *, codes: Path) -> list[tuple[int, int, float, float, int]]:
    edges, _ = verified(PAIRS, SHARED_TERMS, codes=(str(codes),), selection=selection, docs_per_range=4)
    return [tuple(row.values()) for row in edges.to_pylist()]


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """Codes of four docs: 0 and 2 are equal, 1 is their opposite, 3 lies across."""
    values = np.array([[100, 0], [-100, 0], [100, 0], [0, 100]], dtype=np.int8)
    pq.write_table(pa.table({"doc": [0, 1, 2, 3], "code": binary_rows(values)}), tmp_path / "codes.parquet")
    return tmp_path


def test_candidates_are_verified_by_the_cosine_of_their_codes(codes: Path) -> None:
    """A pair of high cosine is a match, however few terms it shares above `min_shared_terms`."""
    selection = Selection(dim=2, scorer=PairScorer(), min_score=0.8, min_shared_terms=1, num_tables=16)

    assert selected(selection, codes=codes) == [(0, 2, 1.0, 1.0, 3)]


def test_the_embedders_scorer_decides(codes: Path) -> None:
    """The score is the classifier's probability, calibrated; the similarity stays the cosine."""
    classifier = PairClassifier(
        projection=np.eye(2, dtype=np.float32),
        bias=np.zeros(2, np.float32),
        output=np.array([2.0, 0.0], np.float32),
        line=np.array([1.0, 0.0, 0.0], np.float32),
        embedder_digest="",
    )
    promise = Promise(
        target=0.9,
        precision=0.9,
        lower_bound=0.9,
        upper_bound=0.9,
        recall=1.0,
        true_pairs_per_query=1.0,
        corpus_size=4,
    )
    calibration = Calibration(
        method="logistic",
        raw_scores=(0.0, 4.0),
        probabilities=(0.0, 1.0),
        threshold=2.0,
        promise=promise,
        scored_by="",
    )
    selection = Selection(
        dim=2, scorer=PairScorer(classifier, calibration), min_score=0.5, min_shared_terms=1, num_tables=16
    )

    assert selected(selection, codes=codes) == [(0, 2, 1.0, 0.75, 3)]


def test_pairs_of_too_few_shared_terms_are_no_candidates(codes: Path) -> None:
    """`min_shared_terms` drops a pair before it is verified."""
    selection = Selection(dim=2, scorer=PairScorer(), min_score=0.8, min_shared_terms=4, num_tables=16)

    assert selected(selection, codes=codes) == []


def test_unverified_candidates_are_matches_scored_by_the_overlap_of_their_terms(tmp_path: Path) -> None:
    """Without verification no code is read: there are none here, and enough shared terms make a match."""
    selection = Selection(dim=2, scorer=PairScorer(), min_score=0.8, min_shared_terms=3, num_tables=16, verified=False)
    found = selected(selection, codes=tmp_path / "missing")

    assert [(left, right, shared) for left, right, _, _, shared in found] == [(0, 2, 3), (1, 3, 8)]
    assert [score for _, _, _, score, _ in found] == pytest.approx([3 / 29, 8 / 24])


def test_the_overlap_of_equal_signatures_is_one() -> None:
    """All tables shared is an overlap of 1, none is 0."""
    assert term_overlap(np.array([0, 16], dtype=np.uint32), num_tables=16).tolist() == [0.0, 1.0]


def test_codes_are_read_by_range_in_the_order_of_docs(codes: Path) -> None:
    """Only docs of the range come back, with their rows."""
    docs, rows = read_codes((str(codes),), 1, dim=2, docs_per_range=2)

    assert docs.tolist() == [2, 3]
    assert rows.tolist() == [[100, 0], [0, 100]]


@pytest.mark.parametrize("docs_per_range", [1, 5, DOCS_PER_STRIP, 3 * DOCS_PER_STRIP])
def test_pairs_are_taken_by_the_range_of_their_right_doc(docs_per_range: int) -> None:
    """Each pair comes once, with its range, whether strips are many or few, and next to one another or far apart."""
    rng = np.random.default_rng(0)
    rights = np.concatenate([rng.integers(0, 200_000, 500), rng.integers(1 << 40, (1 << 40) + 9, 5)]).astype(np.uint64)
    rights = rights[rights < 100_000] if docs_per_range < DOCS_PER_STRIP else rights
    rights = rng.permutation(np.minimum(rights, np.uint64(70_000 * docs_per_range)))
    taken = [(right_range, row) for right_range, rows in _by_right_range(rights, docs_per_range) for row in rows]

    assert sorted(row for _, row in taken) == list(range(len(rights)))
    assert all(right_range == int(rights[row]) // docs_per_range for right_range, row in taken)
    ranges = [right_range for right_range, _ in _by_right_range(rights, docs_per_range)]
    assert ranges == sorted(set(ranges))


def test_a_pair_without_a_code_is_refused(codes: Path) -> None:
    """A doc that no segment has a code for cannot be verified by that of another."""
    pairs, shared_terms = np.array([[0, 9]], np.uint64), np.ones(1, np.uint32)
    selection = Selection(dim=2, scorer=PairScorer(), min_score=0.8, min_shared_terms=1, num_tables=16)

    with pytest.raises(ParameterError, match="right_rows holds -1"):
        verified(pairs, shared_terms, codes=(str(codes),), selection=selection, docs_per_range=10)
