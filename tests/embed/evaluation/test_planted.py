"""Rules of planting edits and scoring them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from embed.errors import EvaluationError
from embed.evaluation.descriptors import EmbedderDescriptor, HashDescriptor
from embed.evaluation.edits import EDITS
from embed.evaluation.evaluation import evaluate
from embed.evaluation.planted import (
    Described,
    describe_planted,
    draw_distractors,
    draw_photos,
    list_photos,
    readable_images,
    score_edits,
)
from embed.evaluation.precision_recall import Recall
from embed.evaluation.scored_pairs import ROWS_PER_BLOCK, ScoredPairs

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


def scored(
    edited: NDArray[np.float32], corpus: NDArray[np.float32], *, same: list[tuple[int, int]] | None = None
) -> ScoredPairs:
    return score_edits(
        Described(edited=edited, corpus=corpus, images_per_second=1.0), edits=tuple(EDITS), same=same or [], num_worst=5
    )


def recall(pairs: ScoredPairs) -> Recall:
    return evaluate("test", pairs, num_resamples=2).at(0.99)


def test_a_perfect_descriptor_has_recall_one_everywhere() -> None:
    """Rows that are equal for a photo and its edits, and orthogonal otherwise, find everything."""
    corpus = one_hot(0, 1, 2, 3, width=4)
    edited = np.repeat(corpus[:3, None], NUM_EDITS, axis=1)
    found = recall(scored(edited, corpus))
    assert (found.overall, found.point.threshold, found.point.num_false) == (1.0, 1.0, 0)
    assert set(found.by_kind.values()) == {1.0}


def test_recall_is_counted_per_edit_at_one_threshold_for_all() -> None:
    """An edit that is never found lowers the overall recall by one share and leaves the other edits alone."""
    corpus = one_hot(0, 1, width=3)
    edited = np.repeat(corpus[:, None], NUM_EDITS, axis=1)
    edited[:, 4] = -edited[:, 4]
    found = recall(scored(edited, corpus))
    assert [edit for edit, share in found.by_kind.items() if share < 1] == ["gray"]
    assert found.overall == pytest.approx((NUM_EDITS - 1) / NUM_EDITS)


def test_an_edit_closer_to_another_photo_is_a_false_match() -> None:
    """What matches another file is false, is reported, and too much of it leaves nothing accepted."""
    corpus = one_hot(0, 1, 2, width=3)
    edited = np.repeat(corpus[[1, 0], None], NUM_EDITS, axis=1)
    pairs = scored(edited, corpus)
    assert (recall(pairs).overall, recall(pairs).point.threshold) == (0.0, float("inf"))
    worst = pairs.worst_false[0]
    assert (worst.score, {worst.left, worst.right}) == (1.0, {0, 1})


def test_two_files_of_one_picture_are_neither_true_nor_false() -> None:
    """Matching the twin of one's photo costs nothing in either direction, matching others still does."""
    corpus = one_hot(0, 0, 1, 2, 2, width=3)
    edited = np.repeat(corpus[:4, None], NUM_EDITS, axis=1)
    assert recall(scored(edited, corpus)).overall == 0.0
    lenient = scored(edited, corpus, same=[(0, 1), (3, 4)])
    assert (recall(lenient).overall, recall(lenient).point.num_false) == (1.0, 0)
    assert all(pair.score == 0.0 for pair in lenient.worst_false)


@given(seed=st.integers(0, 2**32 - 1), num_photos=st.integers(2, 5), num_distractors=st.integers(0, 4))
def test_the_kept_false_scores_are_the_highest_of_all(seed: int, num_photos: int, num_distractors: int) -> None:
    """Scored in blocks and cut short, the false scores equal those of the whole matrix, sorted."""
    rng = np.random.default_rng(seed)
    corpus = rng.standard_normal((num_photos + num_distractors, 4)).astype(np.float32)
    edited = rng.standard_normal((num_photos, NUM_EDITS, 4)).astype(np.float32)
    everything = sorted(
        (
            float(edited[photo, edit] @ corpus[other])
            for photo in range(num_photos)
            for edit in range(NUM_EDITS)
            for other in range(len(corpus))
            if other != photo
        ),
        reverse=True,
    )
    pairs = scored(edited, corpus)
    np.testing.assert_allclose(pairs.false_scores, everything[: num_photos * NUM_EDITS], rtol=1e-4, atol=1e-5)


def test_false_scores_of_many_blocks_are_merged() -> None:
    """A false match in the last block of rows is found as one in the first is."""
    num_photos = ROWS_PER_BLOCK // NUM_EDITS + 2
    corpus = np.eye(num_photos + 1, dtype=np.float32)
    edited = np.repeat(corpus[:num_photos, None], NUM_EDITS, axis=1)
    edited[0, 0], edited[-1, -1] = corpus[-1] * 0.9, corpus[-1] * 0.8
    worst = scored(edited, corpus).worst_false
    assert [(pair.left, round(pair.score, 3)) for pair in worst[:3]] == [(0, 0.9), (num_photos - 1, 0.8), (0, 0.0)]


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
    with pytest.raises(EvaluationError, match=r"holds no image files; pass a folder with .*\.jpg"):
        list_photos(tmp_path)


def test_a_draw_of_photos_is_fixed_by_its_seed(tmp_path: Path) -> None:
    """Drawing fewer photos gives the same ones again, in path order; drawing more gives all."""
    photos = [tmp_path / f"{number:03d}.jpg" for number in range(50)]
    drawn = draw_photos(photos, 10, seed=4)
    assert drawn == sorted(set(drawn)) == draw_photos(photos, 10, seed=4)
    assert len(drawn) == 10
    assert draw_photos(photos, 99, seed=4) == draw_photos(photos, None, seed=4) == photos


def test_unreadable_images_are_told_with_their_reason(tmp_path: Path) -> None:
    """A file that is no image is left out and named; when all are, that is an error."""
    write_photo(tmp_path / "good.png", 0)
    (tmp_path / "bad.png").write_bytes(b"no image at all")
    readable, rejects = readable_images([tmp_path / "bad.png", tmp_path / "good.png", tmp_path / "gone.png"])
    assert readable == [tmp_path / "good.png"]
    assert [Path(name).name for name, _ in rejects] == ["bad.png", "gone.png"]
    assert all(reason for _, reason in rejects)
    with pytest.raises(EvaluationError, match=r"none of 1 images can be read; the first: .*bad\.png"):
        readable_images([tmp_path / "bad.png"])


def test_descriptors_are_compared_on_the_same_edits_from_files(tmp_path: Path) -> None:
    """From image files to figures: every descriptor gets a recall for each of the 14 edits and a speed."""
    for number in range(4):
        write_photo(tmp_path / "photos" / f"{number}.png", number)
        write_photo(tmp_path / "others" / f"{number}.png", 100 + number)
    # Bits that only the size of the image decides: every edit that keeps the frame looks the same everywhere.
    frame = HashDescriptor(
        "frame", lambda pixels: np.unpackbits(np.frombuffer(f"{pixels.shape}".encode()[:8] * 4, np.uint8))
    )
    described = describe_planted(
        [EmbedderDescriptor("mean color", FirstPixels(), 16), frame],
        list_photos(tmp_path / "photos"),
        draw_distractors(tmp_path / "others", 3, seed=0),
        edits=tuple(EDITS),
        seed=0,
    )
    assert all(rows.images_per_second > 0 for rows in described)
    color, frames = (recall(score_edits(rows, edits=tuple(EDITS))) for rows in described)
    assert color.by_kind["mirror"] == 1.0
    assert frames.overall == 0.0
