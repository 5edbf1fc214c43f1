"""`neardup quantize`: give an embedder an int8 network."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import tracking_uri_option

HELP = """\
Write a copy of an embedder with an int8 network, which embeds several times as many images a second on CPUs.

The photos below PHOTOS, 512 of them, decide the range of each layer. Embeddings move by a cosine of some
0.0003; what is compared should be embedded alike, so build indexes anew and calibrate.

\b
  neardup quantize photos/ --embedder my-embedder/ --output my-faster-embedder/
  neardup calibrate photos/ --embedder my-faster-embedder/ --output my-calibrated-embedder/
"""


@click.command(name="quantize", help=HELP)
@click.argument("photos", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--embedder", required=True, help="Built-in embedder, or an embedder directory.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The embedder directory to write.")
@tracking_uri_option
def command(*, photos: Path, embedder: str, output: Path, tracking_uri: str) -> None:
    from embed.training.quantization import quantize_embedder

    made, similarity = quantize_embedder(photos, embedder=embedder, output=output, tracking_uri=tracking_uri)
    click.echo(f"embedder written to {made.directory}: mean cosine to float32 {similarity:.5f}")
