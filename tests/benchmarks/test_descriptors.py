"""Rules of comparing descriptors on planted edits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click import ClickException
from numpy.typing import NDArray
from PIL import Image

from benchmarks.contenders import EmbedderContender, HashContender
from benchmarks.descriptors import compare, draw_distractors, judge, list_photos
from benchmarks.edits import EDITS
from benchmarks.results import write_json

NUM_EDITS = len(EDITS)


def write_photo(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize((90, 60), Image.Resampling.BICUBIC).save(path)


def one_hot(*columns: int, width: int) -> NDArray[np.float32]:
    return np.eye(width, dtype=np.float32)[list(columns)]


class FirstPixels:
    """A stand-in for an embedder: the mean colour of each image, unit length."""

    def embed(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        means = images.astype(np.float32).mean(axis=(1, 2)) - 127.5
        rows: NDArray[np.float32] = means / np.linalg.norm(means, axis=1, keepdims=True)
        return rows


def test_a_perfect_descriptor_has_recall_one_everywhere() -> None:
    """Rows that are equal for a photo and its edits, and orthogonal otherwise, find everything."""
    corpus = one_hot(0, 1, 2, 3, width=4)
    edited = np.repeat(corpus[:3, None], NUM_EDITS, axis=1)
    result = judge("perfect", edited, corpus, names="abcd", images_per_second=1.0)
    assert (result.recall, result.threshold, result.num_false_matches) == (1.0, 1.0, 0)
    assert set(result.recall_by_edit.values()) == {1.0}


def test_recall_is_counted_per_edit_at_one_threshold_for_all() -> None:
    """An edit that is never found lowers the overall recall by one share and leaves the other edits alone."""
    corpus = one_hot(0, 1, width=3)
    edited = np.repeat(corpus[:, None], NUM_EDITS, axis=1)
    edited[:, 4] = -edited[:, 4]
    result = judge("blind to gray", edited, corpus, names="ab", images_per_second=1.0)
    assert [edit for edit, recall in result.recall_by_edit.items() if recall < 1] == ["gray"]
    assert result.recall == pytest.approx((NUM_EDITS - 1) / NUM_EDITS)


def test_an_edit_closer_to_another_photo_is_a_false_match() -> None:
    """What matches another file is false, is reported by name, and too much of it leaves nothing accepted."""
    corpus = one_hot(0, 1, 2, width=3)
    edited = np.repeat(corpus[[1, 0], None], NUM_EDITS, axis=1)
    result = judge("swapped", edited, corpus, names=["a", "b", "other"], images_per_second=1.0, num_worst=1)
    assert (result.recall, result.threshold) == (0.0, float("inf"))
    worst = result.worst_false_matches[0]
    assert (worst.similarity, {worst.photo, worst.other}) == (1.0, {"a", "b"})


def test_two_files_of_one_picture_are_neither_true_nor_false() -> None:
    """Matching the twin of one's photo costs nothing in either direction, matching others still does."""
    corpus = one_hot(0, 0, 1, 2, 2, width=3)
    edited = np.repeat(corpus[:4, None], NUM_EDITS, axis=1)
    strict = judge("twins", edited, corpus, names="abcde", images_per_second=1.0)
    assert strict.recall == 0.0
    lenient = judge("twins", edited, corpus, same=[(0, 1), (3, 4)], names="abcde", images_per_second=1.0)
    assert (lenient.recall, lenient.num_false_matches) == (1.0, 0)
    assert all(match.similarity == 0.0 for match in lenient.worst_false_matches)


@pytest.mark.parametrize("num_differing", [0, 1, 31, 128, 256])
def test_the_similarity_of_hashes_is_exactly_their_hamming_distance(num_differing: int) -> None:
    """The dot product of two 256-bit hashes is `1 - hamming / 128`, without rounding."""
    bits = np.random.default_rng(0).integers(0, 2, 256)
    other = bits.copy()
    other[:num_differing] ^= 1
    blank = np.zeros((1, 1, 3), np.uint8)
    left = HashContender("hash", lambda _: bits).prepare(blank)
    right = HashContender("hash", lambda _: other).prepare(blank)
    assert float(left @ right) == 1 - num_differing / 128


def test_distractors_are_spread_evenly_and_small_folders_give_all_they_have(tmp_path: Path) -> None:
    """Each sub-folder gives its share, the big ones make up for the small, and the seed fixes the draw."""
    for folder, num in (("big", 20), ("wide", 20), ("tiny", 2)):
        for number in range(num):
            path = tmp_path / folder / f"{number:02d}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    drawn = draw_distractors(tmp_path, 12, seed=3)
    folders = [path.parent.name for path in drawn]
    assert [folders.count(name) for name in ("big", "wide", "tiny")] == [5, 5, 2]
    assert drawn == sorted(set(drawn)) == draw_distractors(tmp_path, 12, seed=3)
    assert drawn != draw_distractors(tmp_path, 12, seed=4)


def test_a_folder_without_images_is_a_clear_error(tmp_path: Path) -> None:
    """An empty folder names itself and what it should hold."""
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ClickException, match=r"holds no image files; pass a folder with .*\.jpg"):
        list_photos(tmp_path)


def test_contenders_are_compared_on_the_same_edits_from_files(tmp_path: Path) -> None:
    """From image files to figures: every contender gets a recall for each of the 14 edits and a speed."""
    for number in range(4):
        write_photo(tmp_path / "photos" / f"{number}.png", number)
        write_photo(tmp_path / "others" / f"{number}.png", 100 + number)
    # Bits that only the size of the image decides: every edit that keeps the frame looks the same everywhere.
    frame = HashContender(
        "frame", lambda pixels: np.unpackbits(np.frombuffer(f"{pixels.shape}".encode()[:8] * 4, np.uint8))
    )
    results = compare(
        [EmbedderContender("mean color", FirstPixels(), 16), frame],
        list_photos(tmp_path / "photos"),
        draw_distractors(tmp_path / "others", 3, seed=0),
        num_threads=2,
    )
    assert [result.contender for result in results] == ["mean color", "frame"]
    assert all(list(result.recall_by_edit) == list(EDITS) for result in results)
    assert all(result.images_per_second > 0 for result in results)
    assert results[0].recall_by_edit["mirror"] == 1.0
    assert results[1].recall == 0.0


def test_figures_that_json_cannot_hold_become_null(tmp_path: Path) -> None:
    """An infinite threshold is null in the JSON file, deep inside too."""
    figures: dict[str, Any] = {"threshold": float("inf"), "results": [{"recall": 0.5, "threshold": float("inf")}]}
    write_json(tmp_path / "new" / "figures.json", figures)
    written = json.loads((tmp_path / "new" / "figures.json").read_text())
    assert written == {"threshold": None, "results": [{"recall": 0.5, "threshold": None}]}
