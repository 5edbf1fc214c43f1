"""Pairs of images that people or a labeller judged: a CSV with the columns `a,b,label`, and its scores.

The format is that of Pinterest's released near-duplicate pairs. `label` is 1 for a near-duplicate and 0 for none; a row
labelled `unsure` counts as neither. Other columns are ignored, but `kind` groups the figures. Without any 0 in the
file, all pairs of its images that the 1s and the unsure ones do not link, directly or through others, are different.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embed.errors import EvaluationError
from embed.evaluation.scored_pairs import (
    DotProduct,
    FalsePairs,
    JudgedPair,
    RowScorer,
    ScoredPairs,
    highest,
    highest_false_pairs,
)

LABELS: Final = {"0": False, "1": True, "unsure": None}
MAX_ROWS: Final = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPairs:
    """`left` and `right` `(n,)` are positions in `images`; `kind` `(n,)` positions in `kinds`.

    With `are_complete` every unlinked pair of the images is a different one, else only the pairs labelled so. `unsure`
    `(k, 2)` links positions too, but is no true pair.
    """

    images: tuple[Path, ...]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    is_same: NDArray[np.bool_]
    kinds: tuple[str, ...]
    kind: NDArray[np.int64]
    unsure: NDArray[np.int64]

    @property
    def are_complete(self) -> bool:
        """Whether the file lists only near-duplicates."""
        return bool(self.is_same.all())


def read_labelled_pairs(path: Path, *, images: Path) -> LabelledPairs:
    """The pairs of a CSV whose `a` and `b` are paths below the folder `images`; raises EvaluationError."""
    position: dict[Path, int] = {}
    kind_position: dict[str, int] = {}
    rows: list[tuple[int, int, bool, int]] = []
    unsure: list[tuple[Path, Path]] = []
    for where, row, left, right in _rows(path, images.resolve(), columns=("a", "b", "label")):
        label = (row["label"] or "").strip()
        if label not in LABELS:
            raise EvaluationError(
                f"{where}: label {label!r} is unknown; use 1 for a near-duplicate, 0 for none, or unsure"
            )
        is_same = LABELS[label]
        if is_same is None:
            unsure.append((left, right))
            continue
        kind = kind_position.setdefault((row.get("kind") or "pairs").strip(), len(kind_position))
        first, second = (position.setdefault(image, len(position)) for image in (left, right))
        rows.append((first, second, is_same, kind))
    if not any(is_same for _, _, is_same, _ in rows):
        raise EvaluationError(f"{path} has no pair with label 1 in {len(rows)} rows; recall needs at least one")
    table = np.array(rows, np.int64)
    return LabelledPairs(
        images=tuple(position),
        left=table[:, 0],
        right=table[:, 1],
        is_same=table[:, 2].astype(bool),
        kinds=tuple(kind_position),
        kind=table[:, 3],
        unsure=np.array(
            [(position[left], position[right]) for left, right in unsure if left in position and right in position],
            np.int64,
        ).reshape(-1, 2),
    )


def read_candidate_pairs(path: Path, *, images: Path) -> list[tuple[Path, Path]]:
    """The pairs of a CSV with the columns `a` and `b`, whatever its labels; raises EvaluationError."""
    return [(left, right) for _, _, left, right in _rows(path, images.resolve(), columns=("a", "b"))]


def _rows(
    path: Path, root: Path, *, columns: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, str | None], Path, Path]]:
    """Where a row is, the row, and the files of its `a` and `b`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise EvaluationError(
                    f"{path} lacks the column {', '.join(missing)}; its first line must name at least "
                    f"{','.join(columns)}"
                )
            for number, row in enumerate(reader):
                where = f"{path} line {reader.line_num}"
                if number == MAX_ROWS:
                    raise EvaluationError(f"{path} has more than {MAX_ROWS:,} pairs; split it")
                left, right = (_image_below(root, row[side] or "", where) for side in ("a", "b"))
                if left == right:
                    raise EvaluationError(f"{where}: a and b are the same file {row['a']!r}; a pair has two")
                yield where, row, left, right
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path} cannot be read as a CSV file: {error}") from error


def _image_below(root: Path, name: str, where: str) -> Path:
    """The file `name` below `root`, never outside it."""
    if not name or "\0" in name:
        raise EvaluationError(f"{where}: {name!r} is no file name")
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise EvaluationError(f"{where}: {name!r} leads out of {root}; give the folder of the images with --images")
    return path


