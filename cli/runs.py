"""`neardup runs`: look at runs, compare them, finish one that was stopped, remove what nobody needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import verbose_option, workspace_option

if TYPE_CHECKING:
    from batch_jobs.run_records import DamagedRecord, RunRecord
    from cli.run_sections import Section

HELP = """\
Look at the runs of a workspace, compare them, finish one that was stopped, remove what nobody needs.

\b
  neardup runs list
  neardup runs show                        the newest; RUN, its first digits or the number of a night for another
  neardup runs show --report run.html
  neardup runs diff                        the newest against the one before
  neardup runs diff 3 5                    night 3 against night 5
  neardup runs resume                      the newest that was stopped
  neardup index build --run RUN --promote  go back to an earlier run
  neardup runs restore                     the night before (or RUN) counts again; the next one builds on it
  neardup runs gc --keep 7 --dry-run

A finished run never changes.
"""


@click.group(name="runs", help=HELP)
def command() -> None:
    """The group of all commands on runs."""


def _shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    json_output = click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
    return workspace_option(json_output(function))


@command.command(name="list")
@_shared_options
def list_command(*, workspace: Path, json_output: bool) -> None:
    """All runs, newest first: when, how long, in which state, what they found."""
    from batch_jobs.run_records import list_records, undone_runs
    from batch_jobs.workspace import required_folder
    from cli.run_sections import state_of
    from cli.tables import show_table

    folder = required_folder(workspace)
    records, damaged = list_records(folder)
    undone = undone_runs(folder, records)
    states = [state_of(folder, one, undone) for one in records]
    if json_output:
        runs = [_listed(record, state) for record, state in zip(records, states, strict=True)]
        click.echo(json.dumps({"runs": runs, "damaged": [_problem(one) for one in damaged]}))
        return
    if records:
        show_table(
            "",
            ["run", "state", "started", "seconds", "images", "clusters", "duplicates", "source"],
            [_line(record, state) for record, state in zip(records, states, strict=True)],
            wrapped=("source",),
        )
    for one in damaged:
        click.echo(f"{one.run_id}  {one.problem}")
    if not records and not damaged:
        click.echo("no runs; `neardup dedup` or `neardup nightly` makes one")


@command.command()
@click.argument("run", required=False)
@_shared_options
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the same as one HTML file.")
def show(*, run: str | None, workspace: Path, json_output: bool, report: Path | None) -> None:
    """All about RUN, by default the newest finished one: counts, stages, skew, rejects, changes, drift, settings."""
    from batch_jobs.run_records import find_record
    from batch_jobs.workspace import required_folder
    from cli.run_sections import sections, summarize

    folder = required_folder(workspace)
    summary = summarize(folder, find_record(folder, run))
    if report is not None:
        from cli.report.run import write_run_report

        write_run_report(summary, sections(summary), report)
    if json_output:
        click.echo(json.dumps(summary.to_json()))
    elif report is not None:
        click.echo(f"report  {report}")
    else:
        _show(sections(summary))


@command.command()
@click.argument("before", required=False)
@click.argument("after", required=False)
@_shared_options
@click.option("--examples", type=click.IntRange(0, 1000), default=10, show_default=True, help="How many of each.")
def diff(*, before: str | None, after: str | None, workspace: Path, json_output: bool, examples: int) -> None:
    """What AFTER (the newest) has that BEFORE (the run before it) had not, and the reverse."""
    from batch_jobs.run_diff import diff_runs
    from batch_jobs.run_records import find_record
    from batch_jobs.workspace import required_folder
    from cli.run_sections import describe_diff

    folder = required_folder(workspace)
    new = find_record(folder, after)
    if before is None and new.parent is None:
        raise click.UsageError(f"run {new.run_id} is the first; name a run to compare it with, see `neardup runs list`")
    found = diff_runs(folder, find_record(folder, before or new.parent), new, num_examples=examples)
    if json_output:
        click.echo(json.dumps(found.to_json()))
        return
    click.echo(f"from {found.before} to {found.after}")
    _show(describe_diff(found))


@command.command()
@click.argument("run", required=False)
@_shared_options
@verbose_option
def resume(*, run: str | None, workspace: Path, json_output: bool, verbose: bool) -> None:
    """Finish RUN, by default the newest that was stopped, with the settings it was started with."""
    from dataclasses import replace

    from batch_jobs.run_records import NIGHTLY, find_record, list_records, remove_record, settings_of
    from batch_jobs.sources import open_source
    from batch_jobs.workspace import Workspace, required_folder
    from cli.dedup import run_dedup
    from cli.nightly import resume_night

    folder = required_folder(workspace)
    stopped = [one for one in list_records(folder)[0] if not one.is_finished]
    if run is None and not stopped:
        raise click.UsageError("no run was stopped; `neardup runs list` shows them all")
    record = stopped[0] if run is None else find_record(folder, run)
    if record.is_finished:
        raise click.UsageError(f"run {record.run_id} is finished; there is nothing to resume")
    settings = replace(settings_of(record), workspace=folder)
    if open_source(settings.source, uri_root=settings.uri_root).fingerprint != record.fingerprint:
        raise click.UsageError(
            f"{settings.source} has changed since run {record.run_id} was started; "
            f"`neardup {record.command}` starts a new run and reuses what it can"
        )
    if record.command == NIGHTLY:
        run_id = resume_night(settings, record.options, json_output=json_output, verbose=verbose)
    else:
        run_id = run_dedup(settings, report=None, json_output=json_output, verbose=verbose).run_id
    if run_id != record.run_id:
        with Workspace(folder, what="a resume") as opened:
            remove_record(opened, record.run_id)
        click.echo(
            f"decisions, the embedder or the night before have changed since: run {record.run_id} went on as {run_id}",
            err=True,
        )


@command.command()
@click.argument("run", required=False)
@_shared_options
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def restore(*, run: str | None, workspace: Path, json_output: bool, dry_run: bool, yes: bool) -> None:
    """Make the night RUN, by default the one before, count: later ones are undone, and the next one builds on it.

    Lookups answer from the index that is current: `neardup index rollback` or `index build --promote` moves that.
    """
    from batch_jobs.nights import current_night, night_of_run, read_night, require_whole, restore_night
    from batch_jobs.run_diff import diff_runs
    from batch_jobs.run_records import find_record
    from batch_jobs.workspace import Workspace, required_folder
    from cli.run_sections import describe_diff

    if json_output and not (dry_run or yes):
        raise click.UsageError("--json asks nothing; add --dry-run or --yes")
    folder = required_folder(workspace)
    with Workspace(folder, what="going back to a night") as opened:
        current = current_night(folder)
        if current is None:
            raise click.UsageError(
                "this workspace has no nights; `neardup index build --run RUN` serves an earlier run"
            )
        if run is not None:
            night = night_of_run(folder, find_record(folder, run).run_id)
        elif current.previous is not None:
            night = read_night(folder, current.previous)
        else:
            raise click.UsageError("the first night counts; there is none before it")
        if night is None:
            raise click.UsageError(f"run {run} is no night; `neardup index build --run {run}` makes an index of it")
        if night == current:
            raise click.UsageError(f"night {night.number} (run {night.run_id}) counts already")
        require_whole(folder, night)
        found = diff_runs(folder, find_record(folder, current.run_id), find_record(folder, night.run_id))
        if not json_output:
            click.echo(f"from night {current.number} ({current.run_id}) to night {night.number} ({night.run_id})")
            _show(describe_diff(found))
        if not dry_run:
            if not yes:
                click.confirm(f"Make night {night.number} the one that counts?", abort=True)
            restore_night(opened, night)
    if json_output:
        click.echo(json.dumps({"run_id": night.run_id, "number": night.number, "dry_run": dry_run, **found.counts()}))
    elif not dry_run:
        click.echo(f"night {night.number} counts; `neardup index build --promote` makes lookups answer from it")


@command.command()
@_shared_options
@click.option(
    "--keep", type=click.IntRange(1), default=7, show_default=True, help="Finished runs to keep with their tables."
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def gc(*, workspace: Path, json_output: bool, keep: int, dry_run: bool, yes: bool) -> None:
    """Remove the tables of older runs. Those behind a generation of the index and behind stopped runs stay."""
    from dataclasses import asdict

    from batch_jobs.run_gc import collect_garbage, find_garbage
    from batch_jobs.workspace import Workspace, required_folder
    from cli.results import human_bytes

    if json_output and not (dry_run or yes):
        raise click.UsageError("--json asks nothing; add --dry-run or --yes")
    with Workspace(required_folder(workspace), what="a garbage collection") as opened:
        garbage = find_garbage(opened, keep=keep)
        num_runs = len(garbage.runs) + len(garbage.trimmed_runs)
        what = f"{len(garbage.steps)} steps of {num_runs} runs, {human_bytes(garbage.size_bytes)}"
        is_empty = not num_runs and not garbage.steps
        if not json_output:
            for name in (*garbage.runs, *garbage.trimmed_runs, *garbage.steps):
                click.echo(name)
            click.echo("nothing to remove" if is_empty else f"{'would remove' if dry_run else 'to remove'}: {what}")
        if not dry_run and not is_empty:
            if not yes:
                click.confirm("Remove them? This cannot be undone.", abort=True)
            collect_garbage(opened, garbage)
            if not json_output:
                click.echo("removed")
    if json_output:
        click.echo(json.dumps({**asdict(garbage), "dry_run": dry_run}))


def _show(sections: Iterable[Section]) -> None:
    from cli.tables import show_table

    for section in sections:
        click.echo(section.title)
        show_table("", section.columns, section.rows, wrapped=section.columns[1:])


def _listed(record: RunRecord, state: str) -> dict[str, Any]:
    return {
        "run_id": record.run_id,
        "state": state,
        "source": record.source,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "last_step": record.steps[-1].step if record.steps else None,
        "parent": record.parent,
        "night": record.results.get("number"),
        "results": record.results,
    }


def _worded(record: RunRecord, state: str) -> str:
    """The state, that of a finished night with its number."""
    number = record.results.get("number")
    if number is None:
        return state
    return f"night {number}" if state == "finished" else f"night {number}, {state}"


def _problem(one: DamagedRecord) -> dict[str, str]:
    return {"run_id": one.run_id, "problem": one.problem}


def _line(record: RunRecord, state: str) -> tuple[str, ...]:
    counts = (f"{record.results[name]:,}" if record.results else "" for name in ("images", "clusters", "duplicates"))
    return (
        record.run_id,
        _worded(record, state),
        record.started_at[:19].replace("T", " "),
        f"{sum(record.seconds.values()):,.1f}" if record.seconds else "",
        *counts,
        record.source,
    )
