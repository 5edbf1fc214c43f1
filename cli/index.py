"""`neardup index`: build, list, verify, promote, roll back and clean up index generations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import workspace_option

if TYPE_CHECKING:
    from lsh.index.publishing import ListedGeneration

HELP = """\
Make the index that `neardup serve` answers from, and choose which generation is served.

\b
  neardup dedup photos/                 first: clusters
  neardup index build --promote         then: an index of them, made current
  neardup index list
  neardup index rollback                back to the generation before

A generation never changes once it is built; promote and rollback verify every byte before they switch.
"""


@click.group(name="index", help=HELP)
def command() -> None:
    """The group of all commands on generations."""


def _shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    json_output = click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
    return workspace_option(json_output(function))


@command.command()
@_shared_options
@click.option(
    "--min-score", type=click.FloatRange(-1.0, 1.0), help="Index the run of this threshold. [default: the newest run]"
)
@click.option("--run", "run_id", help="Index this run, see `neardup runs list`. [default: the newest run]")
@click.option(
    "--tables", type=click.IntRange(1, 256), help="Hash tables. More find more and take more bytes. [default: 16]"
)
@click.option(
    "--probes", type=click.IntRange(1, 256), help="Buckets a lookup visits in each table, on average. [default: 12]"
)
@click.option("--promote", "is_promoted", is_flag=True, help="Make the new generation the current one.")
def build(
    *,
    workspace: Path,
    json_output: bool,
    min_score: float | None,
    run_id: str | None,
    tables: int | None,
    probes: int | None,
    is_promoted: bool,
) -> None:
    """Make a generation of the newest clusters, verify it, and put it beside the others."""
    from batch_jobs.build_index import NUM_TABLES, PROBES_PER_TABLE, build_index, index_folder
    from batch_jobs.workspace import Workspace, required_folder
    from lsh.index.publishing import promote as promote_generation

    folder = required_folder(workspace)
    if run_id is not None and min_score is not None:
        raise click.UsageError("--run and --min-score both choose a run; give one of them")
    with Workspace(folder, what="an index build") as opened:
        manifest = build_index(
            opened,
            min_score=min_score,
            run_id=run_id,
            num_tables=tables or NUM_TABLES,
            probes_per_table=probes or PROBES_PER_TABLE,
        )
        if is_promoted:
            promote_generation(index_folder(opened.folder), manifest.generation_id, is_verified=True)
    size_bytes = sum(entry.size_bytes for entry in manifest.files.values())
    figures = {
        "generation_id": manifest.generation_id,
        "images": manifest.num_docs,
        "clusters": manifest.num_clusters,
        "size_bytes": size_bytes,
        "bytes_per_image": round(size_bytes / manifest.num_docs, 1),
        "is_current": is_promoted,
    }
    what = "built and promoted" if is_promoted else "built; `neardup index promote` makes it current"
    text = f"generation {manifest.generation_id}: {manifest.num_docs:,} images, {size_bytes / 2**20:,.1f} MiB, {what}"
    click.echo(json.dumps(figures) if json_output else text)


@command.command(name="list")
@_shared_options
def list_command(*, workspace: Path, json_output: bool) -> None:
    """Show all generations, oldest first; a star marks the current one."""
    from lsh.index.publishing import list_generations

    listed = list_generations(_index(workspace))
    if json_output:
        click.echo(json.dumps({"generations": [_described(one) for one in listed]}))
        return
    for one in listed:
        click.echo(_line(one))
    if not listed:
        click.echo("no generations; `neardup index build` makes one")


@command.command()
@click.argument("generation_id", required=False)
@_shared_options
def verify(*, generation_id: str | None, workspace: Path, json_output: bool) -> None:
    """Read every byte of GENERATION_ID, by default the current one, and compare it with its manifest."""
    from lsh.index.generation import verify_generation
    from lsh.index.publishing import current, generation_folder

    index = _index(workspace)
    checked = generation_id or current(index)
    if checked is None:
        raise click.UsageError("no generation is current; name one, see `neardup index list`")
    verify_generation(generation_folder(index, checked))
    click.echo(json.dumps({"generation_id": checked, "is_whole": True}) if json_output else f"{checked} is whole")


@command.command()
@click.argument("generation_id", required=False)
@_shared_options
def promote(*, generation_id: str | None, workspace: Path, json_output: bool) -> None:
    """Make GENERATION_ID, by default the newest, the current one."""
    from lsh.index.publishing import list_generations
    from lsh.index.publishing import promote as promote_generation

    index = _index(workspace)
    whole = [one.generation_id for one in list_generations(index) if one.problem is None]
    if generation_id is None and not whole:
        raise click.UsageError("there is no generation to promote; `neardup index build` makes one")
    promoted = generation_id or whole[-1]
    promote_generation(index, promoted)
    click.echo(json.dumps({"current": promoted}) if json_output else f"{promoted} is current")


@command.command()
@_shared_options
def rollback(*, workspace: Path, json_output: bool) -> None:
    """Make the generation before the current one current again."""
    from lsh.index.publishing import rollback as roll_back

    generation_id = roll_back(_index(workspace))
    click.echo(json.dumps({"current": generation_id}) if json_output else f"{generation_id} is current")


@command.command()
@_shared_options
@click.option(
    "--keep", type=click.IntRange(0), default=2, show_default=True, help="Generations to keep for a rollback."
)
def gc(*, workspace: Path, json_output: bool, keep: int) -> None:
    """Remove generations older than the current one, but the last ones that were current."""
    from lsh.index.publishing import collect_garbage

    removed = collect_garbage(_index(workspace), keep)
    text = f"removed {', '.join(removed)}" if removed else "nothing to remove"
    click.echo(json.dumps({"removed": removed}) if json_output else text)


def _index(workspace: Path) -> Path:
    from batch_jobs.workspace import required_folder

    return required_folder(workspace) / "index"


def _described(one: ListedGeneration) -> dict[str, Any]:
    manifest = one.manifest
    return {
        "generation_id": one.generation_id,
        "is_current": one.is_current,
        "problem": one.problem,
        "created_at": manifest.created_at if manifest else None,
        "images": manifest.num_docs if manifest else None,
        "min_score": manifest.min_score if manifest else None,
        "embedder_digest": manifest.embedder_digest if manifest else None,
        "size_bytes": one.size_bytes,
    }


def _line(one: ListedGeneration) -> str:
    mark = "*" if one.is_current else " "
    if one.manifest is None or one.problem is not None:
        return f"{mark} {one.generation_id}  {one.problem}"
    return (
        f"{mark} {one.generation_id}  {one.manifest.created_at}  {one.manifest.num_docs:,} images"
        f"  {one.size_bytes / 2**20:,.1f} MiB  min score {one.manifest.min_score:g}"
    )
