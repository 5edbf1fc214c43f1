"""`neardup dedup`: images in, clusters, a summary and a report out."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import pipeline_options
from cli.progress import BarProgress, LineProgress, wants_bar

if TYPE_CHECKING:
    from batch_jobs.pipeline import Run
    from batch_jobs.settings import RunSettings
    from batch_jobs.workspace import Workspace
    from cli.results import Results

HELP = """\
Find the near-duplicates in SOURCE.

SOURCE is a folder, a quoted glob, a .parquet table with image_id and content or uri, or an .npz of embeddings.

\b
  neardup dedup photos/
  neardup dedup 'photos/2026-*/*.jpg' --report duplicates.html
  neardup dedup images.parquet --workspace /data/neardup --json

Everything is kept in the workspace; finished steps are reused, and a run that was stopped goes on where it was.
"""


@click.command(name="dedup", help=HELP)
@pipeline_options
@click.option(
    "--min-score", type=click.FloatRange(-1.0, 1.0), help="Lowest score of a match. [default: the embedder's own]"
)
@click.option(
    "--min-shared-terms", type=click.IntRange(1), help="LSH terms a pair must share. [default: the plan's, or 1]"
)
@click.option(
    "--plan",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="How to hash: a file that `neardup tune` wrote.",
)
@click.option(
    "--report", type=click.Path(path_type=Path), help="Where to write the HTML report. [default: in the workspace]"
)
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object instead of the summary.")
@click.option("--verbose", "-v", is_flag=True, help="A line on standard error for each stage.")
def command(
    *,
    min_score: float | None,
    min_shared_terms: int | None,
    plan: Path | None,
    report: Path | None,
    json_output: bool,
    verbose: bool,
    **options: Any,
) -> None:
    from cli.options import run_settings

    settings = run_settings(min_score=min_score, min_shared_terms=min_shared_terms, plan=plan, **options)
    if report is not None and not report.parent.is_dir():
        raise click.UsageError(f"--report {report}: the folder {report.parent} does not exist")
    run_dedup(settings, report=report, json_output=json_output, verbose=verbose)


def run_dedup(settings: RunSettings, *, report: Path | None, json_output: bool, verbose: bool) -> Results:
    """Run the pipeline with its progress, write what it hands to people, and print the summary."""
    from batch_jobs.pipeline import SilentListener, run_pipeline
    from cli.results import describe_results, finish_run

    bar = BarProgress() if wants_bar(json_output=json_output, verbose=verbose) else None
    listener = bar or (LineProgress() if verbose else SilentListener())
    results: list[Results] = []

    def finish(run: Run, workspace: Workspace) -> None:
        results.append(finish_run(run, workspace, report=report, listener=listener))

    with bar or nullcontext():
        run_pipeline(settings, listener=listener, and_then=finish)
    click.echo(json.dumps(results[0].as_json()) if json_output else describe_results(results[0]))
    return results[0]
