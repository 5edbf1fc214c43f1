"""The live index against a search through all its rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lsh.codes import pair_cosines, quantize
from service.live_index import EXHAUSTIVE, LiveIndex
from tests.service.corpora import DIM, near, random_embeddings


def brute_force(
    queries: NDArray[np.float32], codes: NDArray[np.int8], rows: list[int], *, k: int, min_similarity: float
) -> list[list[tuple[int, float]]]:
    """The slow twin: the cosine of each query with each row, best first, ties by row."""
    found = []
    for query in range(len(queries)):
        own = np.full(len(rows), query, dtype=np.int64)
        cosines = pair_cosines(quantize(queries), codes, own, np.array(rows, dtype=np.int64)).tolist()
        best = sorted((-cosine, row) for row, cosine in zip(rows, cosines, strict=True) if cosine >= min_similarity)
        found.append([(row, -cosine) for cosine, row in best[:k]])
    return found


def test_it_finds_what_a_search_through_all_rows_finds() -> None:
    """Adding, removing and searching in turn always gives the brute force's rows and similarities."""
    generator = np.random.default_rng(5)
    index = LiveIndex(random_embeddings(20, seed=1))
    base = random_embeddings(30, seed=2)
    codes = np.empty((0, DIM), dtype=np.int8)
    left: list[int] = []
    for step in range(12):
        new = np.stack([near(base[number % 30], 0.7 + 0.3 * generator.random(), seed=step) for number in range(150)])
        rows = index.add(quantize(new))
        assert rows.tolist() == list(range(len(codes), len(codes) + len(new)))
        codes = np.concatenate([codes, quantize(new)])
        left += rows.tolist()
        doomed = generator.choice(left, 40, replace=False)
        index.remove(doomed)
        left = sorted(set(left) - set(doomed.tolist()))

        found = index.search(base, k=7, min_similarity=0.75)

        expected = brute_force(base, codes, left, k=7, min_similarity=0.75)
        actual = [
            [(row, similarity) for row, similarity in zip(*pair, strict=True) if row >= 0]
            for pair in zip(found.rows.tolist(), found.similarities.tolist(), strict=True)
        ]
        assert actual == expected
        assert len(index) == len(left)


def test_an_empty_index_finds_nothing() -> None:
    """Rows are -1 where there is no match."""
    index = LiveIndex(random_embeddings(3))

    found = index.search(random_embeddings(2), k=4, min_similarity=-1.0)

    assert found.rows.tolist() == [[-1] * 4] * 2


def test_a_large_index_still_finds_equal_and_near_rows() -> None:
    """Above the size up to which every row is looked at, a row finds itself and its near-duplicate."""
    embeddings = random_embeddings(4 * EXHAUSTIVE, seed=9)
    index = LiveIndex(embeddings[:: len(embeddings) // 256])
    index.add(quantize(embeddings))
    copies = np.stack([near(embedding, 0.97, seed=3) for embedding in embeddings[:200]])

    itself = index.search(embeddings[:200], k=1, min_similarity=0.9).rows[:, 0]
    original = index.search(copies, k=1, min_similarity=0.9).rows[:, 0]

    assert itself.tolist() == list(range(200))
    assert (original == np.arange(200)).mean() >= 0.95
