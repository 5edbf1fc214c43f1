"""`neardup stream`: new images of a folder, a table or Kafka registered at a server as they come."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from cli.connection import connection_options, open_client
from cli.options import MEBIBYTE, dtype_option

HELP = """\
Register the new images of SOURCE at a server, unless a near-duplicate is known, and count them by hour.

SOURCE is a folder of images, a .parquet folder with image_id and content, or kafka://HOST:PORT/TOPIC, whose messages
have the image id as key and the image as value.

\b
  neardup stream uploads/ --server host:50051 --checkpoint /data/stream
  neardup stream uploads/ --server host:50051 --checkpoint /data/stream --once

What became of each image is in CHECKPOINT/outcomes, the counts by hour in CHECKPOINT/hourly. Stop it at any time: the
same command goes on where it was, and no image is registered or counted twice.
"""


@click.command(name="stream", help=HELP)
@click.argument("source")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of what was done."
)
@click.option("--once", is_flag=True, help="Stop when all that is there now is done.")
@click.option(
    "--interval",
    type=click.FloatRange(0.0),
    default=10.0,
    show_default=True,
    help="Seconds from the start of one batch to that of the next; 0 means at once.",
)
@click.option("--embedder", default="vgg_copy", show_default=True, help="That of the server's generation.")
@dtype_option
@click.option("--min-score", type=click.FloatRange(-1.0, 1.0), help="Of a match. [default: the generation's own]")
@click.option("--lateness", default="1 hour", show_default=True, help="Later images are not counted by hour.")
@click.option(
    "--repeats-within",
    default="1 day",
    show_default=True,
    help="Drop an image id of a table or topic that comes again.",
)
@click.option(
    "--files-per-batch", type=click.IntRange(1), default=1024, show_default=True, help="Files or messages, at most."
)
@click.option("--max-mib", type=click.IntRange(1), default=32, show_default=True, help="Largest image file, in MiB.")
@click.option(
    "--max-megapixels", type=click.IntRange(1), default=50, show_default=True, help="Largest image, in million pixels."
)
@click.option("--master", help="Spark master. [default: local[*]]")
@connection_options
def command(
    *,
    source: str,
    checkpoint: Path,
    once: bool,
    interval: float,
    embedder: str,
    dtype: str | None,
    min_score: float | None,
    lateness: str,
    repeats_within: str,
    files_per_batch: int,
    max_mib: int,
    max_megapixels: int,
    master: str | None,
    json_output: bool,
    **connection: Any,
) -> None:
    from batch_jobs.stream_uploads import Outcome, StreamSettings, stream_uploads
    from embed.decoding import ImageLimits

    with open_client(**connection) as client:
        reached = client.connection
    settings = StreamSettings(
        source=source,
        checkpoint=checkpoint.resolve(),
        connection=reached,
        embedder=embedder,
        dtype=dtype,
        min_score=min_score,
        limits=ImageLimits(max_bytes=max_mib * MEBIBYTE, max_pixels=max_megapixels * 1_000_000),
        lateness=lateness,
        repeats_within=repeats_within,
        files_per_batch=files_per_batch,
        interval_s=None if once else interval,
        master=master,
    )
    total: Counter[str] = Counter()

    def tell(counts: Mapping[str, int]) -> None:
        total.update(counts)
        shown = {outcome.value: counts.get(outcome.value, 0) for outcome in Outcome}
        words = ", ".join(f"{number} {name}" for name, number in shown.items())
        click.echo(json.dumps(shown) if json_output else words)

    stream_uploads(settings, on_batch=tell)
    if not json_output:
        click.echo(f"done: {total.total()} images; what became of each is in {checkpoint / 'outcomes'}")
