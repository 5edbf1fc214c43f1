"""`python -m benchmarks uploads`: edited photos looked up in an index of the photos, as uploads are.

PHOTOS and distractors go through the whole `neardup dedup --thorough`, and become an index of whole images and one with
their views. Every edit of some of the photos is looked up in both by itself, and with its own views in the latter, as
`neardup serve --thorough` does: what finds its photo, what finds others, and how long the engine takes.

Copies of one picture (`same_picture`), and pairs that `--labels` calls near-duplicate or unsure, count neither way.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.neardup_run import run_measured, run_neardup
from benchmarks.results import versions, write_json
from cli.tables import show_table
from embed.evaluation.edits import EDITS, HARDER_EDITS
from embed.evaluation.labelled_pairs import linked_positions, read_labelled_pairs
from embed.evaluation.planted import draw_distractors, draw_photos, edited_photo, list_photos
from embed.evaluation.same_picture import same_pictures
from embed.preprocessing import to_square
from embed.views import view_squares
from lsh.index.generation import open_generation
from lsh.index.lookup import HashTables
from lsh.index.publishing import generation_folder
from service.served import Answer, Served

K = 10
UPLOADS_AT_ONCE = 64
WAYS = ("whole images", "with views of the known", "and of the upload")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to look uploads up: by edit the share that found its photo, all matches, and the time of the engine."""

    found: dict[str, float]
    num_right: int
    num_wrong: int
    median_us: float
    bytes_per_image: float

    @property
    def recall(self) -> float:
        return sum(self.found.values()) / len(self.found)

    @property
    def precision(self) -> float:
        return self.num_right / max(1, self.num_right + self.num_wrong)


@dataclass(frozen=True, slots=True, eq=False)
class Uploads:
    """Edits of photos, `photos[i]` by `edits[i]`, with their `rows` `(n, dim)` and `views` `(n, NUM_VIEWS, dim)`."""

    photos: list[int]
    edits: list[str]
    rows: NDArray[np.float32]
    views: NDArray[np.float32]


def write_known(photos: Sequence[Path], distractors: Sequence[Path], folder: Path) -> None:
    """Copy what the index knows; a photo's image id begins with its number."""
    folder.mkdir()
    for number, path in enumerate(photos):
        shutil.copyfile(path, folder / f"{number:06d}{path.suffix}")
    for number, path in enumerate(distractors):
        shutil.copyfile(path, folder / f"other-{number:06d}{path.suffix}")


def make_uploads(
    photos: Sequence[Path], chosen: Sequence[int], edits: Sequence[str], *, seed: int, dtype: str
) -> Uploads:
    """Every edit of the chosen photos, embedded."""
    from embed.embedder import load_embedder
    from embed.views import load_view_embedder

    embedder, view_embedder = load_embedder(dtype=dtype), load_view_embedder(dtype=dtype)
    size = embedder.spec.size

    def prepared(upload: tuple[int, str]) -> list[NDArray[np.uint8]]:
        pixels = edited_photo(photos[upload[0]], upload[1], seed=seed, photo_number=upload[0])
        return [to_square(pixels, size), *view_squares(pixels, size)]

    uploads = list(product(chosen, edits))
    rows, views = [], []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(uploads), UPLOADS_AT_ONCE):
            made = list(pool.map(prepared, uploads[start : start + UPLOADS_AT_ONCE]))
            whole, *squares = (np.stack(of_one_size) for of_one_size in zip(*made, strict=True))
            rows.append(embedder.embed(whole))
            views.append(view_embedder.embed(squares))
    return Uploads([photo for photo, _ in uploads], [edit for _, edit in uploads], *map(np.concatenate, (rows, views)))


def build_served(workspace: Path, *options: str) -> Served:
    """An index of the workspace, built by the real command and ready to be asked."""
    build = ["-m", "cli", "index", "build", "--workspace", str(workspace), "--json", *options]
    built = json.loads(run_measured(build).printed)
    served = Served(HashTables(open_generation(generation_folder(workspace / "index", built["generation_id"]))))
    served.warm_up()
    return served


