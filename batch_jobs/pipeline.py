"""The pipeline: the steps in their order, each committed before the next, each found again when it is already there.

images -> catalogue -> embed -> terms -> candidates -> select (-> views -> view_terms -> compare) -> cluster
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from batch_jobs import (
    catalogue,
    cluster_matches,
    compare_views,
    embed_images,
    embed_views,
    find_candidates,
    make_terms,
    select_matches,
)
from batch_jobs.changes import Changes
from batch_jobs.decisions import read_decisions
from batch_jobs.errors import RejectedError, SourceError
from batch_jobs.gpus import EmbedResources, embed_resources
from batch_jobs.listeners import Listener, SilentListener
from batch_jobs.model import Model, model_of, with_defaults
from batch_jobs.nights import KNOWN_NOTHING, Known, removed_contents
from batch_jobs.operator_errors import operator_errors
from batch_jobs.run_records import RunRecord, begin_record, finished_runs, now
from batch_jobs.session import Session, num_cores, sized_shuffles
from batch_jobs.settings import RunSettings, as_json, digest
from batch_jobs.sources import Source, SourceKind, open_source
from batch_jobs.task_runners import MAX_DRIVER_DOCS, DriverRunner, SparkRunner, TaskRunner
from batch_jobs.workspace import KEY_LENGTH, StepOutput, Workspace
from embed.pair_scoring import scorer_files
from embed.views import NUM_VIEWS, describe_views, view_similarity

STEPS = (
    catalogue.STEP,
    embed_images.STEP,
    make_terms.STEP,
    find_candidates.STEP,
    select_matches.STEP,
    cluster_matches.STEP,
)
VIEW_STEPS = (embed_views.STEP, make_terms.STEP_OF_VIEWS, compare_views.STEP)
"""Before the last step, in thorough runs."""
IMAGES_PER_TASK = 512
MAX_DOCS_PER_RANGE = 196_608


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run (or one that was asked to stop after a step): its steps and what they counted."""

    run_id: str
    source: Source
    settings: RunSettings
    model: Model
    steps: Mapping[str, StepOutput]
    seconds: Mapping[str, float]

    @property
    def num_images(self) -> int:
        return self.num_catalogued + self.steps[catalogue.STEP].num_rows["rejects"]

    @property
    def num_catalogued(self) -> int:
        return self.steps[catalogue.STEP].num_rows["catalogue"]


