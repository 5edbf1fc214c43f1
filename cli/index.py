"""`neardup index`: build, list, verify, promote, roll back and clean up generations, in a workspace or in Redis."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import workspace_option

if TYPE_CHECKING:
    from lsh.index.manifest import Manifest
    from lsh.index.publishing import ListedGeneration
    from lsh.index.store import GenerationStore
    from lsh.redis_store.publishing import RedisStore

HELP = """\
Make the index that `neardup serve` answers from, and choose which generation is served.

\b
  neardup dedup photos/                 first: clusters
  neardup index build --promote         then: an index of them, made current
  neardup index list
  neardup index rollback                back to the generation before

\b
The same in Redis, for servers that share an index:
  neardup index export --to redis://host --promote
  neardup index list --store redis://host
  neardup index replicas --store redis://host

Give a store with a password by the environment: NEARDUP_INDEX_EXPORT_TO, NEARDUP_INDEX_LIST_STORE and so on.
A generation never changes once it is built; promote and rollback verify every byte before they switch.
"""


@click.group(name="index", help=HELP)
def command() -> None:
    """The group of all commands on generations."""


def _shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    json_output = click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
    return workspace_option(json_output(function))


def _store_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--store", help="Redis that keeps generations, redis://host:port; else the workspace does.")(
        _shared_options(function)
    )


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
    "--probes",
    type=click.IntRange(1, 256),
    help="Buckets a lookup visits in each table, on average. [default: 12, more from a million images on]",
)
@click.option(
    "--without-views", is_flag=True, help="Index whole images alone, also of a thorough run; takes a 19th of the bytes."
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
    without_views: bool,
    is_promoted: bool,
) -> None:
    """Make a generation of the newest clusters, verify it, and put it beside the others."""
    from batch_jobs.build_index import NUM_TABLES, build_index, index_folder
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
            probes_per_table=probes,
            with_views=not without_views,
        )
        if is_promoted:
            promote_generation(index_folder(opened.folder), manifest.generation_id, is_verified=True)
    size_bytes = sum(entry.size_bytes for entry in manifest.files.values())
    figures = {
        "generation_id": manifest.generation_id,
        "images": manifest.num_docs,
        "views": manifest.num_views,
        "clusters": manifest.num_clusters,
        "size_bytes": size_bytes,
        "bytes_per_image": round(size_bytes / manifest.num_docs, 1),
        "is_current": is_promoted,
    }
    what = "built and promoted" if is_promoted else "built; `neardup index promote` makes it current"
    text = f"generation {manifest.generation_id}: {_contents(manifest)}, {size_bytes / 2**20:,.1f} MiB, {what}"
    click.echo(json.dumps(figures) if json_output else text)


@command.command(name="list")
@_store_option
def list_command(*, workspace: Path, store: str | None, json_output: bool) -> None:
    """Show all generations, oldest first; a star marks the current one."""
    with _opened(workspace, store) as generations:
        listed = generations.list_generations()
    if json_output:
        click.echo(json.dumps({"generations": [_described(one) for one in listed]}))
        return
    for one in listed:
        click.echo(_line(one))
    if not listed:
        click.echo(f"no generations; `neardup index {'export' if store else 'build'}` makes one")


@command.command()
@click.argument("generation_id", required=False)
@_store_option
def verify(*, generation_id: str | None, workspace: Path, store: str | None, json_output: bool) -> None:
    """Read every byte of GENERATION_ID, by default the current one, and compare it with its manifest."""
    with _opened(workspace, store) as generations:
        checked = generation_id or generations.current()
        if checked is None:
            raise click.UsageError("no generation is current; name one, see `neardup index list`")
        generations.verify(checked)
    click.echo(json.dumps({"generation_id": checked, "is_whole": True}) if json_output else f"{checked} is whole")


@command.command()
@click.argument("generation_id", required=False)
@_store_option
def promote(*, generation_id: str | None, workspace: Path, store: str | None, json_output: bool) -> None:
    """Make GENERATION_ID, by default the newest, the current one."""
    with _opened(workspace, store) as generations:
        whole = [one.generation_id for one in generations.list_generations() if one.problem is None]
        if generation_id is None and not whole:
            raise click.UsageError("there is no generation to promote; `neardup index build` makes one")
        promoted = generation_id or whole[-1]
        generations.promote(promoted)
    click.echo(json.dumps({"current": promoted}) if json_output else f"{promoted} is current")


@command.command()
@_store_option
def rollback(*, workspace: Path, store: str | None, json_output: bool) -> None:
    """Make the generation before the current one current again."""
    with _opened(workspace, store) as generations:
        generation_id = generations.rollback()
    click.echo(json.dumps({"current": generation_id}) if json_output else f"{generation_id} is current")


@command.command()
@_store_option
@click.option(
    "--keep", type=click.IntRange(0), default=2, show_default=True, help="Generations to keep for a rollback."
)
def gc(*, workspace: Path, store: str | None, json_output: bool, keep: int) -> None:
    """Remove generations older than the current one, but the last ones that were current, and broken exports."""
    with _opened(workspace, store) as generations:
        removed = generations.collect_garbage(keep)
    text = f"removed {', '.join(removed)}" if removed else "nothing to remove"
    click.echo(json.dumps({"removed": removed}) if json_output else text)


@command.command()
@_shared_options
@click.option("--to", "store", required=True, help="Redis to export to: redis://host:port.")
@click.option("--generation", "generation_id", help="Which one. [default: the workspace's current one]")
@click.option(
    "--partitions",
    type=click.IntRange(1, 4096),
    help="Servers of a cluster that may share it at most. [default: 1; in a cluster 4 for each master]",
)
@click.option("--promote", "is_promoted", is_flag=True, help="Make it the store's current generation.")
def export(
    *,
    workspace: Path,
    json_output: bool,
    store: str,
    generation_id: str | None,
    partitions: int | None,
    is_promoted: bool,
) -> None:
    """Load a generation into Redis, read it back, compare every digest, and only then enter it.

    Nothing is served from it until it is promoted. An export that breaks off is removed by `neardup index gc`.
    """
    from time import perf_counter

    from lsh.index import publishing
    from lsh.index.generation import open_generation, verify_generation

    index = _index(workspace)
    exported = generation_id or publishing.current(index)
    if exported is None:
        raise click.UsageError("no generation is current; name one with --generation, see `neardup index list`")
    folder = publishing.generation_folder(index, exported)
    verify_generation(folder)
    generation = open_generation(folder)
    started = perf_counter()
    with _opened_redis(store) as target, _progress(generation.manifest.files.values(), "exporting") as advance:
        is_new = target.export(generation, num_partitions=partitions, advance=advance)
        seconds = perf_counter() - started
        if is_promoted:
            target.promote(exported)
        name = str(target.url)
    images = generation.manifest.num_docs
    figures = {
        "generation_id": exported,
        "store": name,
        "images": images,
        "is_new": is_new,
        "is_current": is_promoted,
        "seconds": round(seconds, 3),
        "images_per_minute": round(images / seconds * 60) if is_new else None,
    }
    what = f"{images:,} images in {seconds:,.1f} s, verified" if is_new else "was there already"
    then = "promoted" if is_promoted else "`neardup index promote --store` makes it current"
    click.echo(json.dumps(figures) if json_output else f"{exported} in {name}: {what}; {then}")


@command.command(name="import")
@_shared_options
@click.option("--from", "store", required=True, help="Redis to import from: redis://host:port.")
@click.option("--generation", "generation_id", help="Which one. [default: the store's current one]")
@click.option("--promote", "is_promoted", is_flag=True, help="Make it the workspace's current generation.")
def import_command(
    *, workspace: Path, json_output: bool, store: str, generation_id: str | None, is_promoted: bool
) -> None:
    """Bring a generation from Redis back into a workspace, verified; the workspace is made if there is none."""
    from lsh.index import publishing
    from lsh.redis_store.loading import write_folder

    index = workspace.resolve() / "index"
    with _opened_redis(store) as source:
        imported = generation_id or source.current()
        if imported is None:
            raise click.UsageError("the store has no current generation; name one with --generation")
        stored = source.stored(imported)
        with publishing.new_generation(index) as folder:
            write_folder(source.servers, stored, folder)
    if is_promoted:
        publishing.promote(index, imported)
    figures = {"generation_id": imported, "images": stored.manifest.num_docs, "is_current": is_promoted}
    text = (
        f"{imported}: {stored.manifest.num_docs:,} images in {index}, {'promoted' if is_promoted else 'not promoted'}"
    )
    click.echo(json.dumps(figures) if json_output else text)


@command.command()
@click.option("--store", required=True, help="Redis that keeps the uploads: redis://host:port.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
def replicas(*, store: str, json_output: bool) -> None:
    """Show the servers that follow a store's uploads: what they serve, when they said so, how far behind they are."""
    from lsh.redis_store.url import StoreUrl
    from service.redis_log import read_replicas

    found = read_replicas(StoreUrl(store))
    if json_output:
        click.echo(json.dumps({"replicas": found}))
        return
    for name, said in found.items():
        click.echo(
            f"{name}  generation {said['generation_id']}  seen {said['seconds_ago']:.1f} s ago"
            f"  behind {said['behind_s']:.1f} s"
        )
    if not found:
        click.echo("no replicas; `neardup serve --store` starts one")


