"""Rules of the folder of planted copies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.dedup import COPIES, VIEWED, num_with_original, write_copies


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two pictures; the third file is the first one recompressed."""
    folder = tmp_path / "in"
    folder.mkdir()
    for seed, name in ((0, "a.png"), (1, "b.png")):
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((160, 100), Image.Resampling.BICUBIC).save(folder / name)
    with Image.open(folder / "a.png") as first:
        first.save(folder / "c.jpg", quality=92)
    return sorted(folder.iterdir())


def test_every_photo_is_written_with_its_four_copies(photos: list[Path], tmp_path: Path) -> None:
    """Originals keep their bytes, each has all copies, and the truth names exactly the files written."""
    out = tmp_path / "out"
    out.mkdir()
    truth = write_copies(photos, out, seed=0)
    assert set(truth.original_of) == {path.name for path in out.iterdir()}
    assert len(truth.original_of) == len(photos) * (1 + len(COPIES))
    assert (out / "00001-original.png").read_bytes() == photos[1].read_bytes()


def test_other_copies_may_be_added(photos: list[Path], tmp_path: Path) -> None:
    """What views find is written beside the four copies, crops as large as they say."""
    out = tmp_path / "out"
    out.mkdir()
    truth = write_copies(photos, out, seed=0, copies=COPIES | VIEWED)
    assert len(truth.original_of) == len(photos) * (1 + len(COPIES | VIEWED))
    with Image.open(out / "00000-cropped to a quarter.jpg") as crop:
        assert crop.size == (80, 50)


def test_files_of_one_picture_are_one_group(photos: list[Path], tmp_path: Path) -> None:
    """The recompressed third file and its copies belong to the first photo."""
    out = tmp_path / "out"
    out.mkdir()
    truth = write_copies(photos, out, seed=0)
    assert Counter(truth.original_of.values()) == {"00000-original.png": 10, "00001-original.png": 5}


def test_labelled_photos_and_their_copies_are_not_judged(photos: list[Path], tmp_path: Path) -> None:
    """The pair is named by the groups that the photos are in."""
    out = tmp_path / "out"
    out.mkdir()
    truth = write_copies(photos, out, seed=0, linked=[(1, 2)])
    assert truth.unjudged == {("00000-original.png", "00001-original.png")}


def test_a_copy_counts_only_in_the_cluster_of_its_own_original() -> None:
    """A copy in another cluster, or in none, is not with its original."""
    clusters = [["00000-original.png", "00000-mirrored.jpg", "00001-mirrored.jpg"], ["00001-original.png", "x-y.jpg"]]
    assert num_with_original(clusters, "mirrored", num_photos=3) == 1
