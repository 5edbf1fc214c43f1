"""A run as sections of a few rows, the same for a terminal, for JSON and for a page."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from batch_jobs.errors import WorkspaceError
from batch_jobs.run_diff import RunDiff, diff_runs
from batch_jobs.run_drift import Drift, drift
from batch_jobs.run_records import (
    RunRecord,
    StepRecord,
    finished_runs,
    is_running,
    list_records,
    read_record,
    undone_runs,
)
from cli.report.wording import format_bytes, format_seconds, format_share

COUNTS = (
    "images",
    "known",
    "new",
    "changed",
    "removed",
    "rejected",
    "exact_copies",
    "clusters",
    "duplicates",
    "candidates",
)
SKEW = ("num_buckets", "largest_bucket", "num_cut_buckets", "num_cut_pairs")


@dataclass(frozen=True, slots=True)
class Section:
    """A small table: its title, the names of its columns (empty names: no header) and its rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """All that is said about a run. `changes` is None for a first run, or the reason why there are none to tell."""

    record: RunRecord
    state: str
    changes: RunDiff | str | None
    drift: Sequence[Drift]

    def to_json(self) -> dict[str, Any]:
        """The record with its state, changes, drift and what the plan foretold beside what came."""
        return {
            **self.record.to_json(),
            "state": self.state,
            "changes": self.changes.to_json() if isinstance(self.changes, RunDiff) else None,
            "drift": [{**asdict(one), "is_unusual": one.is_unusual} for one in self.drift],
            "foretold": foretold(self.record),
        }


def summarize(workspace: Path, record: RunRecord) -> RunSummary:
    """Read what there is to say about a run."""
    changes: RunDiff | str | None = None
    if record.is_finished and record.parent is not None:
        try:
            changes = diff_runs(workspace, read_record(workspace, record.parent), record)
        except WorkspaceError as error:
            changes = str(error)
    return RunSummary(
        record=record,
        state=state_of(workspace, record, undone_runs(workspace, list_records(workspace)[0])),
        changes=changes,
        drift=drift(record, finished_runs(workspace, before=record)) if record.is_finished else (),
    )


def state_of(workspace: Path, record: RunRecord, undone: Collection[str]) -> str:
    """`finished`, `collected` (finished, its tables removed since), `running`, or `unfinished` with its last step.

    A finished night that is among the `undone` runs is `undone`.
    """
    if record.run_id in undone:
        return "undone"
    if record.is_finished:
        is_whole = all((workspace / "steps" / step.folder_name).is_dir() for step in record.steps)
        return "finished" if is_whole else "collected"
    if is_running(workspace, record):
        return "running"
    return f"unfinished after {record.steps[-1].step}" if record.steps else "unfinished"


def foretold(record: RunRecord) -> dict[str, dict[str, float | None]]:
    """What the plan of `neardup tune` foretold beside what came, per image where it grows with images; {} without one.

    `core_s` are core-seconds of the kernels; what came is wall time times cores, with Spark and the disk.
    """
    prediction = record.settings.get("prediction")
    hashed = record.step("terms")
    if not prediction or hashed is None:
        return {}
    num_docs = hashed.num_rows.get("codes") or 0
    found = record.step("candidates")
    steps = [step for name in ("terms", "candidates", "select") if (step := record.step(name)) is not None]

    def per_image(value: float | None) -> float | None:
        return None if value is None or not num_docs else value / num_docs

    came: dict[str, float | None] = {
        "candidates": per_image(record.stat("select", "num_distinct_pairs")),
        "largest_bucket": record.stat("candidates", "largest_bucket"),
        "term_block_bytes": per_image(hashed.stats.get("block_bytes")),
        "pair_block_bytes": per_image(found.size_bytes.get("pair_blocks") if found else None),
        "core_s": per_image(sum(step.seconds for step in steps) * record.num_cores),
    }
    said = {**prediction, "core_s": sum(prediction[name] for name in ("hash_s", "join_s", "verify_s"))}
    return {name: {"foretold": said[name], "came": value} for name, value in came.items()}


def sections(summary: RunSummary) -> list[Section]:
    """The sections that have something to say, in the order in which an operator asks."""
    record = summary.record
    made = [
        _run(summary),
        _counts(record),
        _steps(record),
        _skew(record),
        _rejects(record),
        _foretold(record),
        _changes(summary.changes, record.parent),
        _drift(summary.drift),
        _settings(record),
    ]
    return [section for section in made if section.rows]


def describe_diff(diff: RunDiff) -> list[Section]:
    """How much differs, and then some of each."""
    examples = [
        Section(
            _worded(name),
            ("",),
            tuple((" → ".join(one) if "anew" in name else "  ".join(one),) for one in found.examples),
        )
        for name, found in diff.named().items()
    ]
    return [_changes(diff, diff.before), *(section for section in examples if section.rows)]


