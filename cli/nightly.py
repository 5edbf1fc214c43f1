"""`neardup nightly`: what is new in a source joins what is known, what is gone leaves it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import matching_options, pipeline_options, verbose_option
from cli.progress import progress

if TYPE_CHECKING:
    from batch_jobs.nightly import NightOptions, NightResults, Plan
    from batch_jobs.settings import RunSettings
    from batch_jobs.workspace import Workspace

HELP = """\
Bring a workspace up to date with SOURCE: only what has changed since the night before costs anything.

SOURCE is given whole each night: a folder, a quoted glob, a .parquet table or an .npz of embeddings. Images that it
does not have any more are removed, images with other bytes under the same id are removed and new. Clusters keep their
canonicals.

\b
  neardup nightly photos/ --dry-run              what would happen
  neardup nightly photos/ --promote              the night, its index, and lookups answer from it
  neardup nightly today.parquet --keep-missing   SOURCE has the new images alone
  neardup nightly photos/ --only a.jpg --only @broken.txt
  neardup nightly photos/ --full                 cut all clusters from scratch
  neardup nightly photos/ --thorough             find crops, gray and turned copies too, every night

A night that was stopped goes on where it was; the night before counts until all of it is written.
"""


def _image_ids(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Ids as they are, and those in the lines of each @FILE."""
    image_ids: list[str] = []
    for value in given:
        if not value.startswith("@"):
            image_ids.append(value)
            continue
        try:
            lines = Path(value[1:]).read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise click.BadParameter(
                f"{value[1:]} cannot be read ({error}); give a text file with an id a line"
            ) from error
        image_ids.extend(line for line in lines if line)
    return tuple(dict.fromkeys(image_ids))


@click.command(name="nightly", help=HELP)
@pipeline_options
@matching_options
@click.option("--full", "is_full", is_flag=True, help="Cut all clusters from scratch; matches are kept.")
@click.option(
    "--only",
    multiple=True,
    metavar="ID",
    callback=_image_ids,
    help="Redo this image and its exact copies, and nothing else; @FILE for an id a line. May be repeated.",
)
@click.option("--keep-missing", "keeps_missing", is_flag=True, help="SOURCE is an addition: remove nothing.")
@click.option("--index", "is_indexed", is_flag=True, help="Build an index generation of the night.")
@click.option("--promote", "is_promoted", is_flag=True, help="Build an index generation and make it the current one.")
@click.option(
    "--export-to",
    metavar="URL",
    help="Build an index generation and load it into this Redis, too; with --promote it is made current there.",
)
@click.option("--without-views", is_flag=True, help="Index whole images alone, also of a --thorough night.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Say what would happen, and write nothing.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object instead of the summary.")
@verbose_option
def command(
    *,
    is_full: bool,
    only: tuple[str, ...],
    keeps_missing: bool,
    is_indexed: bool,
    is_promoted: bool,
    export_to: str | None,
    without_views: bool,
    is_dry: bool,
    json_output: bool,
    verbose: bool,
    **options: Any,
) -> None:
    from batch_jobs.nightly import NightOptions, index_night, plan_night
    from cli.options import run_settings

    settings = run_settings(**options)
    night_options = NightOptions(is_full=is_full, only=only, keeps_missing=keeps_missing)
    if is_dry:
        planned = plan_night(settings, night_options)
        click.echo(json.dumps(planned.as_json()) if json_output else describe_plan(planned))
        return
    generation: dict[str, str] = {}

    def index(_: NightResults, workspace: Workspace) -> None:
        if is_indexed or is_promoted or export_to:
            generation["generation_id"] = index_night(
                workspace, promotes=is_promoted, store=export_to, with_views=not without_views
            )

    results = _run_night(settings, night_options, json_output=json_output, verbose=verbose, and_then=index)
    if json_output:
        click.echo(json.dumps({**results.as_json(), **generation}))
        return
    click.echo(describe_night(results))
    if generation:
        state = "current" if is_promoted else "built; `neardup index promote` makes it current"
        click.echo(f"{'index':<18}{generation['generation_id']}  {state}")


def resume_night(settings: RunSettings, options: Mapping[str, Any], *, json_output: bool, verbose: bool) -> str:
    """Run a stopped night again with the options of its record; returns the run of the night that counts then."""
    from batch_jobs.nightly import NightOptions

    night_options = NightOptions(**{**options, "only": tuple(options["only"])})
    results = _run_night(settings, night_options, json_output=json_output, verbose=verbose)
    click.echo(json.dumps(results.as_json()) if json_output else describe_night(results))
    return results.night.run_id


def _run_night(
    settings: RunSettings,
    options: NightOptions,
    *,
    json_output: bool,
    verbose: bool,
    and_then: Callable[[NightResults, Workspace], Any] | None = None,
) -> NightResults:
    from batch_jobs.nightly import run_nightly

    with progress(json_output=json_output, verbose=verbose) as listener:
        return run_nightly(settings, options, listener=listener, and_then=and_then)


def describe_plan(plan: Plan) -> str:
    """What a night would do, for people."""
    rows = [
        ("night before", plan.previous or "none: everything is new"),
        ("known", f"{plan.num_known:,}"),
        ("new", f"{plan.num_new:,}"),
        ("changed", f"{plan.num_touched:,}  at most: files written again, or to be redone"),
        ("removed", f"{plan.num_removed:,}"),
        ("decisions by hand", "new ones to obey" if plan.has_new_decisions else "none since the night before"),
    ]
    return "\n".join(f"{label:<18}{value}" for label, value in rows)


def describe_night(results: NightResults) -> str:
    """What a night has done, for people."""
    from cli.results import human_bytes

    night, counts, figures = results.night, results.night.counts, results.figures
    if not results.is_new:
        return f"nothing has changed since night {night.number} ({night.night_id}); it stays"
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in results.rejects_by_reason.items())
    rows = [
        ("night", f"{night.number}  {night.night_id}"),
        ("images", f"{counts.images:,}"),
        ("new", f"{counts.new:,}"),
        ("changed", f"{counts.changed:,}"),
        ("removed", f"{counts.removed:,}"),
        ("rejected", f"{counts.rejected:,}{f'  ({reasons})' if reasons else ''}"),
        ("new matches", f"{figures.get('num_matches', 0):,}"),
        *([("matches by a view", f"{figures['num_view_matches']:,}")] if figures.get("num_view_matches") else []),
        ("clusters", f"{figures['num_clusters']:,}"),
        ("duplicates found", f"{figures['num_duplicates']:,}"),
        ("could be freed", human_bytes(figures["reclaimable_bytes"])),
        ("seconds", "   ".join(f"{stage} {seconds:.1f}" for stage, seconds in results.seconds.items())),
        ("changed clusters" if figures["is_update"] else "clusters", results.outputs["clusters_csv"]),
    ]
    return "\n".join(f"{label:<18}{value}" for label, value in rows)
