"""`neardup nights`: which nights a workspace has, and back to the one before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import workspace_option

if TYPE_CHECKING:
    from batch_jobs.nights import Night

HELP = """\
Look at the nights of a workspace, and undo the last one.

\b
  neardup nights list
  neardup nights undo
  neardup index rollback                   then lookups answer from the index before

An undone night stays on disk until `neardup runs gc`; the next one goes on from the night before it.
"""


@click.group(name="nights", help=HELP)
def command() -> None:
    """The group of all commands on nights."""


def _shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    json_output = click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
    return workspace_option(json_output(function))


@command.command(name="list")
@_shared_options
def list_command(*, workspace: Path, json_output: bool) -> None:
    """All nights, oldest first; a star marks the one that counts."""
    from batch_jobs.nights import current_night, list_nights
    from batch_jobs.workspace import required_folder

    folder = required_folder(workspace)
    current = current_night(folder)
    nights = list_nights(folder)
    if json_output:
        click.echo(json.dumps({"nights": [_listed(night, is_current=night == current) for night in nights]}))
        return
    for night in nights:
        counts = night.counts
        click.echo(
            f"{'*' if night == current else ' '} {night.number:>4}  {night.night_id}  {counts.images:,} images  "
            f"new {counts.new:,}  changed {counts.changed:,}  removed {counts.removed:,}  run {night.run_id}"
        )
    if not nights:
        click.echo("no nights; `neardup nightly` makes one")


@command.command()
@_shared_options
@click.option("--dry-run", is_flag=True, help="Say what would count, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def undo(*, workspace: Path, json_output: bool, dry_run: bool, yes: bool) -> None:
    """Make the night before the current one count again."""
    from batch_jobs.nights import night_before, undo_night
    from batch_jobs.workspace import Workspace, required_folder

    folder = required_folder(workspace)
    night = night_before(folder)
    if not dry_run:
        if not (yes or json_output):
            click.confirm(f"Go back to night {night.number} ({night.night_id})?", abort=True)
        with Workspace(folder, what="an undo of a night") as opened:
            night = undo_night(opened)
    text = f"night {night.number} ({night.night_id}) {'would count' if dry_run else 'counts'} again"
    click.echo(json.dumps({**_listed(night, is_current=not dry_run), "dry_run": dry_run}) if json_output else text)


def _listed(night: Night, *, is_current: bool) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "night_id": night.night_id,
        "number": night.number,
        "previous": night.previous,
        "run_id": night.run_id,
        "is_current": is_current,
        "images": night.counts.images,
        **asdict(night.counts),
    }