def _run(summary: RunSummary) -> Section:
    record = summary.record
    rows = [
        ("state", summary.state),
        ("source", record.source),
        ("started", record.started_at),
        ("finished", record.finished_at or "not yet"),
        ("machine", f"{record.host}, {record.num_cores} cores, neardup {record.release}"),
        ("previous run", record.parent or "none"),
        ("embedder", record.embedder_digest[:16]),
        ("lowest score", f"{record.min_score:g}"),
        ("decisions by hand", f"{record.num_decisions:,}"),
    ]
    return Section(f"run {record.run_id}", ("", ""), tuple(rows))


def _counts(record: RunRecord) -> Section:
    results = record.results
    rows = [(_worded(name), f"{results[name]:,}", _share(results, name)) for name in COUNTS if name in results]
    if "reclaimable_bytes" in results:
        rows.append(("could be freed", format_bytes(results["reclaimable_bytes"]), ""))
    total_s = sum(record.seconds.values())
    num_looked_at = results["new"] + results["changed"] if "new" in results else results.get("images")
    if num_looked_at and total_s:
        rows.append(("images a second", f"{num_looked_at / total_s:,.0f}", "all stages"))
    return Section("counts", ("", "number", "of images"), tuple(rows))


def _share(results: Mapping[str, Any], name: str) -> str:
    return "" if name in ("images", "candidates", "clusters") else format_share(results[name], results["images"])


def _steps(record: RunRecord) -> Section:
    rows = [_step(step, record.seconds.get(step.step)) for step in record.steps]
    others = [
        (stage, "", format_seconds(seconds), "", "", "")
        for stage, seconds in record.seconds.items()
        if record.step(stage) is None
    ]
    return Section("stages", ("stage", "made in", "this run", "rows", "size", "rows a second"), (*rows, *others))


def _step(step: StepRecord, wall_s: float | None) -> tuple[str, ...]:
    num_rows = sum(step.num_rows.values())
    return (
        step.step,
        format_seconds(step.seconds),
        "reused" if step.reused else "" if wall_s is None else format_seconds(wall_s),
        f"{num_rows:,}",
        format_bytes(sum(step.size_bytes.values())),
        f"{num_rows / step.seconds:,.0f}" if step.seconds else "",
    )


def _skew(record: RunRecord) -> Section:
    counted = [(name, record.stat("candidates", name)) for name in SKEW]
    rows = [(_worded(name), f"{value:,}") for name, value in counted if value is not None]
    hashed, found = record.step("terms"), record.step("candidates")
    if rows and hashed and found:
        shuffled = hashed.stats.get("block_bytes", 0) + found.size_bytes.get("pair_blocks", 0)
        rows.append(("bytes of shuffled blocks", format_bytes(shuffled)))
    return Section("skew", ("", ""), tuple(rows))


def _rejects(record: RunRecord) -> Section:
    reasons: Mapping[str, int] = record.results.get("rejects_by_reason", {})
    return Section("rejects", ("reason", "images"), tuple((_worded(name), f"{n:,}") for name, n in reasons.items()))


def _foretold(record: RunRecord) -> Section:
    rows = [
        (_worded(name), _figure(both["foretold"]), _figure(both["came"])) for name, both in foretold(record).items()
    ]
    return Section("plan, per image", ("", "foretold", "came"), tuple(rows))


def _changes(changes: RunDiff | str | None, parent: str | None) -> Section:
    title = f"changes since {parent}"
    if changes is None or isinstance(changes, str):
        return Section(title, ("", ""), (("not known", changes),) if changes else ())
    rows = tuple((_worded(name), f"{count:,}") for name, count in changes.counts().items())
    return Section(title, ("", ""), rows)


def _drift(found: Sequence[Drift]) -> Section:
    num_runs = max((one.num_runs for one in found), default=0)
    if not num_runs:
        return Section("drift", (), ())
    rows = [
        (
            one.figure,
            _figure(one.value),
            _figure(one.median),
            _figure(one.lowest),
            _figure(one.highest),
            "unusual" if one.is_unusual else "",
        )
        for one in found
    ]
    runs = "the run before" if num_runs == 1 else f"the {num_runs} runs before"
    return Section(f"drift against {runs}", ("", "now", "median", "lowest", "highest", ""), tuple(rows))


def _settings(record: RunRecord) -> Section:
    flat: list[tuple[str, str]] = []
    for name, value in record.settings.items():
        if name == "prediction":
            continue
        if isinstance(value, Mapping):
            flat.extend((f"{name}.{key}", str(one)) for key, one in value.items())
        else:
            flat.append((name, "default" if value is None else str(value)))
    return Section("settings", ("", ""), tuple(flat))


def _figure(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def _worded(name: str) -> str:
    """A field's name as words.

    >>> _worded("num_cut_pairs"), _worded("images_added")
    ('cut pairs', 'images added')
    """
    return name.removeprefix("num_").replace("_", " ")
