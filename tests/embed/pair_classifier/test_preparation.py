"""Which photos a classifier is trained and judged on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embed.errors import ClassifierError
from embed.evaluation.labelled_pairs import LabelledPairs
from embed.evaluation.planted import Described
from embed.pair_classifier.preparation import PreparedPhotos, mark_labelled, split_background, split_photos


def paths(num_sources: int, num_each: int) -> list[Path]:
    return [Path(f"source-{source}/{photo}.jpg") for source in range(num_sources) for photo in range(num_each)]


def test_whole_sources_are_held_out() -> None:
    """No source is on both sides, and about the asked share of the sources is held out."""
    train, held_out, names = split_photos(paths(8, 60), held_out=0.25, seed=0)
    assert {path.parent.name for path in held_out} == set(names)
    assert not {path.parent for path in train} & {path.parent for path in held_out}
    assert (len(names), len(train), len(held_out)) == (2, 360, 120)


def test_photos_are_split_where_sources_are_few() -> None:
    train, held_out, names = split_photos(paths(2, 200), held_out=0.25, seed=0)
    assert (len(train), len(held_out), names) == (300, 100, ())
    assert not set(train) & set(held_out)


def test_too_few_photos_are_refused() -> None:
    with pytest.raises(ClassifierError, match="90 photos to train on and 10 held out are too few"):
        split_photos(paths(1, 100), held_out=0.1, seed=0)


def test_pairs_labelled_same_or_unsure_are_no_false_pairs(tmp_path: Path) -> None:
    """They are marked from either side that was edited; a pair labelled different is not."""
    files = [tmp_path / f"{number}.jpg" for number in range(4)]
    described = Described(
        edited=np.zeros((2, 1, 2), np.float32), corpus=np.zeros((4, 2), np.float32), images_per_second=1.0
    )
    prepared = PreparedPhotos(files, described, np.zeros((2, 4), np.bool_))
    labelled = LabelledPairs(
        images=tuple(files),
        left=np.array([0, 0]),
        right=np.array([1, 2]),
        is_same=np.array([True, False]),
        kinds=("pairs",),
        kind=np.array([0, 0]),
        unsure=np.array([[3, 1]]),
    )
    mark_labelled(prepared, labelled)
    assert prepared.same_pairs == [(0, 1), (1, 0), (1, 3)]


def prepared_photos(num_edited: int, num_others: int) -> PreparedPhotos:
    rows = np.random.default_rng(0).normal(size=(num_edited + num_others, 8)).astype(np.float32)
    described = Described(edited=rows[:num_edited, None], corpus=rows, images_per_second=1.0)
    files = [Path(f"{number}.jpg") for number in range(len(rows))]
    return PreparedPhotos(files, described, np.zeros((num_edited, len(rows)), np.bool_))


def test_the_background_is_taken_out_of_the_photos_that_were_not_edited() -> None:
    """No photo is both crowded and a part of the crowd."""
    prepared = prepared_photos(5, 20)
    rest, background = split_background(prepared, [], num=8)
    assert background is not None
    assert background.codes.shape == (8, 8)
    assert rest.paths == [*prepared.paths[:5], *prepared.paths[13:]]
    np.testing.assert_array_equal(rest.described.corpus, prepared.described.corpus[[*range(5), *range(13, 25)]])
    assert rest.same.shape == (5, 17)


def test_labelled_images_stay_out_of_the_background() -> None:
    prepared = prepared_photos(2, 10)
    labelled = LabelledPairs(
        images=(prepared.paths[2], prepared.paths[3]),
        left=np.array([0]),
        right=np.array([1]),
        is_same=np.array([False]),
        kinds=("pairs",),
        kind=np.array([0]),
        unsure=np.empty((0, 2), np.int64),
    )
    rest, _ = split_background(prepared, [labelled], num=4)
    assert rest.paths == [*prepared.paths[:4], *prepared.paths[8:]]


def test_half_of_the_others_stay_to_mislead_and_too_few_make_no_background() -> None:
    rest, background = split_background(prepared_photos(2, 9), [], num=6000)
    assert background is not None
    assert (len(background.codes), len(rest.paths)) == (4, 7)
    few = prepared_photos(2, 5)
    assert split_background(few, [], num=6000) == (few, None)
