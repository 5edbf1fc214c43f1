"""Rules of the embeddings that the batch benchmark joins."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.batch_embeddings import (
    CROWDINGS,
    MAX_EDITS,
    MIN_EDIT_COSINE,
    density_of,
    embed_photos,
    plant_embeddings,
    row_cosines,
)

REAL = json.loads((Path(__file__).parent / "real_density.json").read_text(encoding="utf-8"))


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


def test_every_edit_has_a_near_relative() -> None:
    """Each member of a family is at least `MIN_EDIT_COSINE` from another of its members, the photo."""
    planted = plant_embeddings(300, seed=3)
    cosines = planted.embeddings @ planted.embeddings.T
    np.fill_diagonal(cosines, -1.0)
    is_relative = planted.family[:, None] == planted.family[None, :]
    best = np.where(is_relative, cosines, -1.0).max(axis=1)
    in_family = np.bincount(planted.family)[planted.family] > 1
    assert best[in_family].min() >= MIN_EDIT_COSINE - 1e-4


@pytest.mark.parametrize("name", CROWDINGS)
def test_planted_photos_are_as_crowded_as_real_ones(name: str) -> None:
    """Spectrum and cosines of random pairs lie near those measured on embeddings of real photos."""
    planted = plant_embeddings(6000, seed=0, crowding=CROWDINGS[name])
    photos = planted.embeddings[np.unique(planted.family, return_index=True)[1]]
    density = density_of(photos)
    assert density.effective_dims == pytest.approx(REAL[name]["effective_dims"], rel=0.1)
    assert density.variance_of_first == pytest.approx(REAL[name]["variance_of_first"], abs=0.035)
    assert density.cosine_quantiles == pytest.approx(REAL[name]["cosine_quantiles"], abs=0.06)


def test_cosines_in_chunks_equal_the_product() -> None:
    """Cosines of listed pairs are those of the matrix of all cosines."""
    rows = plant_embeddings(50, seed=1).embeddings
    left, right = np.triu_indices(50, 1)
    np.testing.assert_allclose(row_cosines(rows, left, right), (rows @ rows.T)[left, right], atol=1e-6)


@pytest.mark.tensorflow
def test_photos_are_embedded_with_three_edits_each(tmp_path: Path) -> None:
    """Eight images of a folder are two photos and three edits of each, as unit rows."""
    rng = np.random.default_rng(0)
    for number in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((160, 160), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.png")
    planted = embed_photos(tmp_path, 8, seed=0)
    assert planted.embeddings.shape == (8, 256)
    assert np.bincount(planted.family).tolist() == [4, 4]
    assert np.allclose(np.linalg.norm(planted.embeddings, axis=1), 1.0, atol=1e-5)
