"""Synthetic photos, and a folder of them with everything that goes wrong in a folder of strangers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter


def synthetic_photo(seed: int, *, width: int = 96, height: int = 72) -> Image.Image:
    """Smooth coloured blobs with some edges: every seed gives a picture that looks like no other."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
    patch = Image.fromarray(generator.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize((width // 3, height // 3))
    picture.paste(patch, (int(generator.integers(0, width // 2)), int(generator.integers(0, height // 2))))
    return picture.filter(ImageFilter.GaussianBlur(0.6))


def synthetic_squares(num: int, *, size: int) -> NDArray[np.uint8]:
    """`(num, size, size, 3)` of them, as a network takes them."""
    return np.stack([np.asarray(synthetic_photo(seed, width=size, height=size)) for seed in range(num)])


def write_photo_folder(folder: Path) -> Path:
    """Six pictures, a recompressed copy of each, one exact copy, and six files that are no whole images."""
    (folder / "copies").mkdir(parents=True)
    for seed in range(6):
        photo = synthetic_photo(seed)
        photo.save(folder / f"photo-{seed}.png")
        photo.save(folder / "copies" / f"photo-{seed}.jpg", quality=90)
    (folder / "copies" / "same.png").write_bytes((folder / "photo-0.png").read_bytes())
    (folder / "notes.txt").write_text("not an image")
    (folder / "wrong-extension.jpg").write_text("%PDF-1.7")
    (folder / "empty.jpg").touch()
    whole = (folder / "copies" / "photo-1.jpg").read_bytes()
    for name in ("truncated.jpg", "truncated-copy.jpg"):
        (folder / name).write_bytes(whole[: len(whole) // 2])
    (folder / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    return folder