def readable_pairs(pairs: LabelledPairs, readable: Set[Path]) -> LabelledPairs:
    """The pairs of which both images are `readable`, on those images alone."""
    is_readable = np.array([path in readable for path in pairs.images])
    kept = is_readable[pairs.left] & is_readable[pairs.right]
    if not pairs.is_same[kept].any():
        raise EvaluationError("no near-duplicate pair is left whose two images can be read; see the rejected images")
    new_position = np.cumsum(is_readable) - 1
    return LabelledPairs(
        images=tuple(path for path in pairs.images if path in readable),
        left=new_position[pairs.left[kept]],
        right=new_position[pairs.right[kept]],
        is_same=pairs.is_same[kept],
        kinds=pairs.kinds,
        kind=pairs.kind[kept],
        unsure=new_position[pairs.unsure[is_readable[pairs.unsure].all(axis=1)]],
    )


def linked_positions(pairs: LabelledPairs, paths: Sequence[Path]) -> list[tuple[int, int]]:
    """The pairs labelled near-duplicate or unsure as positions in `paths`, the smaller first, without other files'."""
    position = {path.resolve(): place for place, path in enumerate(paths)}
    linked = np.concatenate([np.stack([pairs.left, pairs.right], axis=1)[pairs.is_same], pairs.unsure])
    found = ([position.get(pairs.images[image].resolve()) for image in pair] for pair in linked.tolist())
    return [(min(left, right), max(left, right)) for left, right in found if left is not None and right is not None]


def score_labels(
    rows: NDArray[np.float32],
    pairs: LabelledPairs,
    *,
    scorer: RowScorer = DotProduct(),  # noqa: B008 - it has no state
    same: Sequence[tuple[int, int]] = (),
    num_worst: int = 20,
) -> ScoredPairs:
    """Scores of the pairs by the `(num_images, d)` rows of their images; intervals resample whole groups of images.

    `same` holds pairs of positions whose files show one picture; they link as labels do, without being true pairs.
    """
    scores = scorer.pairs(rows[pairs.left], rows[pairs.right])
    group = _linked_groups(pairs, same)
    true = np.flatnonzero(pairs.is_same)
    false = _false_pairs(rows, pairs, scores, group, scorer=scorer, num_kept=max(len(true), num_worst))
    lowest = true[highest(-scores[true], num_worst)]
    return ScoredPairs(
        kinds=pairs.kinds,
        true_scores=scores[true],
        true_kind=pairs.kind[true],
        true_photo=group[pairs.left[true]],
        false_scores=false.scores,
        false_photo=group[false.rows],
        worst_misses=tuple(
            JudgedPair(
                kind=pairs.kinds[pairs.kind[place]],
                left=int(pairs.left[place]),
                right=int(pairs.right[place]),
                score=float(scores[place]),
            )
            for place in lowest
        ),
        worst_false=tuple(
            JudgedPair(kind="different", left=int(left), right=int(right), score=float(score))
            for left, right, score in zip(
                false.rows[:num_worst], false.others[:num_worst], false.scores[:num_worst], strict=True
            )
        ),
    )


def _false_pairs(
    rows: NDArray[np.float32],
    pairs: LabelledPairs,
    scores: NDArray[np.float32],
    group: NDArray[np.int64],
    *,
    scorer: RowScorer,
    num_kept: int,
) -> FalsePairs:
    """The pairs labelled different, or in a file without any the highest pairs of images that nothing links."""
    if not pairs.are_complete:
        different = np.flatnonzero(~pairs.is_same)
        best = different[highest(scores[different], len(different))]
        return FalsePairs(scores=scores[best], rows=pairs.left[best], others=pairs.right[best])

    def hide(block: NDArray[np.float32], first_row: int) -> None:
        lefts = np.arange(first_row, first_row + len(block))[:, None]
        block[(group[lefts] == group) | (lefts >= np.arange(len(rows)))] = -np.inf

    return highest_false_pairs(rows, rows, scorer=scorer, hide=hide, num_kept=num_kept)


def _linked_groups(pairs: LabelledPairs, same: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """`(num_images,)`: the smallest position that near-duplicate pairs and `same` link each image with."""
    parent = np.arange(len(pairs.images))

    def root(image: int) -> int:
        while parent[image] != image:
            parent[image] = parent[parent[image]]
            image = int(parent[image])
        return image

    labelled = zip(pairs.left[pairs.is_same].tolist(), pairs.right[pairs.is_same].tolist(), strict=True)
    for left, right in (*labelled, *pairs.unsure.tolist(), *same):
        low, high = sorted((root(left), root(right)))
        parent[high] = low
    return np.array([root(image) for image in range(len(parent))])
