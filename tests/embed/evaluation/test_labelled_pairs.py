"""Rules of labelled pairs: reading the CSV, and what counts as false."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embed.errors import EvaluationError
from embed.evaluation.labelled_pairs import (
    LabelledPairs,
    read_candidate_pairs,
    read_labelled_pairs,
    readable_pairs,
    score_labels,
)


def read(folder: Path, *lines: str) -> LabelledPairs:
    path = folder / "pairs.csv"
    path.write_text("\n".join(lines) + "\n")
    return read_labelled_pairs(path, images=folder)


def rows(*angles: float) -> NDArray[np.float32]:
    """Unit rows in a plane at these angles in degrees."""
    radians = np.deg2rad(np.array(angles, np.float32))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_rows_become_positions_in_the_list_of_images(tmp_path: Path) -> None:
    """Each file is one image however often it occurs; kinds and other columns are kept apart."""
    pairs = read(tmp_path, "a,b,label,kind,note", "x.jpg,y.jpg,1,crop,-", "x.jpg,z.jpg,0,resize,-")
    assert [path.name for path in pairs.images] == ["x.jpg", "y.jpg", "z.jpg"]
    assert (pairs.left.tolist(), pairs.right.tolist()) == ([0, 0], [1, 2])
    assert (pairs.is_same.tolist(), pairs.kinds, pairs.kind.tolist()) == ([True, False], ("crop", "resize"), [0, 1])
    assert not pairs.are_complete


def test_pairs_labelled_unsure_are_passed_over(tmp_path: Path) -> None:
    """They are neither true nor false, and images that occur in no other pair are not looked at."""
    pairs = read(tmp_path, "a,b,label", "p,q,unsure", "r,s,1")
    assert [path.name for path in pairs.images] == ["r", "s"]
    assert [
        (left.name, right.name) for left, right in read_candidate_pairs(tmp_path / "pairs.csv", images=tmp_path)
    ] == [
        ("p", "q"),
        ("r", "s"),
    ]


def test_an_unsure_pair_is_no_false_pair_of_a_complete_file(tmp_path: Path) -> None:
    """Where all unlinked pairs are different, a pair that nobody could decide is left out instead."""
    lines = ("a,b,label", "a1,a2,1", "b1,b2,1")
    angles = rows(0, 1, 3, 90)
    false = score_labels(angles, read(tmp_path, *lines)).false_scores
    decided = score_labels(angles, read(tmp_path, *lines, "a1,b1,unsure")).false_scores
    assert (len(false), len(decided)) == (4, 0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("a,b", "x,y"), "lacks the column label"),
        (("a,b,label", "x,y,maybe"), r"line 2: label 'maybe' is unknown; use 1 .* 0 .* or unsure"),
        (("a,b,label", "x,y,"), "label '' is unknown"),
        (("a,b,label", "../x,y,1"), r"line 2: '\.\./x' leads out of"),
        (("a,b,label", "/etc/passwd,y,1"), "leads out of"),
        (("a,b,label", "x,,1"), "'' is no file name"),
        (("a,b,label", "x,x,1"), "the same file 'x'"),
        (("a,b,label", "x,y,0"), "no pair with label 1 in 1 rows"),
        (("a,b,label",), "no pair with label 1 in 0 rows"),
    ],
)
def test_a_bad_file_is_named_with_line_and_way_out(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    """Missing columns, unknown labels and paths out of the root are errors that say where."""
    with pytest.raises(EvaluationError, match=message):
        read(tmp_path, *lines)


def test_bytes_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    """A binary file is refused as one, without a traceback."""
    (tmp_path / "pairs.csv").write_bytes(b"a,b,label\n\xff\xfe,y,1\n")
    with pytest.raises(EvaluationError, match="cannot be read as a CSV"):
        read_labelled_pairs(tmp_path / "pairs.csv", images=tmp_path)


def test_only_pairs_labelled_different_are_false_where_there_are_any(tmp_path: Path) -> None:
    """A pair that nobody labelled says nothing."""
    pairs = read(tmp_path, "a,b,label", "p,q,1", "r,s,0")
    scored = score_labels(rows(0, 10, 0, 60), pairs)
    assert scored.true_scores == pytest.approx([np.cos(np.deg2rad(10))])
    assert scored.false_scores == pytest.approx([0.5])


def test_in_a_file_of_near_duplicates_all_unlinked_pairs_are_false(tmp_path: Path) -> None:
    """p-q and q-r link p with r as well; what is left is each of them against s and t."""
    pairs = read(tmp_path, "a,b,label", "p,q,1", "q,r,1", "s,t,1")
    scored = score_labels(rows(0, 5, 10, 90, 95), pairs, num_worst=10)
    assert {(pair.left, pair.right) for pair in scored.worst_false} == {(i, j) for i in (0, 1, 2) for j in (3, 4)}


def test_files_of_one_picture_link_without_being_true_pairs(tmp_path: Path) -> None:
    """Two groups that share a picture are one group: no pair between them is false."""
    pairs = read(tmp_path, "a,b,label", "p,q,1", "s,t,1")
    scored = score_labels(rows(0, 5, 0, 5), pairs, same=[(0, 2)], num_worst=10)
    assert len(scored.true_scores) == 2
    assert len(scored.false_scores) == 0


def test_pairs_of_unreadable_images_are_left_out(tmp_path: Path) -> None:
    """The others keep their images; when no near-duplicate is left that is an error."""
    pairs = read(tmp_path, "a,b,label", "p,q,1", "r,s,1", "p,s,0")
    root = tmp_path.resolve()
    kept = readable_pairs(pairs, {root / "r", root / "s", root / "p"})
    assert [path.name for path in kept.images] == ["p", "r", "s"]
    assert (kept.left.tolist(), kept.right.tolist(), kept.is_same.tolist()) == ([1, 0], [2, 2], [True, False])
    with pytest.raises(EvaluationError, match="no near-duplicate pair is left"):
        readable_pairs(pairs, {root / "p", root / "s"})
