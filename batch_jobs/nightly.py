"""The nightly run: what is new in a source joins what is known, what is gone leaves it.

    spark-submit batch_jobs/nightly.py --source /data/photos --workspace /data/neardup --index --promote

The source is given whole each night and compared with the night before (`changes`). Only new images are decoded,
embedded and hashed; they are joined with all and with one another; their matches are added to those of known pairs.
Clusters keep their canonicals. The first night of a workspace is the pipeline itself, step by step, so steps that
`neardup dedup` has committed for the same source are reused.

A night is committed by one file and one pointer (`nights`) after all of its steps. A run that was killed goes on where
it was: its steps are keyed by the night before and the source.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from batch_jobs import (
    catalogue,
    cluster_matches,
    compare_views,
    embed_images,
    find_candidates,
    make_terms,
    select_matches,
)
from batch_jobs.assignments import read_figures
from batch_jobs.changes import Changes, find_changes
from batch_jobs.decisions import read_decisions
from batch_jobs.errors import BatchError, WorkspaceError
from batch_jobs.exports import count_rejects, export_run, run_folder
from batch_jobs.listeners import Listener, SilentListener
from batch_jobs.model import Model, model_of, with_defaults
from batch_jobs.nights import (
    Known,
    Night,
    NightCounts,
    commit_night,
    current_night,
    known_of,
    live_images,
    read_columns,
)
from batch_jobs.operator_errors import operator_errors
from batch_jobs.pipeline import Pipeline, Run
from batch_jobs.run_records import NIGHTLY, finish_record, remove_record
from batch_jobs.session import Session
from batch_jobs.settings import RunSettings, as_json, digest
from batch_jobs.sources import Source, list_source, open_source
from batch_jobs.workspace import KEY_LENGTH, Workspace
from embed.embedder_dir import DTYPES
from embed.errors import EmbedError
from embed.views import describe_views, view_similarity
from lsh.errors import LshError

CHANGING_TABLES = ("catalogue", "removed", "rewritten")
SEGMENTED_STEPS = (
    catalogue.STEP,
    embed_images.STEP,
    make_terms.STEP,
    select_matches.STEP,
    make_terms.STEP_OF_VIEWS,
    compare_views.STEP,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NightOptions:
    """What is special about a night.

    `is_full` cuts all clusters from scratch; `only` redoes these image ids and leaves all else to the next night;
    `keeps_missing` says that the source holds only what is added, so what it lacks is not removed.
    """

    is_full: bool = False
    only: tuple[str, ...] = ()
    keeps_missing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a night would do, before any image is opened. `previous` is the night that it builds on.

    `num_touched` images are known, but their file was written again, or they are to be redone: those that have other
    bytes are changed.
    """

    previous: str | None
    num_known: int
    num_new: int
    num_touched: int
    num_removed: int
    has_new_decisions: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class NightResults:
    """The night that counts now, its figures, and what it handed to people.

    `is_new` is False where nothing had changed: then it is the night before, and nothing was written. The files of an
    update (`is_update` among the figures) hold the clusters that it has made or changed, those of other nights all.
    """

    night: Night
    is_new: bool
    figures: Mapping[str, int]
    rejects_by_reason: Mapping[str, int]
    seconds: Mapping[str, float]
    outputs: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints, and `run.json` keeps as results."""
        night = self.night
        return {
            "run_id": night.run_id,
            "night_id": night.night_id,
            "number": night.number,
            "previous": night.previous,
            "is_new": self.is_new,
            "source": night.source,
            "images": night.counts.images,
            **asdict(night.counts),
            "rejects_by_reason": dict(self.rejects_by_reason),
            "clusters": self.figures["num_clusters"],
            "duplicates": self.figures["num_duplicates"],
            "exact_copies": self.figures["num_exact_copies"],
            "reclaimable_bytes": self.figures["reclaimable_bytes"],
            "candidates": self.figures.get("num_distinct_pairs", 0),
            "cut_buckets": self.figures.get("num_cut_buckets", 0),
            "cut_pairs": self.figures.get("num_cut_pairs", 0),
            "matches": self.figures.get("num_matches", 0),
            "view_matches": self.figures.get("num_view_matches", 0),
            "min_score": night.settings["min_score"],
            "embedder_digest": night.settings["embedder"],
            "is_update": bool(self.figures.get("is_update")),
            "seconds": dict(self.seconds),
            "outputs": dict(self.outputs),
        }


class NightPipeline(Pipeline):
    """The steps of a night after the first."""

    def __init__(
        self,
        settings: RunSettings,
        workspace: Workspace,
        source: Source,
        *,
        previous: Night,
        changes: Changes,
        options: NightOptions,
        **common: Any,
    ) -> None:
        known = known_of(workspace.folder, previous)
        super().__init__(settings, workspace, source, known=known, changes=changes, **common)
        self.previous = previous
        self.options = options
        self.num_unopened = changes.num_known

    def has_work(self, step: str) -> bool:
        """No step runs for images that do not exist; clusters change with any change, and with decisions about them."""
        catalogued = self.outputs.get(catalogue.STEP)
        if catalogued is None:
            return True
        if step == embed_images.STEP:
            return catalogued.num_rows["catalogue"] > 0
        if step == cluster_matches.STEP:
            return not self.updates_clusters or any(catalogued.num_rows[one] for one in CHANGING_TABLES)
        embedded = self.outputs.get(embed_images.STEP)
        return embedded is not None and embedded.num_rows["embeddings"] > 0

    def night_inputs(self) -> dict[str, Any]:
        return {
            "previous": self.previous.night_id,
            "only": sorted(self.options.only),
            "keeps_missing": self.options.keeps_missing,
            "is_full": self.options.is_full,
        }

    def clusters_before(self) -> Known | None:
        return None if self.options.is_full else self.known

    @property
    def updates_clusters(self) -> bool:
        return not self.options.is_full and self.decisions.digest == self.previous.decisions

    def cluster_inputs(self) -> dict[str, Any]:
        selected = self.outputs.get(select_matches.STEP)
        return {
            "catalogue": self.outputs[catalogue.STEP].key,
            "select": selected.key if selected else None,
            "decisions": self.decisions.digest,
            "is_full": self.options.is_full,
        }

    def _check_rejects(self, num_rejected: int, num_images: int) -> None:
        # One broken upload among a million is no broken source, though it may be all that is new.
        if num_rejected:
            super()._check_rejects(num_rejected, num_images + self.num_unopened)


def plan_night(settings: RunSettings, options: NightOptions) -> Plan:
    """What a night of these settings would do; writes nothing."""
    source = open_source(settings.source, uri_root=settings.uri_root)
    previous = current_night(settings.workspace)
    if previous is not None:
        _as_before(previous, settings, source)
    changes = _changes(settings.workspace, source, previous, options)
    return Plan(
        previous=previous.night_id if previous else None,
        num_known=changes.num_known,
        num_new=changes.num_new,
        num_touched=changes.num_touched,
        num_removed=len(changes.gone_docs),
        has_new_decisions=previous is not None and _is_decided_anew(previous, settings.workspace),
    )


def run_nightly(
    settings: RunSettings,
    options: NightOptions,
    *,
    listener: Listener | None = None,
    and_then: Callable[[NightResults, Workspace], Any] | None = None,
) -> NightResults:
    """Run a night; `and_then` gets its results while the workspace is still locked.

    Where nothing has changed no night is added, and the results are those of the night that counts.
    """
    listener = listener or SilentListener()
    source = open_source(settings.source, uri_root=settings.uri_root)
    with (
        Workspace(settings.workspace, what=f"a night of {settings.source}") as workspace,
        operator_errors(settings.workspace),
    ):
        started = time.monotonic()
        listener.stage_started("start")
        previous = current_night(workspace.folder)
        if previous is not None:
            settings = _as_before(previous, settings, source)
        changes = _changes(workspace.folder, source, previous, options)
        if previous is not None and _is_up_to_date(previous, workspace, changes, options):
            results = _unchanged(previous, workspace)
        else:
            with Session(master=settings.master, log=settings.workspace / "spark.log") as session:
                common: dict[str, Any] = {"listener": listener, "session": session, "command": NIGHTLY}
                pipeline = (
                    Pipeline(settings, workspace, source, **common)
                    if previous is None
                    else NightPipeline(
                        settings, workspace, source, previous=previous, changes=changes, options=options, **common
                    )
                )
                pipeline.start(since=started)
                parent = previous.run_id if previous else None
                pipeline.begin(parent=parent, options=asdict(options))
                run = pipeline.run()
            results = _finish(pipeline, run, previous, changes)
        if and_then is not None:
            and_then(results, workspace)
        return results


def _is_up_to_date(night: Night, workspace: Workspace, changes: Changes, options: NightOptions) -> bool:
    return changes.is_empty and not options.is_full and not _is_decided_anew(night, workspace.folder)


def _is_decided_anew(night: Night, workspace: Path) -> bool:
    return night.decisions != read_decisions(workspace).digest


def _unchanged(night: Night, workspace: Workspace) -> NightResults:
    figures = read_figures(known_of(workspace.folder, night))
    return NightResults(night=night, is_new=False, figures=figures, rejects_by_reason={}, seconds={}, outputs={})


def night_settings(settings: RunSettings, model: Model) -> dict[str, Any]:
    """What all nights of a workspace share: matches of known pairs stay, so new ones are made by the same rules.

    `settings` leave nothing open.
    """
    return {
        "embedder": model.digest,
        "dtype": model.dtype,
        "terms": as_json(settings.terms),
        "candidates": as_json(settings.candidates),
        "scorer": model.scorer_digest,
        "min_score": model.min_score,
        "min_shared_terms": settings.min_shared_terms,
        "verified": settings.verified,
        **({"thorough": digest([describe_views(), view_similarity()])[:KEY_LENGTH]} if settings.thorough else {}),
    }


def _as_before(previous: Night, settings: RunSettings, source: Source) -> RunSettings:
    """The settings with what they leave open as the night before had it; raises WorkspaceError where they differ."""
    model = model_of(source, settings)
    settings = with_defaults(settings, model, num_images=source.num_images, before=previous.settings)
    _require_same(previous, night_settings(settings, model), settings.workspace)
    return settings


def _require_same(previous: Night, wanted: Mapping[str, Any], workspace: Path) -> None:
    changed = [
        f"{name}: {previous.settings.get(name)} there, {wanted.get(name)} now"
        for name in {**previous.settings, **wanted}
        if previous.settings.get(name) != wanted.get(name)
    ]
    if changed:
        raise WorkspaceError(
            f"the nights of workspace {workspace} were made with other settings ({'; '.join(changed)}), and matches of "
            "known images are not made again; use the same settings, or start over with another --workspace"
        )


def _changes(workspace: Path, source: Source, previous: Night | None, options: NightOptions) -> Changes:
    if previous is None and options.only:
        raise BatchError("--only redoes images of a night before, and this workspace has none; run a night without it")
    if previous is None:
        images = catalogue.CATALOGUE_ARROW.empty_table()
    else:
        images = live_images(known_of(workspace, previous), ["image_id", "doc", "original_doc", "state"])
    return find_changes(list_source(source), images, only=options.only, keeps_missing=options.keeps_missing)


def _finish(pipeline: Pipeline, run: Run, previous: Night | None, changes: Changes) -> NightResults:
    """Hand the night to people, then commit it: what counts has always been handed over whole."""
    workspace = pipeline.workspace
    clustered = run.steps.get(cluster_matches.STEP)
    if clustered is None:
        assert previous is not None  # noqa: S101 - a first night always has clusters
        remove_record(workspace, run.run_id)
        return _unchanged(previous, workspace)
    night = Night(
        number=previous.number + 1 if previous else 1,
        previous=previous.night_id if previous else None,
        run_id=run.run_id,
        source=str(run.source.path),
        settings=night_settings(run.settings, run.model),
        decisions=pipeline.decisions.digest,
        num_parts=previous.num_parts if previous else run.steps[make_terms.STEP].stats["num_parts"],
        next_doc=(previous.next_doc if previous else 0) + run.num_catalogued,
        segments=_segments(previous, run),
        counts=_counts(run, changes),
    )
    selected = run.steps.get(select_matches.STEP)
    matched = {"num_matches": selected.num_rows["edges"], **selected.stats} if selected else {}
    compared = run.steps.get(compare_views.STEP)
    if compared:
        matched["num_view_matches"] = compared.num_rows["view_edges"]
    found = run.steps.get(find_candidates.STEP)
    outputs = export_run(run, workspace)
    outputs["run"] = str(run_folder(run, workspace) / "run.json")
    results = NightResults(
        night=night,
        is_new=True,
        figures={**clustered.stats, **matched, **(found.stats if found else {})},
        rejects_by_reason=count_rejects(run),
        seconds=run.seconds,
        outputs=outputs,
    )
    finish_record(workspace, run.run_id, seconds=run.seconds, results=results.as_json())
    commit_night(workspace, night)
    return results


def _counts(run: Run, changes: Changes) -> NightCounts:
    catalogued = run.steps[catalogue.STEP]
    known_ids = changes.arrivals.filter(pc.is_valid(changes.arrivals["known_doc"]))["image_id"]
    given_docs = read_columns((catalogued.table("catalogue"),), ["image_id"])["image_id"]
    num_changed = pc.sum(pc.is_in(given_docs, value_set=known_ids.combine_chunks())).as_py() or 0
    return NightCounts(
        known=changes.num_known + catalogued.num_rows["rewritten"],
        new=catalogued.num_rows["catalogue"] - num_changed,
        changed=num_changed,
        removed=catalogued.num_rows["removed"] - num_changed,
        rewritten=catalogued.num_rows["rewritten"],
        rejected=sum(count_rejects(run).values()),
    )


def _segments(previous: Night | None, run: Run) -> dict[str, tuple[str, ...]]:
    before = previous.segments if previous else {}
    segments = {
        step: (*before.get(step, ()), *([run.steps[step].key] if step in run.steps else [])) for step in SEGMENTED_STEPS
    }
    clustered = run.steps[cluster_matches.STEP]
    earlier = before.get(cluster_matches.STEP, ()) if clustered.stats["is_update"] else ()
    return {**segments, cluster_matches.STEP: (*earlier, clustered.key)}


def main() -> None:
    """The door for `spark-submit` and `python -m`: one night, and an index of it when asked."""
    parser = argparse.ArgumentParser(description="Run one night: the changes of a source since the night before.")
    parser.add_argument("--source", required=True, help="folder, glob, .parquet table or .npz of embeddings")
    parser.add_argument("--workspace", required=True, type=Path, help="folder that driver and executors share")
    parser.add_argument("--embedder", default="vgg_copy", help="built-in embedder, or a directory on every executor")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="precision of the network; int8, where there is one, by default"
    )
    parser.add_argument("--min-score", type=float, help="lowest score of a match; the embedder's own by default")
    parser.add_argument("--thorough", action="store_true", help="compare parts and versions of each image too")
    parser.add_argument("--max-reject-ratio", type=float, default=1.0)
    parser.add_argument("--uri-root", type=Path, help="folder that a table's uris may point into")
    parser.add_argument("--num-partitions", type=int, help="two for each core of the session by default")
    parser.add_argument("--full", dest="is_full", action="store_true", help="cut all clusters from scratch")
    parser.add_argument("--only", action="append", default=[], metavar="ID", help="redo this image; may be repeated")
    parser.add_argument("--keep-missing", dest="keeps_missing", action="store_true", help="the source is an addition")
    parser.add_argument("--index", dest="is_indexed", action="store_true", help="build an index of the night")
    parser.add_argument("--promote", dest="is_promoted", action="store_true", help="and make it the one that serves")
    parser.add_argument("--without-views", action="store_true", help="index whole images alone, also when thorough")
    parser.add_argument(
        "--export-to",
        default=os.environ.get("NEARDUP_NIGHTLY_EXPORT_TO"),
        help="build an index and load it into this Redis, too; NEARDUP_NIGHTLY_EXPORT_TO keeps a password out of sight",
    )
    arguments = vars(parser.parse_args())
    options = NightOptions(
        is_full=arguments.pop("is_full"),
        only=tuple(arguments.pop("only")),
        keeps_missing=arguments.pop("keeps_missing"),
    )
    is_promoted = arguments.pop("is_promoted")
    store = arguments.pop("export_to")
    with_views = not arguments.pop("without_views")
    is_indexed = arguments.pop("is_indexed") or is_promoted or store is not None
    generation: dict[str, str] = {}

    def index(_: NightResults, workspace: Workspace) -> None:
        if is_indexed:
            generation["generation_id"] = index_night(
                workspace, promotes=is_promoted, store=store, with_views=with_views
            )

    try:
        results = run_nightly(RunSettings(**arguments), options, and_then=index)
    except (BatchError, EmbedError, LshError) as error:
        sys.exit(f"neardup: error: {error}")
    sys.stdout.write(json.dumps({**results.as_json(), **generation}) + "\n")


def index_night(workspace: Workspace, *, promotes: bool, store: str | None = None, with_views: bool = True) -> str:
    """Build a generation of the night that counts, and make it the one that serves where asked; returns its id.

    That of a thorough night holds the views of its images, unless it is to be without.
    With a `store`, the URL of a Redis, it is loaded there too, and promoted there before it is in the workspace.
    """
    from batch_jobs.build_index import build_index, index_folder
    from lsh.index.publishing import promote

    index = index_folder(workspace.folder)
    generation_id = build_index(workspace, with_views=with_views).generation_id
    if store is not None:
        _export(index, generation_id, store, promotes=promotes)
    if promotes:
        promote(index, generation_id)
    return generation_id


def _export(index: Path, generation_id: str, store: str, *, promotes: bool) -> None:
    from lsh.index.generation import open_generation
    from lsh.index.publishing import generation_folder
    from lsh.redis_store.publishing import RedisStore
    from lsh.redis_store.url import StoreUrl

    with closing(RedisStore(StoreUrl(store))) as target:
        target.export(open_generation(generation_folder(index, generation_id)))
        if promotes:
            target.promote(generation_id)


if __name__ == "__main__":
    main()
