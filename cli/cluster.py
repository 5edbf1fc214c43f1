"""`neardup cluster`: look at a cluster, and decide by hand what belongs together."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import workspace_option

if TYPE_CHECKING:
    from batch_jobs.cluster_view import ClusterView
    from batch_jobs.decisions import Decision, Decisions
    from batch_jobs.run_tables import RunTables

HELP = """\
Look at the cluster of an image, and decide by hand what belongs together.

\b
  neardup cluster show cat.jpg
  neardup cluster export clusters.csv                      all of them; .jsonl and .parquet, too
  neardup cluster split dog.jpg --reason "a dog"           out of its cluster
  neardup cluster split cat.jpg dog.jpg --reason "..."     never in one cluster
  neardup cluster split cat.jpg --all --reason "a meme"    break its cluster up
  neardup cluster merge cat.jpg kitten.jpg --reason "..."  always in one cluster
  neardup cluster decisions
  neardup cluster forget 3 --reason "..."                  decision 3 no longer holds

Decisions are kept in the workspace and obeyed by all later runs; --dry-run shows what they would change.
"""
MAX_SHOWN = 20


@click.group(name="cluster", help=HELP)
def command() -> None:
    """The group of all commands on clusters."""


def _shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    json_output = click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
    return workspace_option(json_output(function))


def _whoami() -> str:
    """The user's name; containers may have a number only."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _deciding_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option("--reason", required=True, help="Why, for whoever reads the log later."),
            click.option("--by", default=_whoami, help="Who decides. [default: you]"),
            click.option("--dry-run", is_flag=True, help="Show what would change, and record nothing."),
        )
    ):
        function = option(function)
    return _shared_options(function)


@command.command()
@click.argument("image_id")
@click.option("--run", help="Look at this run. [default: the newest finished one]")
@_shared_options
def show(*, image_id: str, run: str | None, workspace: Path, json_output: bool) -> None:
    """The cluster of IMAGE_ID: members with scores and why they are there, and who matches but is not."""
    from dataclasses import asdict

    from batch_jobs.cluster_view import view_cluster
    from batch_jobs.decisions import read_decisions

    tables = _tables(workspace, run)
    view = view_cluster(tables, image_id, read_decisions(tables.workspace))
    if json_output:
        click.echo(json.dumps({"run_id": tables.record.run_id, **asdict(view)}))
    else:
        _show(view)


@command.command()
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--run", help="Export the clusters of this run. [default: the newest finished one]")
@_shared_options
def export(*, output: Path, run: str | None, workspace: Path, json_output: bool) -> None:
    """Write all clusters to OUTPUT, a .csv, .jsonl or .parquet file; a night's own files hold what it has changed."""
    from batch_jobs.exports import export_clusters

    if not output.parent.is_dir():
        raise click.UsageError(f"OUTPUT {output}: the folder {output.parent} does not exist")
    tables = _tables(workspace, run)
    num_rows = export_clusters(tables.clustered, output)
    if json_output:
        click.echo(json.dumps({"run_id": tables.record.run_id, "output": str(output), "images": num_rows}))
    else:
        click.echo(f"{num_rows:,} images in clusters of run {tables.record.run_id} in {output}")


@command.command()
@click.argument("image_ids", nargs=-1, required=True, metavar="IMAGE_ID...")
@click.option("--all", "breaks_up", is_flag=True, help="Keep all members of the cluster of IMAGE_ID apart.")
@_deciding_options
def split(
    *,
    image_ids: tuple[str, ...],
    breaks_up: bool,
    workspace: Path,
    json_output: bool,
    reason: str,
    by: str,
    dry_run: bool,
) -> None:
    """Keep several IMAGE_IDs apart from one another, or one apart from the rest of its cluster."""
    from batch_jobs.decisions import Decision, DecisionKind

    if breaks_up and len(image_ids) > 1:
        raise click.UsageError("--all takes one IMAGE_ID, whose cluster is broken up")
    tables = _tables(workspace, None)
    _require_images(tables, image_ids)
    groups = _groups(tables, image_ids[0], breaks_up) if len(image_ids) == 1 else tuple((one,) for one in image_ids)
    _decide(
        tables,
        Decision(kind=DecisionKind.SPLIT, groups=groups, by=by, reason=reason),
        json_output=json_output,
        dry_run=dry_run,
    )


@command.command()
@click.argument("image_ids", nargs=-1, required=True, metavar="IMAGE_ID...")
@_deciding_options
def merge(
    *, image_ids: tuple[str, ...], workspace: Path, json_output: bool, reason: str, by: str, dry_run: bool
) -> None:
    """Keep two or more IMAGE_IDs, and what matches them, in one cluster."""
    from batch_jobs.decisions import Decision, DecisionKind

    tables = _tables(workspace, None)
    _require_images(tables, image_ids)
    decision = Decision(kind=DecisionKind.MERGE, groups=(image_ids,), by=by, reason=reason)
    _decide(tables, decision, json_output=json_output, dry_run=dry_run)


@command.command()
@click.argument("number", type=click.IntRange(1))
@_deciding_options
def forget(*, number: int, workspace: Path, json_output: bool, reason: str, by: str, dry_run: bool) -> None:
    """Decision NUMBER no longer holds, from the next run on; it stays in the log."""
    from batch_jobs.decisions import Decision, DecisionKind

    decision = Decision(kind=DecisionKind.FORGET, forgets=number, by=by, reason=reason)
    _decide(_tables(workspace, None), decision, json_output=json_output, dry_run=dry_run)


