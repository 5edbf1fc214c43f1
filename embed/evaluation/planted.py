"""Planted edits of a folder of photos, described and scored: what a descriptor can and cannot find.

Every edit of every photo is compared with all photos and the distractors. Its own photo is the true pair, any other
file a false one; a file that holds the very picture of another (`same_picture`) is neither. Comparisons run in blocks
and only the highest false scores are kept, so memory grows with the number of photos, not with its square.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embed.decoding import decode_image
from embed.errors import EvaluationError, ImageRejected
from embed.evaluation.descriptors import Descriptor
from embed.evaluation.edits import planted
from embed.evaluation.scored_pairs import (
    DotProduct,
    JudgedPair,
    RowScorer,
    ScoredPairs,
    highest,
    highest_false_pairs,
)

PHOTO_SUFFIXES: Final = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
BATCH_SIZE: Final = 32
SMALL_SIDE: Final = 32
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One descriptor's rows: `edited` `(n, num_edits, d)`; `corpus` `(n + num_distractors, d)`, photos first."""

    edited: NDArray[np.float32]
    corpus: NDArray[np.float32]
    images_per_second: float


def list_photos(folder: Path) -> list[Path]:
    """Every image file under `folder`, in path order; raises EvaluationError when there is none."""
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if not photos:
        raise EvaluationError(f"{folder} holds no image files; pass a folder with {', '.join(sorted(PHOTO_SUFFIXES))}")
    return photos


def draw_photos(photos: Sequence[Path], num: int | None, *, seed: int) -> list[Path]:
    """`num` of the photos, or all when there are not more or `num` is None, in path order."""
    if num is None or num >= len(photos):
        return list(photos)
    chosen = np.random.default_rng(seed).choice(len(photos), num, replace=False)
    return [photos[i] for i in np.sort(chosen)]


def draw_distractors(folder: Path, num: int, *, seed: int) -> list[Path]:
    """`num` files drawn evenly from the folder's sub-folders (fewer when there are not so many), in path order.

    A sub-folder that holds less than its share gives all it has and the others make up for it.
    """
    groups: dict[Path, list[Path]] = {}
    for path in list_photos(folder):
        groups.setdefault(path.parent, []).append(path)
    rng = np.random.default_rng(seed)
    shuffled = [[group[i] for i in rng.permutation(len(group))] for group in groups.values()]
    turns = (group[turn] for turn in range(max(map(len, shuffled))) for group in shuffled if turn < len(group))
    return sorted(islice(turns, num))


def readable_images(paths: Sequence[Path]) -> tuple[list[Path], list[tuple[str, str]]]:
    """The files that decode, in order, and path and reason of those that do not; raises EvaluationError if all fail."""

    def problem(path: Path) -> str | None:
        try:
            decode_image(path.read_bytes(), min_side=SMALL_SIDE)
        except ImageRejected as rejected:
            return str(rejected)
        except OSError as error:
            return error.strerror or str(error)
        return None

    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(problem, paths))
    readable = [path for path, reason in zip(paths, problems, strict=True) if reason is None]
    rejects = [(str(path), reason) for path, reason in zip(paths, problems, strict=True) if reason is not None]
    if not readable:
        raise EvaluationError(f"none of {len(paths)} images can be read; the first: {rejects[0][0]}: {rejects[0][1]}")
    return readable, rejects