class Pipeline:
    """One run over an open workspace, with one method per step.

    A run over all of its source knows nothing; a night (`nightly`) builds on what is `known` and works on `changes`.
    """

    def __init__(
        self,
        settings: RunSettings,
        workspace: Workspace,
        source: Source,
        *,
        listener: Listener,
        session: Session,
        command: str = "dedup",
        known: Known = KNOWN_NOTHING,
        changes: Changes | None = None,
    ) -> None:
        self.command = command
        self.workspace = workspace
        self.source = source
        self.listener = listener
        self.session = session
        self.outputs: dict[str, StepOutput] = {}
        self.seconds: dict[str, float] = {}
        if settings.thorough and source.kind is SourceKind.EMBEDDINGS:
            raise SourceError(
                f"source {settings.source} holds embeddings, and a thorough run needs the images themselves; "
                "give the images, or leave out --thorough"
            )
        self.model = model_of(source, settings)
        self.settings = with_defaults(settings, self.model, num_images=source.num_images, before=workspace.identity)
        assert self.settings.terms is not None  # noqa: S101 - just filled in
        assert self.settings.candidates is not None  # noqa: S101
        self.terms = self.settings.terms
        self.candidates = self.settings.candidates
        self.decisions = read_decisions(workspace.folder)
        self.known = known
        self.changes = changes
        workspace.claim({"embedder": self.model.digest, "dtype": self.model.dtype, "terms": self.terms.to_json()})

    @property
    def run_id(self) -> str:
        """The digest of all that decides the result, known before anything has run."""
        decides = {
            "kind": self.source.kind,
            "fingerprint": self.source.fingerprint,
            "limits": as_json(self.settings.limits),
            "embedder": self.model.digest,
            "dtype": self.model.dtype,
            "terms": self.terms.to_json(),
            "candidates": asdict(self.candidates),
            "scorer": self.model.scorer_digest,
            "min_score": self.model.min_score,
            "min_shared_terms": self.settings.min_shared_terms,
            "verified": self.settings.verified,
            "decisions": self.decisions.digest,
            **self.night_inputs(),
        }
        if self.settings.thorough:
            decides["thorough"] = True
        # A first night finds the steps of a `dedup` before it, but is a run of its own.
        if self.command != "dedup":
            decides["command"] = self.command
        return digest(decides)[:KEY_LENGTH]

    def start(self, *, since: float) -> None:
        """End the stage `start`, which began at `since`; Spark starts in it where the run will need it."""
        if self.needs_spark:
            self.session.start()
        self.seconds["start"] = round(time.monotonic() - since, 3)
        self.listener.stage_finished("start", seconds=self.seconds["start"], reused=False, num_images=0)

    def begin(self, *, parent: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        """Start the record of the run and the command's options, with paths that hold from any folder.

        `parent` is the run it builds on; the newest finished one without.
        """
        settings = replace(
            self.settings,
            source=str(self.source.path),
            embedder=_wherever_workers_run(self.settings.embedder),
            uri_root=self.settings.uri_root and self.settings.uri_root.resolve(),
        )
        newest = next((one for one in finished_runs(self.workspace.folder) if one.run_id != self.run_id), None)
        record = RunRecord(
            run_id=self.run_id,
            command=self.command,
            source=settings.source,
            fingerprint=self.source.fingerprint,
            settings=settings.to_json(),
            embedder_digest=self.model.digest,
            scorer_digest=self.model.scorer_digest,
            min_score=self.model.min_score,
            decisions_digest=self.decisions.digest,
            num_decisions=len(self.decisions.active),
            parent=parent or (newest.run_id if newest else None),
            options=options or {},
            started_at=now(),
        )
        begin_record(self.workspace, record)

    @property
    def num_partitions(self) -> int:
        """As many as asked for, or two a core, and more once a partition would not fit its memory."""
        if self.settings.num_partitions:
            return self.settings.num_partitions
        catalogued = self.outputs.get(catalogue.STEP)
        num_docs = catalogued.num_rows["catalogue"] if catalogued else 0
        if self.settings.thorough:
            num_docs *= 1 + NUM_VIEWS
        fitting = find_candidates.fitting_parts(num_docs, num_tables=self.terms.num_tables)
        return max(2 * self.session.parallelism, fitting)

    def run(self, *, until: str = cluster_matches.STEP) -> Run:
        """All steps up to and including `until`."""
        actions = {
            catalogue.STEP: self.catalogue,
            embed_images.STEP: self.embed,
            make_terms.STEP: self.make_terms,
            find_candidates.STEP: self.find_candidates,
            select_matches.STEP: self.select,
            embed_views.STEP: self.embed_views,
            make_terms.STEP_OF_VIEWS: self.make_view_terms,
            compare_views.STEP: self.compare_views,
            cluster_matches.STEP: self.cluster,
        }
        steps = (*STEPS[:-1], *VIEW_STEPS, STEPS[-1]) if self.settings.thorough else STEPS
        for step in steps[: steps.index(until) + 1]:
            if self.has_work(step):
                self._stage(step, actions[step])
        return Run(
            run_id=self.run_id,
            source=self.source,
            settings=self.settings,
            model=self.model,
            steps=dict(self.outputs),
            seconds=dict(self.seconds),
        )

    def has_work(self, step: str) -> bool:  # noqa: ARG002
        """Whether a step has anything to do; all of them where nothing is known."""
        return True

    def night_inputs(self) -> dict[str, Any]:
        """What decides a night's result beside source and settings; nothing on the first."""
        return {}

    @property
    def whole(self) -> Known:
        """All that there is: what is known, and what this run has made so far."""
        return self.known.with_outputs(self.outputs)

    def catalogue(self) -> StepOutput:
        def write(folder: Path) -> Mapping[str, Any]:
            if self.source.kind is SourceKind.EMBEDDINGS:
                return catalogue.catalogue_embeddings(
                    folder, source=self.source, known=self.known, changes=self.changes
                )
            if not self.needs_spark:
                return catalogue.catalogue_in_driver(
                    self._driver_runner(catalogue.STEP),
                    folder,
                    source=self.source,
                    limits=self.settings.limits,
                    known=self.known,
                    changes=self.changes,
                )
            with sized_shuffles(self.session.spark, self._num_arrivals, at_least=self.num_partitions):
                return catalogue.catalogue(
                    self.session.spark,
                    folder,
                    source=self.source,
                    limits=self.settings.limits,
                    num_partitions=self.num_partitions,
                    known=self.known,
                    changes=self.changes,
                )

        inputs = {
            "kind": self.source.kind,
            "fingerprint": self.source.fingerprint,
            "limits": as_json(self.settings.limits),
            **self.night_inputs(),
        }
        output = self.workspace.step(catalogue.STEP, inputs=inputs, write=write, tables=catalogue.TABLES)
        self._check_rejects(output.num_rows["rejects"], output.num_rows["catalogue"] + output.num_rows["rejects"])
        return output

    def embed(self) -> StepOutput:
        catalogued = self.outputs[catalogue.STEP]

        def write(folder: Path) -> Mapping[str, Any]:
            if self.source.kind is SourceKind.EMBEDDINGS:
                return embed_images.adopt_embeddings(
                    folder, source=self.source, first_doc=self.known.next_doc, changes=self.changes
                )
            if not self.needs_spark:
                return embed_images.embed_in_driver(
                    folder,
                    source=self.source,
                    catalogue=catalogued.table("catalogue"),
                    task=self._embed_task(EmbedResources(num_cores=None)),
                    progress=partial(self.listener.stage_progressed, embed_images.STEP),
                )
            resources = embed_resources(self.session.spark)
            return embed_images.embed_images(
                self.session.spark,
                folder,
                source=self.source,
                catalogue=catalogued.table("catalogue"),
                task=self._embed_task(resources),
                resources=resources,
                num_tasks=self._num_embed_tasks,
            )

        inputs = {"catalogue": catalogued.key, "embedder": self.model.digest, "dtype": self.model.dtype}
        output = self.workspace.step(embed_images.STEP, inputs=inputs, write=write, tables=embed_images.TABLES)
        rejected = catalogued.num_rows["rejects"] + output.num_rows["rejects"]
        self._check_rejects(rejected, catalogued.num_rows["catalogue"] + catalogued.num_rows["rejects"])
        return output

    def _embed_task(self, resources: EmbedResources) -> embed_images.EmbedTask:
        return embed_images.embed_task(
            embedder=_wherever_workers_run(self.settings.embedder),
            dtype=self.model.dtype,
            resources=resources,
            root=self.source.root,
            limits=self.settings.limits,
        )

    @property
    def _num_embed_tasks(self) -> int:
        return max(self.num_partitions, -(-self.outputs[catalogue.STEP].num_rows["catalogue"] // IMAGES_PER_TASK))

    def make_terms(self) -> StepOutput:
        embedded = self.outputs[embed_images.STEP]

        def write(folder: Path) -> Mapping[str, Any]:
            return make_terms.make_terms(
                self._runner(make_terms.STEP),
                folder,
                embeddings=embedded.table("embeddings"),
                params=self.terms,
                num_partitions=self.known.num_parts or self.num_partitions,
                is_night=bool(self.known.posting_lists),
            )

        # Views lie in the parts of whole images, so these are more.
        layout = "posting lists, with leaders" + (", views to come" if self.settings.thorough else "")
        inputs = {"embed": embedded.key, "terms": self.terms.to_json(), "layout": layout}
        return self.workspace.step(make_terms.STEP, inputs=inputs, write=write, tables=make_terms.TABLES)

    def _join(self) -> find_candidates.Join:
        hashed = self.outputs[make_terms.STEP]
        return find_candidates.Join(
            new=hashed.table("posting_lists"),
            known=self.known.posting_lists,
            removed_docs=removed_contents(self.whole),
            leaders=make_terms.read_leaders(hashed.table("leaders")),
            params=self.candidates,
            docs_per_range=self._docs_per_range(),
        )

    def find_candidates(self) -> StepOutput:
        hashed = self.outputs[make_terms.STEP]
        join = self._join()

        def write(folder: Path) -> Mapping[str, Any]:
            runner = self._runner(find_candidates.STEP)
            found = find_candidates.find_candidates(runner, folder, join=join, num_parts=hashed.stats["num_parts"])
            return {"docs_per_range": join.docs_per_range, **found}

        inputs = {"terms": hashed.key, "candidates": asdict(self.candidates)}
        return self.workspace.step(find_candidates.STEP, inputs=inputs, write=write, tables=find_candidates.TABLES)

    @property
    def selection(self) -> select_matches.Selection:
        return select_matches.Selection(
            dim=self.model.dim,
            min_score=self.model.min_score,
            min_shared_terms=self.settings.min_shared_terms,
            scorer=self.model.scorer,
            num_tables=self.terms.num_tables,
            verified=self.settings.verified,
        )

    def select(self) -> StepOutput:
        found = self.outputs[find_candidates.STEP]

        def write(folder: Path) -> Mapping[str, Any]:
            for name, content in scorer_files(self.model.scorer).items():
                (folder / name).write_bytes(content)
            return select_matches.select_matches(
                self._runner(select_matches.STEP),
                folder,
                pair_blocks=found.table("pair_blocks"),
                codes=(*self.known.codes, self.outputs[make_terms.STEP].table("codes")),
                selection=self.selection,
                docs_per_range=found.stats["docs_per_range"],
            )

        inputs = {
            "candidates": found.key,
            "scorer": self.model.scorer_digest,
            "min_score": self.model.min_score,
            "min_shared_terms": self.settings.min_shared_terms,
            "verified": self.settings.verified,
        }
        return self.workspace.step(select_matches.STEP, inputs=inputs, write=write, tables=select_matches.TABLES)

    def embed_views(self) -> StepOutput:
        catalogued, embedded = self.outputs[catalogue.STEP], self.outputs[embed_images.STEP]

        def write(folder: Path) -> Mapping[str, Any]:
            if not self.needs_spark:
                return embed_views.embed_views_in_driver(
                    folder,
                    source=self.source,
                    catalogue=catalogued.table("catalogue"),
                    embeddings=embedded.table("embeddings"),
                    task=self._embed_task(EmbedResources(num_cores=None)),
                    progress=partial(self.listener.stage_progressed, embed_views.STEP),
                )
            resources = embed_resources(self.session.spark)
            return embed_views.embed_views(
                self.session.spark,
                folder,
                source=self.source,
                catalogue=catalogued.table("catalogue"),
                embeddings=embedded.table("embeddings"),
                task=self._embed_task(resources),
                resources=resources,
                num_tasks=self._num_embed_tasks,
            )

        inputs = {"embed": embedded.key, "views": describe_views(), "first_view": embed_views.FIRST_VIEW}
        return self.workspace.step(embed_views.STEP, inputs=inputs, write=write, tables=embed_views.TABLES)

    def make_view_terms(self) -> StepOutput:
        viewed, hashed = self.outputs[embed_views.STEP], self.outputs[make_terms.STEP]

        def write(folder: Path) -> Mapping[str, Any]:
            return make_terms.make_terms(
                self._runner(make_terms.STEP_OF_VIEWS, num_rows=viewed.num_rows["views"]),
                folder,
                embeddings=viewed.table("views"),
                params=self.terms,
                num_partitions=hashed.stats["num_parts"],
                is_night=True,
            )

        inputs = {"views": viewed.key, "terms": hashed.key}
        return self.workspace.step(make_terms.STEP_OF_VIEWS, inputs=inputs, write=write, tables=make_terms.TABLES)

    def compare_views(self) -> StepOutput:
        viewed, hashed, selected = (
            self.outputs[step] for step in (embed_views.STEP, make_terms.STEP_OF_VIEWS, select_matches.STEP)
        )

        def write(folder: Path) -> Mapping[str, Any]:
            for name, content in scorer_files(self.model.scorer).items():
                (folder / name).write_bytes(content)
            return compare_views.compare_views(
                self._runner(compare_views.STEP, num_rows=viewed.num_rows["views"]),
                folder,
                whole=self.whole,
                join=self._join(),
                edges=selected.table("edges"),
                num_parts=hashed.stats["num_parts"],
                selection=self.selection,
            )

        inputs = {"view_terms": hashed.key, "select": selected.key, "view_similarity": view_similarity()}
        return self.workspace.step(compare_views.STEP, inputs=inputs, write=write, tables=compare_views.TABLES)

    def cluster(self) -> StepOutput:
        def write(folder: Path) -> Mapping[str, Any]:
            return cluster_matches.cluster_matches(
                folder,
                whole=self.whole,
                decisions=self.decisions,
                before=self.clusters_before(),
                is_update=self.updates_clusters,
                match=select_matches.matcher(self.whole.codes, self.selection),
            )

        return self.workspace.step(
            cluster_matches.STEP, inputs=self.cluster_inputs(), write=write, tables=cluster_matches.TABLES
        )

    def clusters_before(self) -> Known | None:
        """Whose clusters are updated; None cuts from scratch."""
        return None

    @property
    def updates_clusters(self) -> bool:
        """Whether only those clusters are looked at that may have changed."""
        return False

    def cluster_inputs(self) -> dict[str, Any]:
        matched = {
            step: self.outputs[step].key for step in (select_matches.STEP, compare_views.STEP) if step in self.outputs
        }
        return {**matched, "decisions": self.decisions.digest}

    @property
    def needs_spark(self) -> bool:
        """Whether the first steps will ask for Spark: much is new, or it was asked for."""
        return self._num_arrivals > 0 and not self._is_small(self._num_arrivals)

    @property
    def _num_arrivals(self) -> int:
        """Images to look at: all of the source where nothing is known."""
        return self.source.num_images if self.changes is None else len(self.changes.arrivals)

    def _is_small(self, num_new: int) -> bool:
        return num_new <= MAX_DRIVER_DOCS and self.session.is_optional

    def _runner(self, stage: str, *, num_rows: int | None = None) -> TaskRunner:
        """What runs the tasks of a stage over so many rows, one for each image unless given."""
        if not self._is_small(num_rows or self.outputs[catalogue.STEP].num_rows["catalogue"]):
            return SparkRunner(self.session.spark)
        return self._driver_runner(stage)

    def _driver_runner(self, stage: str) -> DriverRunner:
        return DriverRunner(num_cores(), partial(self.listener.stage_progressed, stage))

    def _docs_per_range(self) -> int:
        docs_per_range = min(MAX_DOCS_PER_RANGE, max(1, -(-self.whole.next_doc // self.num_partitions)))
        if docs_per_range < select_matches.DOCS_PER_STRIP:
            return docs_per_range
        return -(-docs_per_range // select_matches.DOCS_PER_STRIP) * select_matches.DOCS_PER_STRIP

    def _stage(self, stage: str, action: Callable[[], StepOutput]) -> None:
        started = time.monotonic()
        self.listener.stage_started(stage)
        told = self.listener
        with self.session.watched(partial(told.stage_progressed, stage), partial(told.stage_waiting, stage)):
            output = action()
        self.outputs[stage] = output
        self.seconds[stage] = round(time.monotonic() - started, 3)
        self.listener.stage_finished(
            stage,
            seconds=self.seconds[stage],
            reused=output.reused,
            num_images=self.outputs[catalogue.STEP].num_rows["catalogue"],
        )

    def _check_rejects(self, num_rejected: int, num_images: int) -> None:
        ratio = num_rejected / num_images
        if num_rejected == num_images:
            raise RejectedError(
                f"none of the {num_images} files in {self.source.path} is a readable image; "
                f"the reasons are in {self.workspace.steps_folder}"
            )
        if ratio > self.settings.max_reject_ratio:
            raise RejectedError(
                f"{num_rejected} of {num_images} images were rejected ({ratio:.1%}), more than max_reject_ratio="
                f"{self.settings.max_reject_ratio}; see the rejects tables in {self.workspace.steps_folder}, "
                "or allow more with --max-reject-ratio"
            )


def run_pipeline(
    settings: RunSettings,
    *,
    listener: Listener | None = None,
    until: str = cluster_matches.STEP,
    and_then: Callable[[Run, Workspace], Any] | None = None,
) -> Run:
    """Run `settings` in its workspace; `and_then` gets the finished run while the workspace is still locked."""
    listener = listener or SilentListener()
    source = open_source(settings.source, uri_root=settings.uri_root)
    with (
        Workspace(settings.workspace, what=f"a run of {settings.source}") as workspace,
        operator_errors(settings.workspace),
    ):
        started = time.monotonic()
        listener.stage_started("start")
        with Session(master=settings.master, log=settings.workspace / "spark.log") as session:
            pipeline = Pipeline(settings, workspace, source, listener=listener, session=session)
            pipeline.start(since=started)
            if until == STEPS[-1]:
                pipeline.begin()
            run = pipeline.run(until=until)
        if and_then is not None:
            and_then(run, workspace)
        return run


def _wherever_workers_run(embedder: str) -> str:
    """The name of a built-in embedder as it is, a directory as an absolute path."""
    return str(Path(embedder).resolve()) if Path(embedder).is_dir() else embedder


if __name__ == "__main__":
    from batch_jobs.submit import main

    main()
