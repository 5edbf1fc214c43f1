"""`neardup train-embedder`: train the copy-detection network on a folder of photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.exit_codes import ExitCode
from cli.options import tracking_uri_option

HELP = """\
Train the copy-detection network on the photos below PHOTOS and write an embedder directory.

A checkpoint is kept after each epoch in CHECKPOINTS; the same command goes on from the last one.

\b
  neardup train-embedder photos/ --output first/
  neardup train-embedder photos/ --output my-embedder/ --start-from first/ --group-size 16 --frozen-statistics \\
    --objective both
  neardup dedup other-photos/ --embedder my-embedder/ --min-score 0.8
"""


@click.command(name="train-embedder", help=HELP)
@click.argument("photos", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The embedder directory to write.")
@click.option(
    "--checkpoints", type=click.Path(path_type=Path), help="Where checkpoints are kept. [default: OUTPUT.checkpoints]"
)
@click.option("--epochs", type=click.IntRange(1), default=13, show_default=True)
@click.option("--batch-size", type=click.IntRange(8), default=128, show_default=True, help="Photos a step.")
@click.option("--learning-rate", type=click.FloatRange(1e-8, 1.0), default=1.5e-3, show_default=True)
@click.option("--temperature", type=click.FloatRange(1e-3, 10.0), default=0.08, show_default=True)
@click.option(
    "--group-size",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Look-alikes that share a batch; 1: none.",
)
@click.option(
    "--composed",
    "num_composed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Look-alikes to compose of the photos, for batches of them; about an eighth of the photos.",
)
@click.option(
    "--frozen-statistics", is_flag=True, help="Keep batch norm's means and variances; for --group-size above 1."
)
@click.option(
    "--objective",
    type=click.Choice(["contrastive", "both", "threshold"]),
    default="contrastive",
    show_default=True,
    help="Views find each other; or also one threshold for all pairs; or that alone, for small collections.",
)
@click.option("--threshold", type=click.FloatRange(0.0, 1.0), default=0.8, show_default=True, help="Of that objective.")
@click.option("--threshold-width", type=click.FloatRange(1e-3, 1.0), default=0.05, show_default=True)
@click.option(
    "--false-weight",
    type=click.FloatRange(0.0, 100.0),
    default=1.0,
    show_default=True,
    help="Of false pairs above the threshold.",
)
@click.option(
    "--min-area",
    type=click.FloatRange(0.01, 1.0),
    default=0.3,
    show_default=True,
    help="Least share of a photo that a strong view shows.",
)
@click.option(
    "--layout-weight",
    type=click.FloatRange(0.0, 1.0),
    default=0.1,
    show_default=True,
    help="Of the picture's layout in gray beside the network, in the finished embedder; 0 for the network alone.",
)
@click.option("--start-from", type=click.Path(path_type=Path, exists=True), help="Embedder directory to go on from.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@tracking_uri_option
def command(
    *,
    photos: Path,
    output: Path,
    checkpoints: Path | None,
    start_from: Path | None,
    tracking_uri: str,
    objective: str,
    **settings: Any,
) -> None:
    from embed.errors import TrainingInterrupted
    from embed.training.trainer import Objective, TrainingSettings, train_embedder

    kept = checkpoints or output.with_name(f"{output.name}.checkpoints")
    try:
        train_embedder(
            photos,
            kept,
            TrainingSettings(objective=Objective(objective), **settings),
            output=output,
            start_from=start_from,
            tracking_uri=tracking_uri,
        )
    except TrainingInterrupted as stopped:
        click.echo(f"neardup: {stopped}", err=True)
        raise SystemExit(ExitCode.INTERRUPTED) from stopped
    click.echo(f"embedder written to {output}")