def files_sha256(paths: Sequence[Path]) -> str:
    """The identity of a list of files: the SHA-256 of their contents' SHA-256, in order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def open_photo(path: Path) -> NDArray[np.uint8]:
    """`(h, w, 3)` uint8 RGB of a file; raises ImageRejected."""
    return decode_image(path.read_bytes())


def edited_photo(path: Path, edit: str, *, seed: int, photo_number: int) -> NDArray[np.uint8]:
    """`(h, w, 3)` uint8 RGB of a planted edit of the file; raises ImageRejected."""
    return np.asarray(planted(Image.fromarray(open_photo(path)), edit, seed=seed, photo_number=photo_number))


def describe_all(descriptor: Descriptor, paths: Sequence[Path]) -> tuple[NDArray[np.float32], float]:
    """`(n, d)` float32 rows of files, and files a second."""
    with ThreadPoolExecutor() as pool:
        describe_files(descriptor, paths[:BATCH_SIZE], pool)  # compiles and fills caches before the clock starts
        started = time.perf_counter()
        rows = describe_files(descriptor, paths, pool)
        return rows, len(paths) / (time.perf_counter() - started)


def describe_planted(
    descriptors: Sequence[Descriptor],
    photos: Sequence[Path],
    distractors: Sequence[Path],
    *,
    edits: Sequence[str],
    seed: int,
    num_threads: int | None = None,
) -> list[Described]:
    """The rows of every descriptor; each edit is made once, for all of them. Speed is that of encoded photos."""
    with ThreadPoolExecutor(num_threads) as pool:
        speeds, corpora = [], []
        for descriptor in descriptors:
            of_photos, images_per_second = describe_all(descriptor, photos)
            speeds.append(images_per_second)
            of_distractors = describe_files(descriptor, distractors, pool)
            corpora.append(np.concatenate([of_photos, of_distractors]) if distractors else of_photos)
        edited = _describe_edits(descriptors, photos, pool, edits=edits, seed=seed)
    return [
        Described(edited=rows, corpus=corpus, images_per_second=speed)
        for rows, corpus, speed in zip(edited, corpora, speeds, strict=True)
    ]


def describe_files(descriptor: Descriptor, paths: Sequence[Path], pool: ThreadPoolExecutor) -> NDArray[np.float32]:
    """`(n, d)` float32 rows of encoded files; the pool decodes ahead while a batch is described."""
    prepared = _read_ahead(pool, lambda path: descriptor.prepare(descriptor.decode(path.read_bytes())), paths)
    rows = [descriptor.rows(np.stack(batch)) for batch in _batches(prepared, BATCH_SIZE)]
    return np.concatenate(rows) if rows else np.empty((0, 1), np.float32)


def _describe_edits(
    descriptors: Sequence[Descriptor],
    photos: Sequence[Path],
    pool: ThreadPoolExecutor,
    *,
    edits: Sequence[str],
    seed: int,
) -> list[NDArray[np.float32]]:
    """For each descriptor the `(n, num_edits, d)` rows of all edits."""

    def prepare(numbered: tuple[int, Path]) -> list[NDArray[Any]]:
        number, path = numbered
        photo = Image.fromarray(open_photo(path))
        edited = [np.asarray(planted(photo, edit, seed=seed, photo_number=number)) for edit in edits]
        return [np.stack([descriptor.prepare(pixels) for pixels in edited]) for descriptor in descriptors]

    rows: list[list[NDArray[np.float32]]] = [[] for _ in descriptors]
    for photos_at_once in _batches(_read_ahead(pool, prepare, enumerate(photos)), BATCH_SIZE):
        for descriptor, described, images in zip(descriptors, rows, zip(*photos_at_once, strict=True), strict=True):
            described.append(descriptor.rows(np.concatenate(images)))
    return [np.concatenate(described).reshape(len(photos), len(edits), -1) for described in rows]


def _read_ahead(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`pool.map` that works on a batch ahead and no further: prepared images are large, and networks slow."""
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) > BATCH_SIZE:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def score_edits(
    described: Described,
    *,
    edits: Sequence[str],
    scorer: RowScorer = DotProduct(),  # noqa: B008 - it has no state
    same: Sequence[tuple[int, int]] = (),
    num_worst: int = 20,
) -> ScoredPairs:
    """Scores of all edits; `same` holds pairs of positions in photos + distractors that are one picture.

    In a judged pair `left` is the photo that was edited and `right` the file it was compared with.
    """
    num_photos, num_edits = described.edited.shape[:2]
    rows = described.edited.reshape(num_photos * num_edits, -1)
    photo_of_row = np.repeat(np.arange(num_photos), num_edits)
    neither: dict[int, list[int]] = {}
    for left, right in same:
        neither.setdefault(left, []).append(right)
        neither.setdefault(right, []).append(left)

    def hide(scores: NDArray[np.float32], first_row: int) -> None:
        for place, photo in enumerate(photo_of_row[first_row : first_row + len(scores)].tolist()):
            scores[place, [photo, *neither.get(photo, ())]] = -np.inf

    def judged(row: int, other: int, score: float) -> JudgedPair:
        return JudgedPair(kind=edits[row % num_edits], left=row // num_edits, right=other, score=score)

    true_scores = scorer.pairs(rows, described.corpus[photo_of_row])
    false = highest_false_pairs(rows, described.corpus, scorer=scorer, hide=hide, num_kept=max(len(rows), num_worst))
    return ScoredPairs(
        kinds=tuple(edits),
        true_scores=true_scores,
        true_kind=np.tile(np.arange(num_edits), num_photos),
        true_photo=photo_of_row,
        false_scores=false.scores,
        false_photo=photo_of_row[false.rows],
        worst_misses=tuple(
            judged(int(row), int(photo_of_row[row]), float(true_scores[row]))
            for row in highest(-true_scores, num_worst)
        ),
        worst_false=tuple(
            judged(int(row), int(other), float(score))
            for row, other, score in zip(
                false.rows[:num_worst], false.others[:num_worst], false.scores[:num_worst], strict=True
            )
        ),
    )
