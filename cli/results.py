"""What a finished `dedup` says: counts, seconds, outputs; as a summary for people and as one JSON object."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from batch_jobs.exports import export_run, run_counts, run_folder
from batch_jobs.listeners import Listener
from batch_jobs.pipeline import Run
from batch_jobs.run_records import finish_record
from batch_jobs.workspace import Workspace
from cli.dedup_report import write_dedup_report


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The counts of a run. `images` counts every file seen, `exact_copies` those with the bytes of an earlier one.

    `cut_pairs` pairs of `cut_buckets` crowded LSH buckets were not compared one by one; `view_matches` pairs match by a
    view of one of them alone.
    """

    images: int
    rejected: int
    rejects_by_reason: dict[str, int]
    exact_copies: int
    clusters: int
    duplicates: int
    reclaimable_bytes: int
    candidates: int
    view_matches: int
    cut_buckets: int
    cut_pairs: int
    min_score: float
    embedder_digest: str
    run_id: str
    seconds: dict[str, float]
    outputs: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def finish_run(run: Run, workspace: Workspace, *, report: Path | None, listener: Listener) -> Results:
    """Write the run's exports and its report, then mark its record as complete."""
    listener.stage_started("report")
    started = time.monotonic()
    outputs = export_run(run, workspace)
    folder = run_folder(run, workspace)
    outputs["report"] = str(report or folder / "report.html")
    outputs["run"] = str(folder / "run.json")
    partial = {**run_counts(run), "outputs": outputs}
    write_dedup_report(run, partial, Path(outputs["report"]))
    seconds = {**run.seconds, "report": round(time.monotonic() - started, 3)}
    results = Results(**partial, seconds=seconds)
    finish_record(workspace, run.run_id, seconds=seconds, results=partial)
    listener.stage_finished("report", seconds=seconds["report"], reused=False, num_images=0)
    return results


def describe_results(results: Results) -> str:
    """The summary.

    Counts first, then where the time went, then where to look.
    """
    lines = [
        _row("images", f"{results.images:,}"),
        _row("rejected", f"{results.rejected:,}{_reasons(results.rejects_by_reason)}"),
        _row("exact copies", f"{results.exact_copies:,}"),
        _row("clusters", f"{results.clusters:,}"),
        _row("duplicates found", f"{results.duplicates:,}"),
        *([_row("matches by a view", f"{results.view_matches:,}")] if results.view_matches else []),
        _row("could be freed", human_bytes(results.reclaimable_bytes)),
        *([_row("crowded buckets", _cut(results))] if results.cut_buckets else []),
        "",
        _row("seconds", "   ".join(f"{stage} {seconds:.1f}" for stage, seconds in results.seconds.items())),
        _row("lowest score", f"{results.min_score:g}"),
        "",
        _row("clusters", results.outputs["clusters_csv"]),
        _row("report", results.outputs["report"]),
    ]
    return "\n".join(lines)


def human_bytes(size_bytes: int) -> str:
    """A size for people.

    >>> human_bytes(0), human_bytes(1536), human_bytes(5 << 30)
    ('0 B', '1.5 KiB', '5.0 GiB')
    """
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def _row(label: str, value: str) -> str:
    return f"{label:<18}{value}"


def _cut(results: Results) -> str:
    return f"{results.cut_buckets:,}, {results.cut_pairs:,} pairs in them not compared"


def _reasons(rejects: dict[str, int]) -> str:
    return f"  ({', '.join(f'{count:,} {reason}' for reason, count in rejects.items())})" if rejects else ""
