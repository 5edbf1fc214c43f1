"""`python -m benchmarks descriptors`: our embedder, PDQ and pHash on planted edits, at one threshold each.

Every edit of every photo is matched against all photos and the distractors. A match with its own photo is true,
with any other file false. Each descriptor gets ONE threshold over all edits: the lowest at which false matches are
at most 1 % of true ones (`threshold`). Recall there is what the table shows, beside images a second from encoded
file to descriptor on all cores. A file that holds the very picture of another (`same_picture`) is neither a true nor
a false match of it.

The descriptors are `contenders`, the edits `edits`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.contenders import Contender, load_contenders
from benchmarks.edits import EDITS, planted
from benchmarks.results import show_table, versions, write_json
from benchmarks.same_picture import same_pictures
from benchmarks.threshold import lowest_threshold

PHOTO_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
BATCH_SIZE = 32
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FalseMatch:
    """An edited photo that looks like another file; the worst of them are often real near-duplicates."""

    edit: str
    photo: str
    other: str
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one contender reached; `threshold` is a similarity and infinite when nothing can be accepted."""

    contender: str
    threshold: float
    recall: float
    recall_by_edit: dict[str, float]
    num_true_matches: int
    num_false_matches: int
    images_per_second: float
    worst_false_matches: list[FalseMatch]


def list_photos(folder: Path) -> list[Path]:
    """Every image file under `folder`, in path order; raises click.ClickException when there is none."""
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if not photos:
        raise click.ClickException(
            f"{folder} holds no image files; pass a folder with {', '.join(sorted(PHOTO_SUFFIXES))}"
        )
    return photos


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


def compare(
    contenders: Sequence[Contender],
    photos: Sequence[Path],
    distractors: Sequence[Path],
    *,
    same: Sequence[tuple[int, int]] = (),
    seed: int = 0,
    num_threads: int | None = None,
    num_worst: int = 20,
) -> list[Result]:
    """Recall of every contender over `EDITS` of `photos`, each against all photos and distractors.

    `same` holds pairs of positions in photos + distractors that are one picture.
    """
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        speeds, corpora = [], []
        for contender in contenders:
            _describe_files(contender, photos[:BATCH_SIZE], pool)  # compiles and fills caches before the clock starts
            started = time.perf_counter()
            of_photos = _describe_files(contender, photos, pool)
            speeds.append(len(photos) / (time.perf_counter() - started))
            corpora.append(np.concatenate([of_photos, _describe_files(contender, distractors, pool)]))
        edited = _describe_edits(contenders, photos, pool, seed=seed)
    names = [path.name for path in photos] + ["/".join(path.parts[-2:]) for path in distractors]
    return [
        judge(contender.name, rows, corpus, same=same, names=names, images_per_second=speed, num_worst=num_worst)
        for contender, rows, corpus, speed in zip(contenders, edited, corpora, speeds, strict=True)
    ]


def _describe_files(contender: Contender, paths: Sequence[Path], pool: ThreadPoolExecutor) -> NDArray[np.float32]:
    """`(n, d)` float32 rows of encoded files; the pool decodes ahead while a batch is described."""
    prepared = pool.map(lambda path: contender.prepare(contender.decode(path.read_bytes())), paths)
    rows = [contender.rows(np.stack(batch)) for batch in _batches(prepared, BATCH_SIZE)]
    return np.concatenate(rows) if rows else np.empty((0, 1), np.float32)


