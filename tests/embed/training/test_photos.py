"""Training photos: what counts as one, and the order of an epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embed.errors import TrainingError

pytestmark = pytest.mark.tensorflow


def test_photos_are_loaded_in_path_order_and_other_files_passed_over(tmp_path: Path) -> None:
    """Every image below the folder becomes a square, sorted by path; text and broken images are skipped."""
    from embed.training.photos import load_photos

    (tmp_path / "sub").mkdir()
    for number, name in enumerate(["c.png", "a.png", "sub/b.png", "d.png"]):
        Image.new("RGB", (9, 5), (number * 50, 0, 0)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a photo")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])

    photos = load_photos(tmp_path, size=6, batch_size=2)

    assert photos.shape == (4, 6, 6, 3)
    assert photos[:, 0, 0, 0].tolist() == [50, 0, 150, 100]


@pytest.mark.parametrize(
    ("folder", "message"), [("missing", "is not a directory"), (".", "0 readable images in 1 files.*at least 64")]
)
def test_too_few_photos_are_refused(tmp_path: Path, folder: str, message: str) -> None:
    """A folder that is missing or holds less than two batches says what is needed."""
    from embed.training.photos import load_photos

    (tmp_path / "notes.txt").write_text("not a photo")

    with pytest.raises(TrainingError, match=message):
        load_photos(tmp_path / folder, size=6, batch_size=32)


def test_batches_follow_the_order_they_were_given() -> None:
    """An epoch visits the photos of whole batches in the given order, a last partial batch left out."""
    from embed.training.photos import PhotoBatches

    numbered = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    batches = PhotoBatches(numbered, batch_size=4)
    batches.start_epoch(np.arange(10)[::-1])

    assert [set(batches[i][0].ravel().tolist()) for i in range(len(batches))] == [{9, 8, 7, 6}, {5, 4, 3, 2}]
