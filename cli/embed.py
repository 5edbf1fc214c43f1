"""`neardup embed`: embeddings of a folder or table as one .npz file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import pipeline_options, verbose_option
from cli.progress import progress

if TYPE_CHECKING:
    from batch_jobs.pipeline import Run

HELP = """\
Write the embeddings of SOURCE to an .npz file.

The file holds image_ids (n,), embeddings (n, dim) float32 unit rows, and digest, the embedder's. Rejected images are
listed on standard error and left out.

\b
  neardup embed photos/ --output photos.npz
"""


@click.command(name="embed", help=HELP)
@pipeline_options
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The .npz file to write."
)
@verbose_option
def command(*, output: Path, verbose: bool, **options: Any) -> None:
    from batch_jobs import embed_images
    from batch_jobs.pipeline import run_pipeline
    from cli.options import run_settings

    if output.suffix != ".npz":
        raise click.UsageError(f"--output {output}: the name must end in .npz")
    if not output.parent.is_dir():
        raise click.UsageError(f"--output {output}: the folder {output.parent} does not exist")
    with progress(verbose=verbose) as listener:
        run = run_pipeline(run_settings(**options), listener=listener, until=embed_images.STEP)
    num_embeddings = _write_npz(run, output)
    _list_rejects(run)
    click.echo(f"{num_embeddings:,} embeddings of {run.model.dim} dimensions in {output}")


def _write_npz(run: Run, output: Path) -> int:
    """One row per catalogued image that has an embedding, by image id; copies share their original's row."""
    import numpy as np
    import pyarrow.parquet as pq

    from batch_jobs import catalogue, embed_images
    from batch_jobs.make_terms import embedding_rows
    from batch_jobs.workspace import published_file

    embedded = pq.read_table(run.steps[embed_images.STEP].table("embeddings")).sort_by("doc")
    rows = embedding_rows(embedded["embedding"].combine_chunks(), dim=run.model.dim)
    images = pq.read_table(run.steps[catalogue.STEP].table("catalogue"), columns=["image_id", "original_doc", "doc"])
    images = images.sort_by("doc")
    docs, originals = embedded["doc"].to_numpy(), images["original_doc"].to_numpy()
    has_embedding = np.isin(originals, docs)
    image_ids = np.array(images["image_id"].to_pylist(), dtype=np.str_)[has_embedding]
    embeddings = rows[np.searchsorted(docs, originals[has_embedding])]
    with published_file(output) as file:
        np.savez(file, image_ids=image_ids, embeddings=embeddings, digest=np.array(run.model.digest))
    return len(image_ids)


def _list_rejects(run: Run) -> None:
    from batch_jobs.exports import read_rejects

    for row in read_rejects(run).to_pylist():
        click.echo(f"rejected {row['image_id']}: {row['reason']} ({row['detail']})", err=True)