def _describe_edits(
    contenders: Sequence[Contender], photos: Sequence[Path], pool: ThreadPoolExecutor, *, seed: int
) -> list[NDArray[np.float32]]:
    """For each contender the `(n, num_edits, d)` rows of all edits; every edit is made once, for all of them."""

    def prepare(numbered: tuple[int, Path]) -> list[NDArray[Any]]:
        number, path = numbered
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        edited = [np.asarray(planted(photo, edit, seed=seed, photo_number=number)) for edit in EDITS]
        return [np.stack([contender.prepare(pixels) for pixels in edited]) for contender in contenders]

    rows: list[list[NDArray[np.float32]]] = [[] for _ in contenders]
    for photos_at_once in _batches(pool.map(prepare, enumerate(photos)), BATCH_SIZE):
        for contender, described, images in zip(contenders, rows, zip(*photos_at_once, strict=True), strict=True):
            described.append(contender.rows(np.concatenate(images)))
    return [np.concatenate(described).reshape(len(photos), len(EDITS), -1) for described in rows]


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def judge(
    name: str,
    edited: NDArray[np.float32],
    corpus: NDArray[np.float32],
    *,
    names: Sequence[str],
    same: Sequence[tuple[int, int]] = (),
    images_per_second: float,
    num_worst: int = 20,
) -> Result:
    """One contender's threshold and recall.

    `edited` `(n, num_edits, d)`; `corpus` `(n + num_distractors, d)`, its first `n` rows are the photos in order.
    """
    num_photos, num_edits = edited.shape[:2]
    similarity = edited.reshape(num_photos * num_edits, -1) @ corpus.T
    photo_of_row = np.repeat(np.arange(num_photos), num_edits)
    rows = np.arange(len(similarity))
    true_scores = similarity[rows, photo_of_row]
    similarity[rows, photo_of_row] = -np.inf
    for left, right in same:
        similarity[photo_of_row == left, right] = -np.inf
        if right < num_photos:
            similarity[photo_of_row == right, left] = -np.inf
    point = lowest_threshold(true_scores, similarity[similarity > -np.inf])
    found = true_scores.reshape(num_photos, num_edits) >= point.threshold
    edit_names = list(EDITS)
    worst = [
        FalseMatch(
            edit=edit_names[row % num_edits],
            photo=names[row // num_edits],
            other=names[other],
            similarity=float(similarity[row, other]),
        )
        for row, other in _highest(similarity, num_worst)
    ]
    return Result(
        contender=name,
        threshold=point.threshold,
        recall=float(found.mean()),
        recall_by_edit=dict(zip(edit_names, found.mean(axis=0).tolist(), strict=True)),
        num_true_matches=point.num_true,
        num_false_matches=point.num_false,
        images_per_second=images_per_second,
        worst_false_matches=worst,
    )


def _highest(scores: NDArray[np.float32], num: int) -> list[tuple[int, int]]:
    """Row and column of the `num` highest scores, highest first."""
    flat = scores.ravel()
    num = min(num, len(flat))
    top = np.argpartition(flat, len(flat) - num)[len(flat) - num :] if num else np.empty(0, np.int64)
    top = top[np.argsort(-flat[top], kind="stable")]
    return [(int(row), int(column)) for row, column in zip(*np.unravel_index(top, scores.shape), strict=True)]


def _print(results: Sequence[Result], *, title: str, num_worst: int) -> None:
    ours = results[0]
    rows = [[edit, *(f"{result.recall_by_edit[edit]:.3f}" for result in results)] for edit in EDITS]
    rows.append(["all edits", *(f"{result.recall:.3f}" for result in results)])
    rows.append([f"vs. {ours.contender}", *(f"{result.recall / ours.recall:.2f}" for result in results)])
    rows.append(["threshold", *(f"{result.threshold:.4f}" for result in results)])
    rows.append(["true / false", *(f"{result.num_true_matches} / {result.num_false_matches}" for result in results)])
    rows.append(["images/s", *(f"{result.images_per_second:.0f}" for result in results)])
    show_table(title, ["recall at 99 % precision", *(result.contender for result in results)], rows)
    for result in results if num_worst else []:
        worst = [
            [f"{match.similarity:.4f}", match.edit, match.photo, match.other]
            for match in result.worst_false_matches[:num_worst]
        ]
        show_table(f"Worst false matches of {result.contender}", ["similarity", "edit", "photo", "other file"], worst)


@click.command()
@click.argument("photos", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--distractors", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of others.")
@click.option("--num-distractors", type=click.IntRange(min=0), default=1000, show_default=True)
@click.option("--num-photos", type=click.IntRange(min=1), help="Draw only so many of PHOTOS.")
@click.option("--embedder", default="vgg_copy", show_default=True, help="Name or directory of the embedder.")
@click.option(
    "--contenders",
    type=click.Choice(["vgg", "pdq", "phash"]),
    multiple=True,
    default=["vgg", "pdq", "phash"],
    show_default=True,
    help="Repeat to choose several.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Decoding threads; default: one a core.")
@click.option("--show-worst", type=click.IntRange(min=0), default=0, help="Print so many of the worst false matches.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(
    *,
    photos: Path,
    distractors: Path | None,
    num_distractors: int,
    num_photos: int | None,
    embedder: str,
    contenders: tuple[str, ...],
    seed: int,
    threads: int | None,
    show_worst: int,
    json_path: Path | None,
) -> None:
    """Recall at 99 % precision over 14 planted edits of PHOTOS, for our embedder, PDQ and pHash.

    Example: python -m benchmarks descriptors eval/photos --distractors train --json descriptors.json
    """
    paths = list_photos(photos)
    if num_photos is not None and num_photos < len(paths):
        chosen = np.random.default_rng(seed).choice(len(paths), num_photos, replace=False)
        paths = [paths[i] for i in np.sort(chosen)]
    others = draw_distractors(distractors, num_distractors, seed=seed) if distractors else []
    same = same_pictures(paths + others)
    results = compare(
        load_contenders(list(dict.fromkeys(contenders)), embedder=embedder),
        paths,
        others,
        same=same,
        seed=seed,
        num_threads=threads,
        num_worst=max(show_worst, 20),
    )
    packages = versions("keras", "tensorflow-cpu", "pdqhash", "imagehash", "pillow", "numpy")
    _print(
        results,
        title=f"{len(paths)} photos, {len(EDITS)} edits, {len(others)} distractors, seed {seed}",
        num_worst=show_worst,
    )
    click.echo("  ".join(f"{name} {version}" for name, version in packages.items()))
    if same:
        twins = ", ".join(f"{(paths + others)[left].name} = {(paths + others)[right].name}" for left, right in same)
        click.echo(f"{len(same)} pairs of files hold the same picture and count neither as true nor as false: {twins}")
    if "vgg" in contenders:
        click.echo(f"min_score for embedder.json: {results[0].threshold:.4f}")
    figures = {
        "benchmark": "descriptors",
        "num_photos": len(paths),
        "num_distractors": len(others),
        "same_picture_pairs": len(same),
        "edits": list(EDITS),
        "seed": seed,
        "versions": packages,
        "results": [asdict(result) for result in results],
    }
    write_json(json_path, figures)
