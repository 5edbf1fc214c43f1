"""`neardup train-head`: train the last layer of an embedder alone, for one threshold over all pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.options import tracking_uri_option

HELP = """\
Train the last layer of an embedder on the photos below PHOTOS and write a new embedder directory.

The convolutions stay as they are, so this takes minutes. It is the last step of a training: it asks nothing but that
edited photos and their originals lie above one cosine, and all other pairs below it.

\b
  neardup train-head photos/ --start-from my-embedder/ --output my-better-embedder/
"""


@click.command(name="train-head", help=HELP)
@click.argument("photos", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--start-from",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="The embedder to go on from.",
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The embedder directory to write.")
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True)
@click.option("--batch-size", type=click.IntRange(2), default=2048, show_default=True, help="Photos a step.")
@click.option("--learning-rate", type=click.FloatRange(1e-8, 1.0), default=5e-4, show_default=True)
@click.option(
    "--threshold",
    type=click.FloatRange(0.0, 1.0),
    default=0.87,
    show_default=True,
    help="The cosine that parts true pairs from false ones.",
)
@click.option(
    "--share",
    type=click.FloatRange(0.0, 1.0),
    default=1.0,
    show_default=True,
    help="How far to go from the old layer to the trained one; less is safer for photos unlike PHOTOS.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@tracking_uri_option
def command(*, photos: Path, start_from: Path, output: Path, tracking_uri: str, **settings: Any) -> None:
    from embed.training.head import HeadSettings, train_head

    train_head(photos, HeadSettings(**settings), start_from=start_from, output=output, tracking_uri=tracking_uri)
    click.echo(f"embedder written to {output}")
