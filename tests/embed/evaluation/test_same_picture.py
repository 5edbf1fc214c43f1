"""Rules of finding one picture in two files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from embed.evaluation.same_picture import MAX_DIFFERENCE, same_pictures, same_thumbnails


def photo(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    return coarse.resize((260, 180), Image.Resampling.BICUBIC)


def test_a_recompressed_file_holds_the_same_picture_and_another_photo_does_not(tmp_path: Path) -> None:
    """Recompression and a smaller size are seen through; an edit or another photo is another picture."""
    first = photo(1)
    first.save(tmp_path / "a.png")
    first.resize((200, 138)).save(tmp_path / "b.jpg", quality=90)
    first.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "c.png")
    photo(2).save(tmp_path / "d.png")
    assert same_pictures(sorted(tmp_path.iterdir())) == [(0, 1)]


def test_the_limit_is_exact() -> None:
    """A difference of exactly the limit is the same picture, one just above is not."""
    base = np.full((1, 12), 100.0)
    rows = np.concatenate([base, base + MAX_DIFFERENCE, base - MAX_DIFFERENCE - 1e-3])
    assert same_thumbnails(rows) == [(0, 1)]


def test_three_files_of_one_picture_give_all_three_pairs() -> None:
    """Every pair is reported, in ascending order."""
    rows = np.repeat(np.arange(2.0)[:, None] * 50, 12, axis=1)[[0, 1, 0, 0]]
    assert same_thumbnails(rows) == [(0, 2), (0, 3), (2, 3)]
