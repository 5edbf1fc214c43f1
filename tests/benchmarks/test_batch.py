"""Rules of the synthetic embeddings and of finding planted pairs again."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.batch import MAX_EDITS, found_pairs, plant_embeddings, read_edges


@pytest.mark.parametrize("num_images", [2, 3, 21, 1000])
def test_there_are_exactly_as_many_unit_rows_as_asked_for(num_images: int) -> None:
    """Every size gives that many float32 rows of length 1, with a family each."""
    planted = plant_embeddings(num_images, seed=0)
    assert planted.embeddings.shape == (num_images, 256)
    assert planted.embeddings.dtype == np.float32
    assert planted.family.shape == (num_images,)
    assert np.allclose(np.linalg.norm(planted.embeddings, axis=1), 1.0, atol=1e-5)


def test_the_seed_decides_the_embeddings() -> None:
    """The same seed gives the same bytes, another seed others."""
    first, again, other = (plant_embeddings(200, seed=seed).embeddings.tobytes() for seed in (1, 1, 2))
    assert first == again != other


def test_about_half_of_the_images_are_families_of_one_photo_and_up_to_twenty_edits() -> None:
    """Family sizes lie between 2 and 21 and their members make up about half of all images."""
    sizes = np.bincount(plant_embeddings(5000, seed=0).family)
    families = sizes[sizes > 1]
    assert families.max() <= MAX_EDITS + 1
    assert 0.45 < families.sum() / 5000 <= 0.5


def test_planted_pairs_are_all_pairs_of_a_family_with_their_exact_cosine() -> None:
    """The listed pairs equal a walk over all pairs of rows, and every edit is at least 0.7 from its photo."""
    planted = plant_embeddings(300, seed=3)
    pairs, cosines = planted.pairs()
    expected = [(i, j) for i, j in combinations(range(300), 2) if planted.family[i] == planted.family[j]]
    assert sorted(map(tuple, pairs.tolist())) == expected
    exact = np.einsum("nd,nd->n", *(planted.embeddings[pairs[:, side]].astype(np.float64) for side in (0, 1)))
    assert np.allclose(cosines, exact, atol=1e-5)
    best: dict[int, float] = {}
    for (left, right), cosine in zip(pairs.tolist(), cosines.tolist(), strict=True):
        for row in (left, right):
            best[row] = max(best.get(row, 0.0), cosine)
    assert min(best.values()) >= 0.7 - 1e-4


def test_random_pairs_are_as_close_as_those_of_a_trained_network() -> None:
    """The 90th and 99th percentile of cosines between different photos lie where real embeddings have them."""
    planted = plant_embeddings(3000, seed=0)
    photos = planted.embeddings[np.unique(planted.family, return_index=True)[1]]
    cosines = (photos @ photos.T)[np.triu_indices(len(photos), 1)]
    assert np.quantile(cosines, [0.9, 0.99]) == pytest.approx([0.21, 0.43], abs=0.05)


def test_a_planted_pair_is_found_in_either_direction() -> None:
    """An edge counts whichever end comes first, and only the same two images count."""
    planted = np.array([[0, 5], [2, 3], [1, 4]])
    edges = np.array([[5, 0], [2, 3], [1, 5], [4, 2]])
    assert found_pairs(planted, edges, num_images=6).tolist() == [True, True, False]


def test_edges_are_read_as_rows_whatever_docs_the_catalogue_gave(tmp_path: Path) -> None:
    """Docs are mapped back to the rows that the image ids name."""
    pq.write_table(pa.table({"doc": [4, 0, 2], "image_id": ["000", "001", "012"]}), tmp_path / "catalogue.parquet")
    pq.write_table(pa.table({"left_doc": [0, 2], "right_doc": [4, 4]}), tmp_path / "edges.parquet")
    assert read_edges(tmp_path / "edges.parquet", tmp_path / "catalogue.parquet").tolist() == [[1, 0], [12, 0]]