@command.command()
@_shared_options
@click.option("--log", "is_whole", is_flag=True, help="Also those that no longer hold.")
def decisions(*, workspace: Path, json_output: bool, is_whole: bool) -> None:
    """The decisions that hold, oldest first."""
    from dataclasses import asdict

    from batch_jobs.decisions import read_decisions
    from batch_jobs.workspace import required_folder

    found = read_decisions(required_folder(workspace))
    shown = found.log if is_whole else found.active
    if json_output:
        click.echo(json.dumps({"decisions": [asdict(one) for one in shown]}))
        return
    for one in shown:
        click.echo(one.describe())
    if not shown:
        click.echo("no decisions")


def _tables(workspace: Path, run: str | None) -> RunTables:
    from batch_jobs.run_records import find_record
    from batch_jobs.run_tables import RunTables
    from batch_jobs.workspace import required_folder

    folder = required_folder(workspace)
    return RunTables(folder, find_record(folder, run))


def _require_images(tables: RunTables, image_ids: tuple[str, ...]) -> None:
    known = tables.images_named(image_ids)
    for image_id in image_ids:
        if image_id not in known:
            tables.required_image(image_id)


def _groups(tables: RunTables, image_id: str, breaks_up: bool) -> tuple[tuple[str, ...], ...]:
    """The image against the rest of its cluster, or each member for itself; byte-identical images stay together."""
    row = tables.membership([image_id]).get(image_id)
    if row is None:
        raise click.UsageError(f"{image_id} is in no cluster of run {tables.record.run_id}; there is nothing to split")
    by_bytes: dict[int, list[str]] = {}
    members = [member["image_id"] for member in tables.cluster(row["canonical_id"])]
    images = tables.images_named(members)
    for member in members:
        by_bytes.setdefault(images[member]["original_doc"], []).append(member)
    groups = [tuple(group) for group in by_bytes.values()]
    if len(groups) == 1:
        raise click.UsageError(
            f"the cluster of {image_id} holds byte-identical images only; name two of them to keep them apart"
        )
    if breaks_up:
        return tuple(groups)
    own = next(group for group in groups if image_id in group)
    return (own, tuple(member for group in groups if group is not own for member in group))


def _decide(tables: RunTables, decision: Decision, *, json_output: bool, dry_run: bool) -> None:
    """Record a decision, or show what it would change in the newest run."""
    from dataclasses import asdict, replace

    from batch_jobs.decisions import check_decision, read_decisions, record_decision

    before = read_decisions(tables.workspace)
    if dry_run:
        check_decision(before, decision)
        after = type(before)((*before.log, replace(decision, number=len(before.log) + 1)))
        changes = _changes(tables, before, after)
        if json_output:
            click.echo(json.dumps({"dry_run": True, "changes": changes}))
        else:
            _show_changes(changes)
        return
    recorded = record_decision(tables.workspace, decision)
    if json_output:
        click.echo(json.dumps({"dry_run": False, "decision": asdict(recorded)}))
        return
    click.echo(recorded.describe())
    click.echo(
        f"it holds from the next run on; `neardup {tables.record.command}` with the same settings only clusters again"
    )


def _changes(tables: RunTables, before: Decisions, after: Decisions) -> list[dict[str, list[str] | str]]:
    """The clusters of the newest run that would be others: canonical, members before and after."""
    from batch_jobs.cluster_view import preview

    old, new = preview(tables, before), preview(tables, after)
    return [
        {"canonical_id": one, "before": sorted(old.get(one, ())), "after": sorted(new.get(one, ()))}
        for one in sorted(old.keys() | new.keys())
        if old.get(one) != new.get(one)
    ]


def _show_changes(changes: list[dict[str, list[str] | str]]) -> None:
    for change in changes[:MAX_SHOWN]:
        click.echo(str(change["canonical_id"]))
        for when in ("before", "after"):
            members = change[when]
            shown = ", ".join(members[:MAX_SHOWN]) or "no cluster"
            more = f", and {len(members) - MAX_SHOWN:,} more" if len(members) > MAX_SHOWN else ""
            click.echo(f"  {when:<7} {shown}{more}")
    if len(changes) > MAX_SHOWN:
        click.echo(f"and {len(changes) - MAX_SHOWN:,} more clusters")
    click.echo(f"would change {len(changes):,} clusters of the newest run; nothing is recorded")


def _show(view: ClusterView) -> None:
    from cli.tables import show_table

    def figure(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    show_table(
        f"cluster of {view.canonical_id}, {len(view.members):,} images",
        ["image", "score", "similarity", "shared terms", "why"],
        [
            [one.image_id, figure(one.score), figure(one.similarity), str(one.shared_terms or ""), one.why]
            for one in view.members
        ],
    )
    if view.outsiders:
        show_table(
            "match a member, but are not in it",
            ["image", "matches", "score", "its canonical", "why not"],
            [
                [one.image_id, one.matches, figure(one.score), one.canonical_id or "none", one.why]
                for one in view.outsiders
            ],
        )
    for one in view.decisions:
        click.echo(f"decision {one.describe()}")
