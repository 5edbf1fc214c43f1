"""Rules of the peers: whatever they are, they find pairs of rows that are near by their exact cosine."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.batch_embeddings import plant_embeddings, row_cosines
from benchmarks.batch_peers import PEERS, Job, recall_of

MIN_SIMILARITY = 0.79


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """2,000 embeddings with a slice of 500 rows and all its true pairs."""
    folder = tmp_path_factory.mktemp("job")
    rows = plant_embeddings(2000, seed=0).embeddings
    left, right = np.nonzero(rows[:500] @ rows.T >= MIN_SIMILARITY)
    pairs = np.column_stack([left, right])[left != right]
    np.savez(folder / "embeddings.npz", embeddings=rows)
    np.savez(folder / "truth.npz", slice=np.arange(500), pairs=pairs)
    return Job(
        embeddings=str(folder / "embeddings.npz"),
        truth=str(folder / "truth.npz"),
        pairs=str(folder / "pairs.npz"),
        min_similarity=MIN_SIMILARITY,
        target_recall=0.95,
        plan={},
        master="local[2]",
    )


@pytest.mark.parametrize("name", ["flat", "ivf", "hnsw", "multi-hash", "datasketch"])
def test_a_peer_finds_the_true_pairs_of_the_slice_and_no_others(name: str, job: Job) -> None:
    """Recall on the slice reaches the target, and every pair is of two rows at least that near."""
    if name != "datasketch":
        pytest.importorskip("faiss", reason="the peer of this benchmark is not installed")
    outcome = PEERS[name](job)
    _, truth = job.slice()
    rows = job.rows()

    assert recall_of(outcome.pairs, truth, len(rows)) >= 0.95
    assert row_cosines(rows, outcome.pairs[:, 0], outcome.pairs[:, 1]).min() >= MIN_SIMILARITY - 1e-5
    assert (outcome.pairs[:, 0] != outcome.pairs[:, 1]).all()


def test_flat_search_finds_exactly_the_true_pairs(job: Job) -> None:
    """The truth that all are held against is that of all products; its seconds are extrapolated from the slice."""
    pytest.importorskip("faiss", reason="the peer of this benchmark is not installed")
    outcome = PEERS["flat"](job)
    _, truth = job.slice()

    assert sorted(map(tuple, outcome.pairs.tolist())) == sorted(map(tuple, truth.tolist()))
    assert outcome.seconds == pytest.approx(outcome.build_s + 4 * outcome.search_s)


def test_recall_counts_pairs_in_either_direction() -> None:
    """A pair found as (b, a) counts for (a, b); no true pairs are all found."""
    truth = np.array([[0, 1], [2, 3]])
    assert recall_of(np.array([[1, 0]]), truth, 4) == 0.5
    assert recall_of(truth, np.empty((0, 2), dtype=np.int64), 4) == 1.0