@contextmanager
def _opened(workspace: Path, store: str | None) -> Iterator[GenerationStore]:
    """The generations of a store in Redis, or of a workspace."""
    from lsh.index.store import FolderStore

    if store is None:
        yield FolderStore(_index(workspace))
        return
    with _opened_redis(store) as opened:
        yield opened


@contextmanager
def _opened_redis(store: str) -> Iterator[RedisStore]:
    from lsh.redis_store.publishing import RedisStore
    from lsh.redis_store.url import StoreUrl

    opened = RedisStore(StoreUrl(store))
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def _progress(files: Any, label: str) -> Iterator[Callable[[int], object]]:
    """A bar of bytes on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = (label, BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=sum(entry.size_bytes for entry in files))
        yield lambda num_bytes: progress.advance(task, num_bytes)


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
        "views": manifest.num_views if manifest else None,
        "min_score": manifest.min_score if manifest else None,
        "embedder_digest": manifest.embedder_digest if manifest else None,
        "size_bytes": one.size_bytes,
    }


def _contents(manifest: Manifest) -> str:
    views = f" with {manifest.num_views:,} views" if manifest.num_views else ""
    return f"{manifest.num_docs:,} images{views}"


def _line(one: ListedGeneration) -> str:
    mark = "*" if one.is_current else " "
    if one.manifest is None or one.problem is not None:
        return f"{mark} {one.generation_id}  {one.problem}"
    return (
        f"{mark} {one.generation_id}  {one.manifest.created_at}  {_contents(one.manifest)}"
        f"  {one.size_bytes / 2**20:,.1f} MiB  min score {one.manifest.min_score:g}"
    )
