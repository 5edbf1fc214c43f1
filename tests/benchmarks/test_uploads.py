"""Rules of how looked-up uploads are judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.uploads import Way, judged, write_known
from service.served import Answer, Match, Source


def answer(*image_ids: str) -> Answer:
    """An answer with these matches."""
    matches = (
        Match(
            image_id=name,
            score=0.9,
            similarity=0.9,
            shared_terms=1,
            source=Source.HASH_TABLES,
            by_view=False,
            canonical_id=name,
        )
        for name in image_ids
    )
    return Answer(tuple(matches), 0)


def test_matches_are_right_wrong_or_not_judged() -> None:
    """The photo is right; what shows the same picture counts neither way; all else is wrong, distractors included."""
    found = answer("000003.jpg", "000001.jpg", "000004.png", "other-000003.webp")
    assert list(judged(found, 3, {(1, 3), (3, 7)})) == [True, False, False]
    assert list(judged(answer(), 3, set())) == []


def test_recall_is_the_mean_over_edits_and_precision_that_of_matches() -> None:
    """Edits count alike; without a match nothing is precise."""
    way = Way(found={"gray": 1.0, "crop": 0.5}, num_right=3, num_wrong=1, median_us=1.0, bytes_per_image=1.0)
    assert (way.recall, way.precision) == (0.75, 0.75)
    assert Way(found={"gray": 0.0}, num_right=0, num_wrong=0, median_us=1.0, bytes_per_image=1.0).precision == 0


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_the_known_have_their_numbers(tmp_path: Path, suffix: str) -> None:
    """A photo's image id says which one it is, a distractor's that it is none."""
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    write_known(paths[:1], paths[1:], tmp_path / "known")
    assert sorted(path.name for path in (tmp_path / "known").iterdir()) == [f"000000{suffix}", f"other-000000{suffix}"]
