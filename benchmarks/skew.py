"""`python -m benchmarks skew`: what crowds of near-identical images cost, and whether each ends in one cluster.

The same synthetic corpus is deduplicated without and with the crowds, by the real command and one plan, tuned on the
corpus without them; seconds are those of the stages from terms to clusters. Crowds are what large collections hold:
near-identical uploads of one picture, variants of a template, and blank images whose embeddings are equal.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.batch_embeddings import plant_crowd, plant_embeddings
from benchmarks.neardup_run import NeardupRun, run_measured, run_neardup
from benchmarks.results import versions, write_json
from benchmarks.spark_events import keep_events, shuffle_bytes
from cli.tables import show_table

STAGES = ("terms", "candidates", "select", "cluster")
CROWD_COSINES = {"near-identical": 0.98, "template": 0.95, "blank": 1.0}
MIN_SCORE = 0.79
IMAGES_PER_PARTITION = 125_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One corpus: seconds by stage and core-seconds (medians over runs), memory, shuffled bytes, what was cut.

    `crowd_shares` are, for each crowd, the largest share of its images in one cluster.
    """

    case: str
    images: int
    seconds: float
    cpu_s: float
    stage_s: dict[str, float]
    peak_mb: float
    shuffle_bytes: int
    edges: int
    cut_buckets: int
    cut_pairs: int
    crowd_shares: dict[str, float]


