"""Rules of the lookup benchmark: its corpus, its truth, and what it counts as found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import lookup
from benchmarks.lookup import Answers, BruteForce, command, corpus_batches, held_out_queries, recall_rows


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "IMAGES_PER_BATCH", 400)


def test_batches_give_as_many_rows_and_queries_as_asked_for() -> None:
    """All batches together hold every row and every held-out query once, the same each time."""
    batches = list(corpus_batches(1001, 53, seed=3))
    assert sum(len(rows) for rows, _ in batches) == 1001
    assert sum(len(queries) for _, queries in batches) == 53
    again = list(corpus_batches(1001, 53, seed=3))
    assert all(np.array_equal(rows, others) for (rows, _), (others, _) in zip(batches, again, strict=True))


def test_truth_is_the_best_of_all_rows() -> None:
    """Brute force over batches gives what one product over all rows gives."""
    batches = list(corpus_batches(900, 30, seed=0))
    rows, queries = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    truth = BruteForce(queries)
    for batch, _ in batches:
        truth.add(batch)
    np.testing.assert_allclose(truth.cosines, (queries @ rows.T).max(axis=1), atol=1e-6)


def test_queries_are_those_of_the_batches() -> None:
    """Making the queries alone gives the same ones."""
    batches = list(corpus_batches(1001, 53, seed=3))
    queries = np.concatenate([queries for _, queries in batches])
    np.testing.assert_array_equal(held_out_queries(1001, 53, seed=3), queries)


def test_an_answer_as_similar_as_the_best_counts() -> None:
    """Another doc of equal cosine is as good; a less similar one, or none, is a miss; far queries are left out."""
    best = np.array([0.8, 0.81, 0.88, 0.97, 0.6], np.float32)
    answers = Answers(np.array([0.799, 0.7, 0.88, -1.0, -1.0], np.float32), np.zeros(5), 0.0)
    assert recall_rows(best, answers) == [
        ("0.79 to 1.00", 4, 0.5),
        ("0.79 to 0.85", 2, 0.5),
        ("0.85 to 0.90", 1, 1.0),
        ("0.90 to 0.95", 0, 1.0),
        ("0.95 to 1.00", 1, 0.0),
    ]


def test_the_benchmark_writes_a_row_for_each_contender(tmp_path: Path) -> None:
    """A small run measures the hash tables and, where FAISS is, HNSW, and finds nearly everything."""
    path = tmp_path / "lookup.json"
    result = CliRunner().invoke(command, ["--images", "1000", "--queries", "60", "--json", str(path)])
    assert result.exit_code == 0, result.output
    rows = json.loads(path.read_text())["rows"]
    assert rows[0]["contender"] == "hash tables"
    assert rows[0]["ratio"] == 1.0
    assert rows[0]["recall"][0]["recall_at_1"] > 0.9
    assert {row["case"] for row in rows} == {"lookup"}
    assert all("FAISS" in row["contender"] for row in rows[1:])
