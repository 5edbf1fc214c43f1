"""`python -m benchmarks demo`: the main job on real photographs with known truth, from installed packages alone.

Behind `make demo`: writes the photos, runs `neardup dedup` as a user would, judges the clusters.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from benchmarks.demo_photos import PhotosMissingError, write_demo
from benchmarks.neardup_run import run_neardup
from benchmarks.results import write_json
from benchmarks.truth import Truth, read_clusters, score_clusters, wrong_pairs
from cli.tables import show_table

MIN_PRECISION = 1.0
MIN_RECALL = 0.85
NUM_SHOWN = 10


@click.command()
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default="demo", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(*, folder: Path, seed: int, json_path: Path | None) -> None:
    """Edit photographs that come with installed packages, deduplicate them, and compare with the truth.

    Ends with exit code 1 when pair precision is below 1.00 or recall below 0.85.
    """
    try:
        truth = write_demo(folder, seed)
    except (PhotosMissingError, FileExistsError) as error:
        raise click.ClickException(str(error)) from error
    num_photos = len(set(truth.original_of.values()))
    click.echo(f"{len(truth.original_of)} images made from {num_photos} photographs in {folder / 'photos'}")
    workspace, report = folder / "workspace", folder / "report.html"
    if workspace.exists():
        shutil.rmtree(workspace)
    run = run_neardup(["dedup", str(folder / "photos"), "--workspace", str(workspace), "--report", str(report)])
    clusters = read_clusters(run.output("clusters_csv"))
    metrics = score_clusters(clusters, truth)
    show_table(
        "Against the known truth",
        ["", ""],
        [
            ["images", str(run.summary["images"])],
            ["photographs", str(num_photos)],
            ["clusters", str(len(clusters))],
            ["pair precision", f"{metrics.precision:.3f}"],
            ["pair recall", f"{metrics.recall:.3f}"],
            ["seconds", f"{run.wall_s:.0f}"],
        ],
    )
    _list(
        "in one cluster with another photograph", [f"{left} + {right}" for left, right in wrong_pairs(clusters, truth)]
    )
    _list("not in their original's cluster", left_alone(clusters, truth))
    click.echo(f"clusters: {run.output('clusters_csv')}\nreport:   {report}")
    figures = {
        "benchmark": "demo",
        "seed": seed,
        "images": len(truth.original_of),
        "clusters": len(clusters),
        "precision": metrics.precision,
        "recall": metrics.recall,
        "wall_s": run.wall_s,
    }
    write_json(json_path, figures)
    if metrics.precision < MIN_PRECISION or metrics.recall < MIN_RECALL:
        click.echo(f"FAILED: at least precision {MIN_PRECISION:.2f} and recall {MIN_RECALL:.2f} are expected", err=True)
        sys.exit(1)


def left_alone(clusters: list[list[str]], truth: Truth) -> list[str]:
    """The edited images that are not in their original's cluster, in order of name."""
    cluster_of = {image: number for number, cluster in enumerate(clusters) for image in cluster}
    return sorted(
        image
        for image, original in truth.original_of.items()
        if image != original and (image not in cluster_of or cluster_of[image] != cluster_of.get(original))
    )


def _list(what: str, items: list[str]) -> None:
    if not items:
        return
    shown = ", ".join(items[:NUM_SHOWN]) + (f" and {len(items) - NUM_SHOWN} more" if len(items) > NUM_SHOWN else "")
    click.echo(f"{len(items)} {what}: {shown}")
