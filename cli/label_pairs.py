"""`neardup label-pairs`: label candidate pairs by geometry, for the training and evaluation of other parts."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

HELP = """\
Label pairs of images by geometry and write a,b,label,num_inliers,agreement,is_mirrored.

The pairs are those of the CSV PAIRS with the columns a,b, paths below --images, or the --most-similar of all images
below it, most similar first. label is 1 for the same picture, 0 for different ones, and unsure where an image has too
little texture or cannot be read.

\b
  neardup label-pairs --images photos/ --most-similar 400 --output labels.csv
  neardup label-pairs candidates.csv --images photos/ --output labels.csv
  neardup evaluate --pairs labels.csv --images photos/
"""
PAIRS_AT_ONCE = 256


@click.command(name="label-pairs", help=HELP)
@click.argument("pairs", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=False)
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Root of a and b. [default: the CSV's]",
)
@click.option("--most-similar", type=click.IntRange(1, 1_000_000), help="Label so many pairs of --images instead.")
@click.option("--embedder", default="vgg_copy", show_default=True, help="Says which pairs are the most similar.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The CSV to write.")
@click.option("--threads", type=click.IntRange(1, 256), help="Pairs judged at once. [default: one a core]")
def command(
    *,
    pairs: Path | None,
    images: Path | None,
    most_similar: int | None,
    embedder: str,
    output: Path,
    threads: int | None,
) -> None:
    import cv2

    from batch_jobs.workspace import published_file
    from embed.evaluation.labelled_pairs import read_candidate_pairs

    if not output.parent.is_dir():
        raise click.UsageError(f"--output {output}: the folder {output.parent} does not exist")
    if (pairs is None) == (most_similar is None):
        raise click.UsageError("give either the CSV PAIRS or --most-similar N")
    if pairs is not None:
        root = images or pairs.parent
        listed = read_candidate_pairs(pairs, images=root)
    elif images is not None and most_similar is not None:
        root = images
        listed = _most_similar(images, most_similar, embedder)
    else:
        raise click.UsageError("--most-similar needs --images, the folder to look in")
    cv2.setNumThreads(1)
    labels: Counter[str] = Counter()
    with published_file(output) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["a", "b", "label", "num_inliers", "agreement", "is_mirrored"])
        for row in _judged(listed, root.resolve(), threads):
            labels[row[2]] += 1
            rows.writerow(row)
        text.flush()
        text.detach()
    counts = ", ".join(f"{count:,} {name}" for name, count in (("same", labels["1"]), ("different", labels["0"])))
    click.echo(f"{counts}, {labels['unsure']:,} unsure in {output}")


def _most_similar(images: Path, num: int, embedder: str) -> list[tuple[Path, Path]]:
    from embed.embedder import load_embedder
    from embed.errors import EvaluationError
    from embed.evaluation.descriptors import EmbedderDescriptor
    from embed.evaluation.planted import describe_all, list_photos, readable_images
    from embed.evaluation.similar_pairs import most_similar_pairs

    root = images.resolve()
    inside = {path for path in (one.resolve() for one in list_photos(images)) if path.is_relative_to(root)}
    if not inside:
        raise EvaluationError(
            f"{images} holds only links to files elsewhere, which are not followed; copy them into it"
        )
    paths, _ = readable_images(sorted(inside))
    ours = load_embedder(embedder)
    rows, _ = describe_all(EmbedderDescriptor(ours.spec.architecture, ours, ours.spec.size), paths)
    found, _ = most_similar_pairs(rows, num)
    return [(paths[left], paths[right]) for left, right in found.tolist()]


def _judged(listed: list[tuple[Path, Path]], root: Path, threads: int | None) -> Iterator[tuple[str, ...]]:
    """The rows of the output in order; an image is read once for neighbouring pairs."""
    from concurrent.futures import ThreadPoolExecutor
    from functools import lru_cache

    from embed.errors import ImageRejected
    from embed.evaluation.planted import open_photo
    from embed.geometry import LocalFeatures, Verdict, find_features, verify_geometry

    @lru_cache(maxsize=PAIRS_AT_ONCE)
    def features(path: Path) -> LocalFeatures | str:
        try:
            return find_features(open_photo(path))
        except (ImageRejected, OSError) as error:
            return str(error)

    def judge(pair: tuple[Path, Path]) -> tuple[str, ...]:
        left, right = (features(path) for path in pair)
        names = tuple(str(path.relative_to(root)) for path in pair)
        if isinstance(left, str) or isinstance(right, str):
            return (*names, "unsure", "", "", "")
        found = verify_geometry(left, right)
        label = {Verdict.SAME: "1", Verdict.DIFFERENT: "0"}.get(found.verdict, "unsure")
        return (*names, label, str(found.num_inliers), f"{found.agreement:.3f}", str(found.is_mirrored).lower())

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(listed), PAIRS_AT_ONCE):
            yield from pool.map(judge, listed[start : start + PAIRS_AT_ONCE])
