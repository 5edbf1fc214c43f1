"""`neardup dedup`: images in, clusters, a summary and a report out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import matching_options, pipeline_options, verbose_option
from cli.progress import progress

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
  neardup dedup photos/ --thorough

Everything is kept in the workspace; finished steps are reused, and a run that was stopped goes on where it was.
"""


@click.command(name="dedup", help=HELP)
@pipeline_options
@matching_options
@click.option(
    "--report", type=click.Path(path_type=Path), help="Where to write the HTML report. [default: in the workspace]"
)
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object instead of the summary.")
@verbose_option
def command(
    *,
    report: Path | None,
    json_output: bool,
    verbose: bool,
    **options: Any,
) -> None:
    from cli.options import run_settings

    settings = run_settings(**options)
    if report is not None and not report.parent.is_dir():
        raise click.UsageError(f"--report {report}: the folder {report.parent} does not exist")
    run_dedup(settings, report=report, json_output=json_output, verbose=verbose)


def run_dedup(settings: RunSettings, *, report: Path | None, json_output: bool, verbose: bool) -> Results:
    """Run the pipeline with its progress, write what it hands to people, and print the summary."""
    from batch_jobs.pipeline import run_pipeline
    from cli.results import describe_results, finish_run

    results: list[Results] = []
    with progress(json_output=json_output, verbose=verbose) as listener:

        def finish(run: Run, workspace: Workspace) -> None:
            results.append(finish_run(run, workspace, report=report, listener=listener))

        run_pipeline(settings, listener=listener, and_then=finish)
    click.echo(json.dumps(results[0].as_json()) if json_output else describe_results(results[0]))
    return results[0]
