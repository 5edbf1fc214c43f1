"""`python -m benchmarks dedup`: photos and four planted copies of each through the whole `neardup dedup` command.

Time and memory are those of a process of its own, from its start to its end, Spark and the network included.
Precision and recall are counted in pairs; files of PHOTOS that hold one picture (`same_picture`) are one group, and
pairs that `--labels` calls near-duplicate or unsure count neither way.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.neardup_run import run_neardup
from benchmarks.results import versions, write_json
from benchmarks.truth import Truth, read_clusters, score_clusters, wrong_pairs
from cli.tables import show_table
from embed.evaluation.edits import crop, gray, mirror, rotate_10
from embed.evaluation.labelled_pairs import linked_positions, read_labelled_pairs
from embed.evaluation.planted import list_photos
from embed.evaluation.same_picture import same_pictures

NUM_SHOWN = 10
Copy = tuple[Callable[[Image.Image, np.random.Generator], Image.Image], int]

COPIES: dict[str, Copy] = {
    "recompressed": (lambda photo, _: photo, 50),
    "cropped": (lambda photo, rng: crop(photo, rng, area=0.9), 90),
    "mirrored": (mirror, 90),
    "darkened": (lambda photo, _: ImageEnhance.Brightness(photo).enhance(0.65), 90),
}
"""Each copy's edit and the quality of its JPEG."""
VIEWED: dict[str, Copy] = {
    "cropped to half": (lambda photo, rng: crop(photo, rng, area=0.5), 90),
    "cropped to a quarter": (lambda photo, rng: crop(photo, rng, area=0.25), 90),
    "gray": (gray, 90),
    "turned": (rotate_10, 90),
}
"""What `--thorough` adds: copies that views find."""


def write_copies(
    photos: Sequence[Path],
    folder: Path,
    *,
    seed: int,
    linked: Sequence[tuple[int, int]] = (),
    copies: Mapping[str, Copy] = COPIES,
) -> Truth:
    """Write every photo as it is and its `copies` into `folder`; `linked` are the pairs of photos not to be judged."""
    original_of: dict[str, str] = {}
    originals: list[str] = []
    for number, path in enumerate(photos):
        original = f"{number:05d}-original{path.suffix}"
        originals.append(original)
        shutil.copyfile(path, folder / original)
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        rng = np.random.default_rng([seed, number])
        for name, (edit, quality) in copies.items():
            copy = f"{number:05d}-{name}.jpg"
            edit(photo, rng).save(folder / copy, quality=quality)
            original_of[copy] = original
        original_of[original] = original
    same = {originals[right]: originals[left] for left, right in reversed(same_pictures(photos))}
    group_of = {original: same.get(original, original) for original in originals}
    unjudged = {(group_of[originals[left]], group_of[originals[right]]) for left, right in linked}
    return Truth(
        {image: group_of[original] for image, original in original_of.items()},
        frozenset((min(pair), max(pair)) for pair in unjudged),
    )


def num_with_original(clusters: Sequence[Sequence[str]], copy: str, *, num_photos: int) -> int:
    """How many copies of that name are in the cluster of the very photo they were made from."""
    cluster_of = {Path(image).stem: number for number, cluster in enumerate(clusters) for image in cluster}
    pairs = [(f"{number:05d}-original", f"{number:05d}-{copy}") for number in range(num_photos)]
    return sum(original in cluster_of and cluster_of[original] == cluster_of.get(edited) for original, edited in pairs)


@click.command()
@click.argument("photos", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--embedder", default="vgg_copy", show_default=True, help="Name or directory of the embedder.")
@click.option("--labels", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="CSV a,b,label of PHOTOS.")
@click.option("--thorough", is_flag=True, help="Four copies more of each photo, and `dedup --thorough`.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--show-wrong", type=click.IntRange(min=0), default=NUM_SHOWN, show_default=True, help="Wrong pairs named."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(
    *,
    photos: Path,
    embedder: str,
    labels: Path | None,
    thorough: bool,
    seed: int,
    show_wrong: int,
    json_path: Path | None,
) -> None:
    """Deduplicate PHOTOS with a recompressed, a cropped, a mirrored and a darkened copy of each.

    Example: python -m benchmarks dedup eval/photos --json dedup.json
    """
    paths = list_photos(photos)
    copies = COPIES | VIEWED if thorough else COPIES
    linked = linked_positions(read_labelled_pairs(labels, images=photos), paths) if labels else []
    with tempfile.TemporaryDirectory(prefix="neardup-benchmark-") as scratch:
        folder = Path(scratch) / "photos"
        folder.mkdir()
        truth = write_copies(paths, folder, seed=seed, linked=linked, copies=copies)
        arguments = ["dedup", str(folder), "--workspace", f"{scratch}/workspace", "--embedder", embedder]
        run = run_neardup([*arguments, "--thorough"] if thorough else arguments)
        clusters = read_clusters(run.output("clusters_csv"))
    metrics = score_clusters(clusters, truth)
    found = {copy: num_with_original(clusters, copy, num_photos=len(paths)) for copy in copies}
    packages = versions("pyspark", "keras", "tensorflow-cpu", "numba", "numpy")
    rows = [
        ["clusters", str(len(clusters))],
        ["pair precision", f"{metrics.precision:.4f}"],
        ["pair recall", f"{metrics.recall:.4f}"],
        *([f"{copy} with their original", f"{number} of {len(paths)}"] for copy, number in found.items()),
        ["wall seconds", f"{run.wall_s:.1f}"],
        *([f"  {stage}", f"{seconds:.1f}"] for stage, seconds in run.stage_s.items()),
        [f"peak memory of the process tree ({run.memory.upper()})", f"{run.peak_mb:,.0f} MB"],
    ]
    show_table(f"neardup dedup of {len(truth.original_of):,} images", ["", ""], rows)
    wrong = list(wrong_pairs(clusters, truth))
    for left, right in wrong[:show_wrong]:
        click.echo(f"wrong pair: {_describe(left, paths)} + {_describe(right, paths)}")
    click.echo("  ".join(f"{name} {version}" for name, version in packages.items()))
    figures = {
        "benchmark": "dedup",
        "images": len(truth.original_of),
        "thorough": thorough,
        "seed": seed,
        "versions": packages,
        "wall_s": run.wall_s,
        "stage_s": run.stage_s,
        "peak_mb": run.peak_mb,
        "memory": run.memory,
        "clusters": len(clusters),
        "labelled_pairs": len(linked),
        "pair_precision": metrics.precision,
        "pair_recall": metrics.recall,
        "copies_with_their_original": found,
        "wrong_pairs": [[_describe(left, paths), _describe(right, paths)] for left, right in wrong],
    }
    write_json(json_path, figures)


def _describe(image: str, photos: Sequence[Path]) -> str:
    """`00012-mirrored.jpg` as the photo's own name and what was done to it."""
    number, _, copy = Path(image).stem.partition("-")
    return f"{photos[int(number)].name} ({copy})"
