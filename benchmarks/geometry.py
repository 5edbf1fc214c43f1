"""`python -m benchmarks geometry`: how far the verdicts of the geometric verifier can be trusted.

True pairs are planted edits of photos, and labelled pairs where a CSV is given. False pairs are the hardest there are:
the different files that the embedder finds most similar. Verdicts of odd-numbered photos chose the thresholds, so only
the even-numbered ones are counted unless asked otherwise.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import cv2
import numpy as np
from PIL import Image

from benchmarks.results import versions, write_json
from cli.tables import show_table
from embed.evaluation.descriptors import load_descriptors
from embed.evaluation.edits import ALL_EDITS, planted
from embed.evaluation.labelled_pairs import read_labelled_pairs, readable_pairs, score_labels
from embed.evaluation.planted import describe_all, draw_photos, list_photos, open_photo, readable_images
from embed.evaluation.same_picture import same_pictures
from embed.evaluation.scored_pairs import highest_false_pairs
from embed.geometry import LocalFeatures, Verdict, find_features, verify_geometry

Verdicts = Counter[str]


def verdicts_of_edits(photos: Sequence[Path], edit: str, *, seed: int, pool: ThreadPoolExecutor) -> Verdicts:
    """The verdicts on each photo and its edit."""

    def verdict(number: int, path: Path) -> str:
        pixels = open_photo(path)
        edited = np.asarray(planted(Image.fromarray(pixels), edit, seed=seed, photo_number=number))
        return verify_geometry(find_features(pixels), find_features(edited)).verdict.value

    return Counter(pool.map(verdict, range(len(photos)), photos))


def verdicts_of_pairs(
    images: Sequence[Path], pairs: Iterable[tuple[int, int]], *, pool: ThreadPoolExecutor
) -> list[tuple[int, int, str]]:
    """Each pair of positions in `images` with its verdict."""
    pairs = list(pairs)
    wanted = sorted({image for pair in pairs for image in pair})
    features: dict[int, LocalFeatures] = dict(
        zip(wanted, pool.map(lambda image: find_features(open_photo(images[image])), wanted), strict=True)
    )
    found = pool.map(lambda pair: verify_geometry(features[pair[0]], features[pair[1]]).verdict.value, pairs)
    return [(left, right, verdict) for (left, right), verdict in zip(pairs, found, strict=True)]


def hardest_pairs(photos: Sequence[Path], num: int, *, embedder: str) -> list[tuple[int, int]]:
    """The `num` pairs of different photos that the embedder finds most similar."""
    (descriptor,) = load_descriptors(["embedder"], embedder=embedder)
    rows, _ = describe_all(descriptor, photos)
    same = np.array(same_pictures(photos), np.int64).reshape(-1, 2)

    def hide(scores: np.ndarray[tuple[int, ...], np.dtype[np.float32]], first_row: int) -> None:
        lefts = np.arange(first_row, first_row + len(scores))[:, None]
        scores[lefts >= np.arange(len(rows))] = -np.inf
        here = same[(same[:, 0] >= first_row) & (same[:, 0] < first_row + len(scores))]
        scores[here[:, 0] - first_row, here[:, 1]] = -np.inf

    found = highest_false_pairs(rows, rows, scorer=descriptor.scorer, hide=hide, num_kept=num)
    return list(zip(found.rows.tolist(), found.others.tolist(), strict=True))


@click.command()
@click.argument("photos", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--pairs", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="CSV with a,b,label.")
@click.option("--images", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Root of a and b.")
@click.option("--num-photos", type=click.IntRange(min=2), default=100, show_default=True)
@click.option("--num-hardest", type=click.IntRange(min=1), default=500, show_default=True, help="False pairs.")
@click.option("--embedder", default="vgg_copy", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--show", type=click.IntRange(min=0), default=10, show_default=True, help="False 'same' pairs named.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(
    *,
    photos: Path,
    pairs: Path | None,
    images: Path | None,
    num_photos: int,
    num_hardest: int,
    embedder: str,
    seed: int,
    show: int,
    json_path: Path | None,
) -> None:
    """Verdicts on planted edits of PHOTOS, on their hardest different pairs and on labelled pairs.

    Example: python -m benchmarks geometry eval/photos --pairs pairs.csv --images images
    """
    cv2.setNumThreads(1)
    everything, _ = readable_images(list_photos(photos))
    drawn = draw_photos(everything[::2], num_photos, seed=seed)
    verdicts: dict[str, Verdicts] = {}
    with ThreadPoolExecutor() as pool:
        started = time.perf_counter()
        for edit in ALL_EDITS:
            verdicts[edit] = verdicts_of_edits(drawn, edit, seed=seed, pool=pool)
        pairs_per_second = len(drawn) * len(ALL_EDITS) / (time.perf_counter() - started)
        hardest = verdicts_of_pairs(everything, hardest_pairs(everything, num_hardest, embedder=embedder), pool=pool)
        verdicts["hardest different photos"] = Counter(verdict for _, _, verdict in hardest)
        if pairs is not None:
            given = read_labelled_pairs(pairs, images=images or pairs.parent)
            labelled = readable_pairs(given, set(readable_images(given.images)[0]))
            for label in dict.fromkeys(labelled.is_same.tolist()):
                for number, kind in enumerate(labelled.kinds):
                    chosen = (labelled.is_same == label) & (labelled.kind == number)
                    name = f"labelled {int(label)}, {kind}"
                    listed = zip(labelled.left[chosen].tolist(), labelled.right[chosen].tolist(), strict=True)
                    judged = verdicts_of_pairs(labelled.images, listed, pool=pool)
                    verdicts[name] = Counter(verdict for _, _, verdict in judged)
            if labelled.are_complete:
                (descriptor,) = load_descriptors(["embedder"], embedder=embedder)
                rows, _ = describe_all(descriptor, labelled.images)
                scored = score_labels(rows, labelled, same=same_pictures(labelled.images), num_worst=num_hardest)
                unlinked = [(pair.left, pair.right) for pair in scored.worst_false]
                judged = verdicts_of_pairs(labelled.images, unlinked, pool=pool)
                verdicts["hardest unlinked images"] = Counter(verdict for _, _, verdict in judged)
    rows_shown = [
        [name, *(str(counted[verdict.value]) for verdict in Verdict), f"{counted['same'] / counted.total():.3f}"]
        for name, counted in verdicts.items()
        if counted.total()
    ]
    show_table(
        f"{len(drawn)} photos, seed {seed}, {pairs_per_second:.0f} pairs/s with their features",
        ["pairs", *(verdict.value for verdict in Verdict), "share same"],
        rows_shown,
    )
    for left, right, _ in [pair for pair in hardest if pair[2] == Verdict.SAME][:show]:
        click.echo(f"same, though different files: {everything[left].name} {everything[right].name}")
    packages = versions("opencv-python-headless", "numpy", "pillow")
    click.echo("  ".join(f"{name} {version}" for name, version in packages.items()))
    write_json(
        json_path,
        {
            "benchmark": "geometry",
            "num_photos": len(drawn),
            "seed": seed,
            "versions": packages,
            "pairs_per_second": pairs_per_second,
            "verdicts": {name: dict(counted) for name, counted in verdicts.items()},
        },
    )