def with_crowds(
    rows: NDArray[np.float32], crowds: Mapping[str, int], *, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`rows` and crowds of these sizes in one random order; and each row's crowd by its place in `crowds`, else -1."""
    parts, crowd_of = [rows], [np.full(len(rows), -1)]
    for number, (name, size) in enumerate(crowds.items()):
        parts.append(plant_crowd(size, cosine=CROWD_COSINES[name], seed=seed + number))
        crowd_of.append(np.full(size, number))
    order = np.random.default_rng(seed).permutation(sum(map(len, parts)))
    return np.concatenate(parts)[order], np.concatenate(crowd_of)[order]


def crowd_shares(crowd_of: NDArray[np.int64], crowds: Mapping[str, int], clusters: Path) -> dict[str, float]:
    """The largest share of each crowd that one cluster of the table `clusters` holds; an image id is its row number."""
    import pyarrow.parquet as pq

    table = pq.read_table(clusters, columns=["image_id", "canonical_id"])
    canonical_of = np.arange(len(crowd_of))
    canonical_of[_rows(table["image_id"])] = _rows(table["canonical_id"])
    return {
        name: float(np.bincount(canonical_of[crowd_of == number]).max() / size) if size else 1.0
        for number, (name, size) in enumerate(crowds.items())
    }


def _rows(image_ids: Any) -> NDArray[np.int64]:
    import pyarrow as pa

    rows: NDArray[np.int64] = image_ids.cast(pa.int64()).to_numpy()
    return rows


def _write(path: Path, rows: NDArray[np.float32]) -> None:
    image_ids = np.char.zfill(np.arange(len(rows)).astype(np.str_), 9)
    np.savez(path, image_ids=image_ids, embeddings=rows, digest=np.array("skew"))


def _run(embeddings: Path, plan: Path, *, num_images: int, master: str) -> tuple[NeardupRun, int]:
    with tempfile.TemporaryDirectory(dir=embeddings.parent) as events:
        workspace = Path(tempfile.mkdtemp(dir=embeddings.parent))
        arguments = ["dedup", str(embeddings), "--workspace", str(workspace), "--min-score", str(MIN_SCORE)]
        arguments += ["--plan", str(plan), "--master", master]
        arguments += ["--partitions", str(max(4, num_images // IMAGES_PER_PARTITION))]
        run = run_neardup(arguments, environment=keep_events(Path(events)))
        return run, shuffle_bytes(Path(events))


@click.command()
@click.option("--images", "num_images", type=click.IntRange(min=10_000), default=200_000, show_default=True)
@click.option("--cluster", type=click.IntRange(min=0), default=110_000, show_default=True, help="Near-identical ones.")
@click.option("--template", type=click.IntRange(min=0), default=0, show_default=True, help="Variants of a template.")
@click.option("--blank", type=click.IntRange(min=0), default=0, show_default=True, help="Of equal embeddings.")
@click.option("--runs", "num_runs", type=click.IntRange(1), default=1, show_default=True, help="Of each, in turns.")
@click.option("--master", default="local[2]", show_default=True, help="Spark master.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(
    *,
    num_images: int,
    cluster: int,
    template: int,
    blank: int,
    num_runs: int,
    master: str,
    seed: int,
    json_path: Path | None,
) -> None:
    """Deduplicate a corpus without and with crowds of near-identical images: time, memory, one cluster each.

    Example: python -m benchmarks skew --images 200000 --cluster 110000 --json skew.json
    """
    crowds = {"near-identical": cluster, "template": template, "blank": blank}
    num_others = num_images - sum(crowds.values())
    if num_others < 2000:
        raise click.UsageError(f"{sum(crowds.values()):,} of {num_images:,} images are crowds; leave 2,000 others")
    with tempfile.TemporaryDirectory(prefix="neardup-benchmark-") as scratch:
        without, crowded, plan = (Path(scratch) / name for name in ("without.npz", "with.npz", "plan.json"))
        rows = plant_embeddings(num_others, seed=seed).embeddings
        _write(without, rows)
        rows, crowd_of = with_crowds(rows, crowds, seed=seed)
        _write(crowded, rows)
        del rows
        arguments = ["tune", str(without), "--min-score", str(MIN_SCORE), "--output", str(plan), "--json"]
        run_measured(["-m", "cli", *arguments])
        runs: dict[str, list[tuple[NeardupRun, int]]] = {"without": [], "with": []}
        for _ in range(num_runs):
            runs["without"].append(_run(without, plan, num_images=num_others, master=master))
            runs["with"].append(_run(crowded, plan, num_images=num_images, master=master))
        shares = crowd_shares(crowd_of, crowds, runs["with"][0][0].output("clusters"))
        figures = [
            _row("without", num_others, runs["without"], {}),
            _row("with", num_images, runs["with"], {name: shares[name] for name in crowds if crowds[name]}),
        ]
    ratio = figures[1].seconds / figures[0].seconds
    packages = versions("pyspark", "numba", "numpy", "pyarrow")
    _show(figures, ratio)
    click.echo("  ".join(f"{package} {version}" for package, version in packages.items()))
    write_json(
        json_path,
        {
            "benchmark": "skew",
            "crowds": crowds,
            "runs": num_runs,
            "master": master,
            "seed": seed,
            "versions": packages,
            "ratio": ratio,
            "rows": [asdict(row) for row in figures],
        },
    )


def _row(case: str, num_images: int, runs: list[tuple[NeardupRun, int]], shares: dict[str, float]) -> Row:
    import pyarrow.dataset

    first = runs[0][0]
    stage_s = {stage: median(run.stage_s[stage] for run, _ in runs) for stage in STAGES}
    return Row(
        case=case,
        images=num_images,
        seconds=sum(stage_s.values()),
        cpu_s=median(run.cpu_s for run, _ in runs),
        stage_s=stage_s,
        peak_mb=max(run.peak_mb for run, _ in runs),
        shuffle_bytes=runs[0][1],
        edges=pyarrow.dataset.dataset(first.output("edges"), format="parquet").count_rows(),
        cut_buckets=first.summary["cut_buckets"],
        cut_pairs=first.summary["cut_pairs"],
        crowd_shares=shares,
    )


def _show(figures: list[Row], ratio: float) -> None:
    show_table(
        f"Crowds: {ratio:.2f} times the seconds of the corpus without them",
        [
            "corpus",
            "images",
            "seconds",
            "CPU s",
            *STAGES,
            "memory",
            "shuffled",
            "edges",
            "cut buckets",
            "in one cluster",
        ],
        [
            [
                row.case,
                f"{row.images:,}",
                f"{row.seconds:,.1f}",
                f"{row.cpu_s:,.1f}",
                *(f"{row.stage_s[stage]:,.1f}" for stage in STAGES),
                f"{row.peak_mb:,.0f} MB",
                f"{row.shuffle_bytes / 1e6:,.0f} MB",
                f"{row.edges:,}",
                f"{row.cut_buckets:,}",
                ", ".join(f"{name} {share:.4f}" for name, share in row.crowd_shares.items()),
            ]
            for row in figures
        ],
    )
