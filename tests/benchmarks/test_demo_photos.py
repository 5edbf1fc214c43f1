"""Rules of the demo's folder."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import demo_photos
from benchmarks.demo_photos import DEMO_EDITS, PhotosMissingError, write_demo
from benchmarks.truth import Truth, score_clusters

pytest.importorskip("skimage", reason="the demo's photos come with scikit-image")
pytest.importorskip("sklearn", reason="the demo's photos come with scikit-learn")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, write_demo(folder)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "photos").iterdir()}


def test_the_truth_names_exactly_the_files_that_were_written(demo: tuple[Path, Truth]) -> None:
    """Every image has an original, every original is an image, and `truth.csv` says the same."""
    folder, truth = demo
    assert set(truth.original_of) == {path.name for path in (folder / "photos").iterdir()}
    assert set(truth.original_of.values()) <= set(truth.original_of)
    lines = (folder / "truth.csv").read_text().splitlines()
    assert lines[0] == "image,original"
    assert dict(line.split(",") for line in lines[1:]) == truth.original_of


def test_every_photo_has_a_dozen_edits(demo: tuple[Path, Truth]) -> None:
    """Sixteen photos, each with 12 edits; a gray one has no gray edit, the motorcycle has a second view."""
    _, truth = demo
    sizes = Counter(truth.original_of.values())
    assert len(DEMO_EDITS) == 12
    assert len(sizes) == 16
    assert {Path(name).stem: size for name, size in sizes.items() if size != 13} == {
        **dict.fromkeys(("brick", "camera", "coins", "grass", "gravel", "moon"), 12),
        "motorcycle_left": 14,
    }


def test_the_images_are_readable_distinct_and_in_three_formats(demo: tuple[Path, Truth]) -> None:
    """No two files have the same bytes, and JPEG, PNG and WebP all occur."""
    folder, truth = demo
    assert len(set(digests(folder).values())) == len(truth.original_of)
    formats = set()
    for path in (folder / "photos").iterdir():
        with Image.open(path) as image:
            image.load()
            formats.add(image.format)
            assert min(image.size) >= 100
    assert formats == {"JPEG", "PNG", "WEBP"}


def test_clusters_by_original_score_one_on_the_written_truth(demo: tuple[Path, Truth]) -> None:
    """The perfect clustering of the demo has precision and recall 1."""
    _, truth = demo
    clusters: dict[str, list[str]] = {}
    for image, original in truth.original_of.items():
        clusters.setdefault(original, []).append(image)
    metrics = score_clusters(clusters.values(), truth)
    assert (metrics.precision, metrics.recall) == (1.0, 1.0)


def test_an_earlier_demo_is_replaced_by_the_same_images(
    demo: tuple[Path, Truth], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing again leaves nothing of before and gives the same bytes for the same seed."""
    folder, _ = demo
    monkeypatch.setattr(demo_photos, "PHOTOS", {"sklearn": ("datasets/images", ("china.jpg",))})
    again = folder.parent / "again"
    write_demo(again)
    (again / "photos" / "stale.jpg").touch()
    first = digests(again)
    del first["stale.jpg"]
    write_demo(again)
    assert digests(again) == first
    write_demo(again, seed=1)
    assert digests(again) != first


def test_a_folder_of_someone_elses_photos_is_left_alone(tmp_path: Path) -> None:
    """`photos` without the demo's truth beside it is never deleted."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    with pytest.raises(FileExistsError, match="was not written by the demo; choose another --folder"):
        write_demo(tmp_path)
    assert (tmp_path / "photos" / "mine.jpg").exists()


def test_a_missing_package_names_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error tells what to run, and nothing is written."""
    monkeypatch.setattr(demo_photos, "find_spec", lambda _: None)
    with pytest.raises(PhotosMissingError, match="run: pip install scikit-image"):
        write_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
