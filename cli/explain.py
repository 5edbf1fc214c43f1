"""`neardup explain`: why an image is in its cluster, why two images are together or not, in a run or by geometry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import DEFAULT_WORKSPACE

if TYPE_CHECKING:
    from batch_jobs.explanation import ImageExplanation, ImageFacts, PairExplanation

HELP = """\
Say why IMAGE is in its cluster, or why IMAGE and OTHER are together or not: every intermediate result of a run.

IMAGE and OTHER are image ids of a workspace. Two image files instead are compared by geometry, without any run: by
keypoints that agree on one transform. The verdict is then same, different, or unsure where an image has too little
texture; --similarity asks the embedder as well, --output draws the keypoints that agree.

\b
  neardup explain beach.jpg
  neardup explain beach.jpg copies/beach.jpg --workspace my-workspace/
  neardup explain original.jpg upload.jpg --output overlay.png --similarity
"""


@click.command(name="explain", help=HELP)
@click.argument("image")
@click.argument("other", required=False)
@click.option(
    "--workspace",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Explain image ids of this workspace. [default: {DEFAULT_WORKSPACE}, unless two files are given]",
)
@click.option("--run", help="Explain this run. [default: the newest finished one]")
@click.option("--neighbours", type=click.IntRange(0), default=20, show_default=True, help="How many to show.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object; for image ids.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the overlay to this .png file.")
@click.option("--similarity", is_flag=True, help="Of two files, also the embedder's similarity and threshold.")
@click.option("--embedder", default="vgg_copy", show_default=True, help="Built-in embedder, or an embedder directory.")
def command(
    *,
    image: str,
    other: str | None,
    workspace: Path | None,
    run: str | None,
    neighbours: int,
    json_output: bool,
    output: Path | None,
    similarity: bool,
    embedder: str,
) -> None:
    are_files = workspace is None and run is None and other is not None and Path(image).is_file()
    if are_files and other is not None and Path(other).is_file():
        if json_output:
            raise click.UsageError("--json is for image ids; give --workspace")
        _by_geometry(Path(image), Path(other), output=output, similarity=similarity, embedder=embedder)
        return
    if output is not None or similarity:
        raise click.UsageError("--output and --similarity compare two image files; give two that exist")
    _by_run(
        image,
        other,
        workspace=workspace or DEFAULT_WORKSPACE,
        run=run,
        num_neighbours=neighbours,
        json_output=json_output,
    )


def _by_run(
    image: str, other: str | None, *, workspace: Path, run: str | None, num_neighbours: int, json_output: bool
) -> None:
    from dataclasses import asdict

    from batch_jobs.decisions import read_decisions
    from batch_jobs.explanation import explain_image, explain_pair
    from batch_jobs.run_records import find_record
    from batch_jobs.run_tables import RunTables
    from batch_jobs.workspace import required_folder

    folder = required_folder(workspace)
    tables, decisions = RunTables(folder, find_record(folder, run)), read_decisions(folder)
    if other is None:
        alone = explain_image(tables, image, decisions, num_neighbours=num_neighbours)
        click.echo(json.dumps(asdict(alone))) if json_output else _show_image(alone)
    else:
        pair = explain_pair(tables, image, other, decisions)
        click.echo(json.dumps(asdict(pair))) if json_output else _show_pair(pair)
    if not json_output and decisions.digest != tables.record.decisions_digest:
        click.echo("note              decisions by hand have changed since this run; the next one obeys them")


def _show_image(explained: ImageExplanation) -> None:
    from cli.tables import show_table

    _row("run", explained.run_id)
    _row("verdict", explained.verdict)
    _show_facts(explained.image)
    if explained.bucket_sizes:
        largest = max(explained.bucket_sizes)
        oversized = sum(size > explained.max_bucket_size for size in explained.bucket_sizes)
        alone = sum(size == 1 for size in explained.bucket_sizes)
        _row(
            "buckets",
            f"{len(explained.bucket_sizes)}, {alone} of them with no other image, the largest with {largest:,}"
            + (f", {oversized} oversized" if oversized else ""),
        )
        _row("in its buckets", f"{explained.num_neighbours:,} images")
        _row("candidates", f"{explained.num_candidates:,}")
        _row("matches", f"{explained.num_matches:,}, from score {explained.min_score:g} on")
    for decision in explained.decisions:
        _row("decision", decision.describe())
    if explained.neighbours:
        show_table(
            f"its neighbours, {len(explained.neighbours)} of {explained.num_neighbours:,}",
            ["image", "shared terms", "sketch distance", "similarity", "score", "outcome"],
            [
                [
                    one.image_id,
                    f"{one.shared_terms}",
                    f"{one.sketch_distance}",
                    _figure(one.similarity),
                    _figure(one.score),
                    one.outcome,
                ]
                for one in explained.neighbours
            ],
        )


def _show_pair(explained: PairExplanation) -> None:
    _row("run", explained.run_id)
    _row("verdict", explained.verdict)
    for facts in (explained.left, explained.right):
        _show_facts(facts)
    if explained.shared_terms is not None:
        _row("shared terms", f"{explained.shared_terms}, {explained.min_shared_terms} needed")
        _row("sketch distance", f"{explained.sketch_distance}, {explained.max_sketch_distance} allowed")
        _row("similarity", _figure(explained.similarity))
        _row("score", f"{_figure(explained.score)}, a match from {explained.min_score:g} on")
    if explained.view_similarity is not None:
        _row("by a view", f"similarity {_figure(explained.view_similarity)} of one image with a view of the other")
    _row("match", "yes" if explained.is_match else "no")
    _row("one cluster", "yes" if explained.in_one_cluster else "no")
    for decision in explained.decisions:
        _row("decision", decision.describe())


def _show_facts(facts: ImageFacts) -> None:
    row: dict[str, Any] = facts.catalogue or {}
    size = f", {row['width']} x {row['height']} pixels, {row['size_bytes']:,} bytes" if row.get("width") else ""
    doc = f", doc {row['doc']}" if row else ""
    _row("image", f"{facts.image_id}{doc}{size}")
    if facts.copies:
        shown = ", ".join(facts.copies[:3]) + (f", and {len(facts.copies) - 3} more" if len(facts.copies) > 3 else "")
        _row("byte-identical", shown)
    if row:
        _row("embedding", "yes" if facts.is_embedded else "no")


def _row(label: str, value: str) -> None:
    click.echo(f"{label:<18}{value}")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _by_geometry(left: Path, right: Path, *, output: Path | None, similarity: bool, embedder: str) -> None:
    from embed.evaluation.planted import open_photo
    from embed.geometry import describe_transform, draw_inliers, find_features, verify_geometry

    if output is not None and (output.suffix != ".png" or not output.parent.is_dir()):
        raise click.UsageError(f"--output {output}: give a name that ends in .png, in a folder that exists")
    images = [open_photo(path) for path in (left, right)]
    features = [find_features(image) for image in images]
    found = verify_geometry(features[0], features[1])
    sizes = [(image.shape[1], image.shape[0]) for image in images]
    _row("verdict", found.verdict.value)
    _row("keypoints", f"{len(features[0].points):,} and {len(features[1].points):,}; {found.num_inliers:,} agree")
    _row("overlap", f"{found.agreement:.0%} of its textured blocks correlate")
    _row("transform", describe_transform(found, left_size=sizes[0], right_size=sizes[1]))
    if similarity:
        import numpy as np

        from embed.embedder import load_embedder
        from embed.preprocessing import to_square

        loaded = load_embedder(embedder, batch_size=2)
        rows = loaded.embed(np.stack([to_square(image, loaded.spec.size) for image in images]))
        relation = "a match" if float(rows[0] @ rows[1]) >= loaded.spec.min_score else "no match"
        _row("similarity", f"{float(rows[0] @ rows[1]):.4f}, {relation} from {loaded.spec.min_score:g} on")
    if output is not None:
        from PIL import Image

        from batch_jobs.workspace import published_file

        with published_file(output) as file:
            Image.fromarray(draw_inliers(images[0], images[1], found)).save(file, "PNG")
        _row("overlay", str(output))
