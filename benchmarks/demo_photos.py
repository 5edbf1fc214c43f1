"""The demo's folder: photographs that installed packages carry, edited in a dozen ways, with the truth beside them.

Photos: `skimage.data` and `sklearn.datasets.images`, only what lies in the installed wheels, so nothing is downloaded.
Left out are drawings, text, masks, tiny patches and the featureless `clock_motion`. The two views of the stereo pair
`motorcycle` are a natural near-duplicate.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.truth import Truth
from embed.evaluation import edits
from embed.evaluation.edits import Edit

PHOTOS = {
    "skimage": (
        "data",
        (
            "astronaut.png",
            "brick.png",
            "camera.png",
            "chelsea.png",
            "coffee.png",
            "coins.png",
            "grass.png",
            "gravel.png",
            "hubble_deep_field.jpg",
            "ihc.png",
            "moon.png",
            "motorcycle_left.png",
            "retina.jpg",
            "rocket.jpg",
        ),
    ),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
}
OTHER_VIEWS = {"motorcycle_left": "motorcycle_right.png"}
PACKAGE_NAMES = {"skimage": "scikit-image", "sklearn": "scikit-learn"}

DEMO_EDITS: dict[str, Edit] = {
    "half-size": edits.half_size,
    "jpeg-30": edits.jpeg_30,
    "crop-80": edits.crop_80,
    "mirror": edits.mirror,
    "caption": edits.caption,
    "border": edits.border,
    "color": edits.color,
    "gray": edits.gray,
    "rotate-10": edits.rotate_10,
    "rotate-90": edits.rotate_90,
    "blur": edits.blur,
    "aspect": edits.aspect,
}
MAX_SIDE = 640
FILE_SUFFIXES = ("jpg", "png", "webp")


class PhotosMissingError(Exception):
    """A package or a photo that the demo needs is not installed."""


def write_demo(folder: Path, seed: int = 0) -> Truth:
    """Write `photos/` and `truth.csv` (`image,original`) into `folder`; an earlier demo there is replaced.

    The same seed writes the same images. Raises PhotosMissingError when a photo is not installed, and FileExistsError
    when `folder` holds a `photos` that no earlier demo wrote.
    """
    photos, truth_csv = folder / "photos", folder / "truth.csv"
    if photos.exists() and not truth_csv.exists():
        raise FileExistsError(f"{photos} exists and was not written by the demo; choose another --folder")
    sources = list(_photo_files())
    if photos.exists():
        shutil.rmtree(photos)
    photos.mkdir(parents=True)
    stem_of: dict[str, str] = {}
    truth_csv.touch()
    for number, path in enumerate(sources):
        for name, image in _versions(path, seed=seed, photo_number=number):
            file_name = f"{name}.{FILE_SUFFIXES[len(stem_of) % len(FILE_SUFFIXES)]}"
            image.save(photos / file_name, quality=90, compress_level=3, method=2)
            stem_of[file_name] = path.stem
    truth = Truth(_by_file(stem_of))
    truth.write_csv(truth_csv)
    return truth


def _by_file(stem_of: dict[str, str]) -> dict[str, str]:
    """Originals by file name instead of stem: `{"a.jpg": "a", "a-gray.png": "a"}` points both at `a.jpg`."""
    file_of = {Path(image).stem: image for image in stem_of}
    return {image: file_of[stem] for image, stem in stem_of.items()}


def _photo_files() -> Iterator[Path]:
    for module, (subfolder, names) in PHOTOS.items():
        for name in names:
            yield _installed(module, f"{subfolder}/{name}")


def _installed(module: str, relative: str) -> Path:
    """A file of an installed package, found without importing the package."""
    spec = find_spec(module)
    package = PACKAGE_NAMES[module]
    if spec is None or spec.submodule_search_locations is None:
        raise PhotosMissingError(f"the demo's photos come with {package}, which is missing; run: pip install {package}")
    path = Path(spec.submodule_search_locations[0]) / relative
    if not path.is_file():
        raise PhotosMissingError(
            f"{package} is installed without {relative}; run: pip install --force-reinstall {package}"
        )
    return path


def _versions(path: Path, *, seed: int, photo_number: int) -> Iterator[tuple[str, Image.Image]]:
    """Name and pixels of the photo itself, each of its edits, and its other view where there is one."""
    photo, was_gray = _load(path)
    yield path.stem, photo
    for number, (name, edit) in enumerate(DEMO_EDITS.items()):
        if name == "gray" and was_gray:
            continue
        yield f"{path.stem}-{name}", edit(photo, np.random.default_rng([seed, number, photo_number]))
    if path.stem in OTHER_VIEWS:
        yield f"{path.stem}-other-view", _load(path.with_name(OTHER_VIEWS[path.stem]))[0]


def _load(path: Path) -> tuple[Image.Image, bool]:
    """The photo in RGB, at most `MAX_SIDE` on its longer side, and whether its file holds no colour."""
    with Image.open(path) as opened:
        photo = opened.convert("RGB")
        was_gray = opened.mode == "L"
    photo.thumbnail((MAX_SIDE, MAX_SIDE))
    return photo, was_gray