def look_up(served: Served, uploads: Uploads, linked: set[tuple[int, int]], *, of_uploads: bool = False) -> Way:
    """Look every upload up by itself, with its views where `of_uploads` are wanted."""
    manifest = served.generation.manifest
    num_found = dict.fromkeys(uploads.edits, 0)
    num_right = num_wrong = 0
    seconds = []
    for number, (photo, edit) in enumerate(zip(uploads.photos, uploads.edits, strict=True)):
        views = uploads.views[number : number + 1] if of_uploads else None
        started = time.perf_counter()
        (answer,) = served.lookup(uploads.rows[number : number + 1], k=K, min_score=manifest.min_score, views=views)
        seconds.append(time.perf_counter() - started)
        are_right = list(judged(answer, photo, linked))
        num_found[edit] += any(are_right)
        num_right, num_wrong = num_right + sum(are_right), num_wrong + are_right.count(False)
    num_photos = len(set(uploads.photos))
    return Way(
        found={edit: num / num_photos for edit, num in num_found.items()},
        num_right=num_right,
        num_wrong=num_wrong,
        median_us=1e6 * median(seconds),
        bytes_per_image=sum(file.size_bytes for file in manifest.files.values()) / manifest.num_docs,
    )


def judged(answer: Answer, photo: int, linked: set[tuple[int, int]]) -> Iterator[bool]:
    """Whether each match is the photo; those that are linked with it are left out."""
    for match in answer.matches:
        name = Path(match.image_id).stem
        known = int(name) if name.isdigit() else -1
        if known == photo or (min(known, photo), max(known, photo)) not in linked:
            yield known == photo


@click.command()
@click.argument("photos", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--distractors", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Other photos.")
@click.option("--num-distractors", type=click.IntRange(0), default=1000, show_default=True)
@click.option("--labels", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="CSV a,b,label of PHOTOS.")
@click.option("--edited", type=click.IntRange(1), default=200, show_default=True, help="Photos that are edited.")
@click.option("--edits", type=click.Choice(["default", "harder"]), default="default", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "int8"]), default="int8", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(
    *,
    photos: Path,
    distractors: Path | None,
    num_distractors: int,
    labels: Path | None,
    edited: int,
    edits: str,
    dtype: str,
    seed: int,
    json_path: Path | None,
) -> None:
    """Look edited PHOTOS up in an index of whole images and in one with views.

    Example: python -m benchmarks uploads eval/photos --distractors train --edited 100
    """
    paths = list_photos(photos)
    others = draw_distractors(distractors, num_distractors, seed=seed) if distractors else []
    linked = set(same_pictures(paths))
    if labels:
        linked |= set(linked_positions(read_labelled_pairs(labels, images=photos), paths))
    numbers = {path: number for number, path in enumerate(paths)}
    chosen = [numbers[path] for path in draw_photos(paths, edited, seed=seed)]
    with tempfile.TemporaryDirectory(prefix="neardup-benchmark-") as scratch:
        workspace = Path(scratch, "workspace")
        write_known(paths, others, Path(scratch, "known"))
        arguments = ["dedup", str(Path(scratch, "known")), "--workspace", str(workspace), "--thorough"]
        run = run_neardup([*arguments, "--dtype", dtype])
        uploads = make_uploads(
            paths, chosen, list(EDITS if edits == "default" else HARDER_EDITS), seed=seed, dtype=dtype
        )
        whole, with_views = build_served(workspace, "--without-views"), build_served(workspace)
        looked_up = (
            look_up(whole, uploads, linked),
            look_up(with_views, uploads, linked),
            look_up(with_views, uploads, linked, of_uploads=True),
        )
        ways = dict(zip(WAYS, looked_up, strict=True))
    rows = [[edit, *(f"{way.found[edit]:.2f}" for way in ways.values())] for edit in dict.fromkeys(uploads.edits)]
    rows += [
        ["all", *(f"{way.recall:.3f}" for way in ways.values())],
        ["precision of the matches", *(f"{way.precision:.4f}" for way in ways.values())],
        ["engine, median µs", *(f"{way.median_us:,.0f}" for way in ways.values())],
        ["bytes an image", *(f"{way.bytes_per_image:,.0f}" for way in ways.values())],
    ]
    show_table(f"{len(uploads.edits):,} uploads, {len(paths) + len(others):,} known images", ["", *WAYS], rows)
    figures = {
        "benchmark": "uploads",
        "images": len(paths) + len(others),
        "uploads": len(uploads.edits),
        "edits": edits,
        "dtype": dtype,
        "seed": seed,
        "versions": versions("keras", "tensorflow-cpu", "numba", "numpy"),
        "dedup_s": run.wall_s,
        "ways": {name: {**asdict(way), "recall": way.recall, "precision": way.precision} for name, way in ways.items()},
    }
    write_json(json_path, figures)
