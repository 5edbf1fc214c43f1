"""What a finished run hands to people: `clusters.csv`, `clusters.jsonl`, `rejects.parquet` in `runs/<run>/`.

A night that updates clusters hands over those that it has made or changed, whole, and in `unclustered.csv` the images
that are in none any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from batch_jobs import catalogue, cluster_matches, compare_views, embed_images, find_candidates, select_matches
from batch_jobs.assignments import read_clusters
from batch_jobs.cluster_lines import CSV_HEADER, csv_lines, id_lines, json_lines
from batch_jobs.errors import BatchError
from batch_jobs.make_terms import binary_values
from batch_jobs.nights import Known
from batch_jobs.pipeline import Run
from batch_jobs.workspace import Workspace, published_file

OWN_TABLES = (
    (catalogue.STEP, "catalogue"),
    (embed_images.STEP, "embeddings"),
    (select_matches.STEP, "edges"),
    (compare_views.STEP, "view_edges"),
)
"""Tables that hold what the run itself has added; a night without new images adds none."""


def export_run(run: Run, workspace: Workspace) -> dict[str, str]:
    """Write the run's files, each in one atomic step; returns the path of every table and file by name."""
    folder = run_folder(run, workspace)
    folder.mkdir(exist_ok=True)
    clusters = run.steps[cluster_matches.STEP].table("clusters")
    unclustered = run.steps[cluster_matches.STEP].table("unclustered")
    names = ("clusters.csv", "clusters.jsonl", "unclustered.csv", "rejects.parquet")
    paths = {name: folder / name for name in names}
    with ThreadPoolExecutor() as pool:
        written = [
            pool.submit(_write_lines, _batches(clusters), paths["clusters.csv"], csv_lines, header=CSV_HEADER),
            pool.submit(_write_lines, _batches(clusters), paths["clusters.jsonl"], json_lines),
            pool.submit(_write_lines, _batches(unclustered), paths["unclustered.csv"], id_lines, header="image_id\n"),
        ]
        with published_file(paths["rejects.parquet"]) as file:
            pq.write_table(read_rejects(run), file)
        for one in written:
            one.result()
    return {
        "clusters": clusters,
        "clusters_csv": str(paths["clusters.csv"]),
        "clusters_jsonl": str(paths["clusters.jsonl"]),
        "unclustered_csv": str(paths["unclustered.csv"]),
        "rejects": str(paths["rejects.parquet"]),
        **{name: run.steps[step].table(name) for step, name in OWN_TABLES if step in run.steps},
    }


def run_counts(run: Run) -> dict[str, Any]:
    """What a finished run has counted, for its record and its summary.

    `images` counts every file seen, `exact_copies` those with the bytes of an earlier one.
    """
    rejects = count_rejects(run)
    counts = run.steps[cluster_matches.STEP].stats
    return {
        "images": run.num_images,
        "rejected": sum(rejects.values()),
        "rejects_by_reason": rejects,
        "exact_copies": counts["num_exact_copies"],
        "clusters": counts["num_clusters"],
        "duplicates": counts["num_duplicates"],
        "reclaimable_bytes": counts["reclaimable_bytes"],
        "candidates": run.steps[select_matches.STEP].stats["num_distinct_pairs"],
        "view_matches": run.steps[compare_views.STEP].num_rows["view_edges"] if compare_views.STEP in run.steps else 0,
        "cut_buckets": run.steps[find_candidates.STEP].stats["num_cut_buckets"],
        "cut_pairs": run.steps[find_candidates.STEP].stats["num_cut_pairs"],
        "min_score": run.model.min_score,
        "embedder_digest": run.model.digest,
        "run_id": run.run_id,
    }


def run_folder(run: Run, workspace: Workspace) -> Path:
    return workspace.runs_folder / run.run_id


def read_rejects(run: Run) -> pa.Table:
    """The rejects of all steps, by image id."""
    steps = (run.steps[name] for name in (catalogue.STEP, embed_images.STEP) if name in run.steps)
    tables = [pq.read_table(step.table("rejects")) for step in steps]
    return pa.concat_tables(tables).sort_by([("image_id", "ascending"), ("stage", "ascending")])


def count_rejects(run: Run) -> dict[str, int]:
    """Rejected images by reason, most frequent first."""
    return dict(Counter(read_rejects(run)["reason"].to_pylist()).most_common())


def iterate_clusters(table: str) -> Iterator[dict[str, Any]]:
    """The rows of `clusters` in their order."""
    for batch in _batches(table):
        yield from batch.to_pylist()


def export_clusters(whole: Known, path: Path) -> int:
    """Write all clusters as CSV, JSON lines or Parquet, as the path ends; returns how many rows they have.

    Raises BatchError for another ending.
    """
    clusters = read_clusters(whole)
    if path.suffix == ".csv":
        _write_lines(clusters.to_batches(), path, csv_lines, header=CSV_HEADER)
    elif path.suffix == ".jsonl":
        _write_lines(clusters.to_batches(), path, json_lines)
    elif path.suffix == ".parquet":
        with published_file(path) as file:
            pq.write_table(clusters, file)
    else:
        raise BatchError(f"{path} ends in {path.suffix or 'nothing'}; clusters are written as .csv, .jsonl or .parquet")
    return len(clusters)


def _batches(table: str) -> Iterable[pa.RecordBatch]:
    batches: Iterable[pa.RecordBatch] = pyarrow.dataset.dataset(table, format="parquet").to_batches()
    return batches


def _write_lines(
    batches: Iterable[pa.RecordBatch], path: Path, lines: Callable[[pa.RecordBatch], pa.Array], *, header: str = ""
) -> None:
    with published_file(path) as file:
        file.write(header.encode())
        for batch in batches:
            file.write(binary_values(lines(batch)))
