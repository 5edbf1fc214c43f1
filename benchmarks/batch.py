"""`python -m benchmarks batch`: all near pairs among given embeddings, ours beside what a user could take instead.

Every contender finds and verifies the pairs of at least `--min-score` in the same embeddings, in a process of its own.
Ours is the real command with the plan of `neardup tune`: its seconds are those of the stages terms, candidates and
select. Recall is against brute force on a slice of rows, all of their pairs. A contender that does not survive the
full size runs at its own, beside ours at that size.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.batch_embeddings import CROWDINGS, embed_photos, plant_embeddings, row_cosines
from benchmarks.batch_peers import PEERS, Job, pair_keys
from benchmarks.neardup_run import run_measured, run_neardup
from benchmarks.results import versions, write_json
from benchmarks.spark_events import keep_events, shuffle_bytes
from cli.tables import show_table

OURS = "ours"
STAGES = ("terms", "candidates", "select")
MAX_IMAGES = {"hnsw": 250_000, "spark-rows": 100_000, "datasketch": 20_000, "mllib": 40_000}
SLICE_ROWS = 2000
COSINES = (0.79, 0.85, 0.9, 0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender on one case; `ratio` is its seconds over ours of the same case and size, None until it is known.

    `recall_by_cosine` and `true_pairs` go by the band's label; `share_searched` below 1 means extrapolated seconds.
    `shuffle_bytes` are Spark's and those of blocks in files. `cpu_s` are core-seconds of the whole command, Spark's
    start included; `disk_bytes` those of its workspace.
    """

    case: str
    contender: str
    images: int
    seconds: float
    recall: float
    ratio: float | None = None
    recall_by_cosine: dict[str, float]
    true_pairs: dict[str, int]
    peak_mb: float
    shuffle_bytes: int
    cpu_s: float = 0.0
    disk_bytes: int = 0
    share_searched: float = 1.0
    setting: str = ""
    stage_s: dict[str, float] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """All pairs `(m, 2)` of the rows of the slice, left row in the slice, with their exact `cosines` `(m,)`."""

    slice_rows: NDArray[np.int64]
    pairs: NDArray[np.int64]
    cosines: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Case:
    """Embeddings in an .npz that `neardup dedup` reads, and the folder for everything made of them."""

    name: str
    num_images: int
    embeddings: Path
    folder: Path
    min_similarity: float
    master: str | None

    def job(self, contender: str, *, target_recall: float, plan: dict[str, Any]) -> Job:
        """The job of one contender."""
        return Job(
            embeddings=str(self.embeddings),
            truth=str(self.folder / "truth.npz"),
            pairs=str(self.folder / f"{contender}.npz"),
            min_similarity=self.min_similarity,
            target_recall=target_recall,
            plan=plan,
            master=self.master,
        )


def found_pairs(wanted: NDArray[np.int64], edges: NDArray[np.int64], *, num_images: int) -> NDArray[np.bool_]:
    """For each wanted pair whether it is among `edges`; both `(*, 2)` rows, in any order of their ends."""
    return np.isin(pair_keys(wanted, num_images), pair_keys(edges, num_images))


def read_edges(edges: Path, catalogue: Path) -> NDArray[np.int64]:
    """`(m, 2)` row numbers of the matches; an image id is its row number in digits, the catalogue maps docs to ids."""
    import pyarrow.parquet as pq

    images = pq.read_table(catalogue, columns=["doc", "image_id"])
    docs = images["doc"].to_numpy()
    row_of_doc = np.full(int(docs.max()) + 1, -1, dtype=np.int64)
    row_of_doc[docs] = np.array(images["image_id"].to_pylist(), dtype=np.str_).astype(np.int64)
    ends = pq.read_table(edges, columns=["left_doc", "right_doc"])
    return np.column_stack([row_of_doc[ends[column].to_numpy()] for column in ("left_doc", "right_doc")])


def bytes_below(folder: Path) -> int:
    """The sizes of all files below `folder` together."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def block_bytes(workspace: Path) -> int:
    """The sizes of all blocks that our tasks hand to one another in files, which Spark does not count."""
    of_terms: int = sum(
        json.loads(commit.read_text())["stats"]["block_bytes"]
        for commit in workspace.glob("steps/*terms-*/commit.json")
    )
    return of_terms + sum(map(bytes_below, workspace.glob("steps/*/pair_blocks")))


def recall_by_cosine(
    truth: Truth, found: NDArray[np.bool_], min_similarity: float
) -> tuple[dict[str, float], dict[str, int]]:
    """Recall and number of true pairs of each band of cosines from `min_similarity` up; a band without pairs has 1."""
    bounds = [min_similarity, *(bound for bound in COSINES if bound > min_similarity), 1.01]
    recall, num_pairs = {}, {}
    for low, high in pairwise(bounds):
        inside = (truth.cosines >= low) & (truth.cosines < high)
        label = f"{low:.2f}-{min(high, 1.0):.2f}"
        recall[label] = float(found[inside].mean()) if inside.any() else 1.0
        num_pairs[label] = int(inside.sum())
    return recall, num_pairs


def write_case(
    rows: NDArray[np.float32], *, name: str, folder: Path, min_similarity: float, master: str | None, seed: int
) -> Case:
    """The embeddings as an .npz in a new `folder`, with the slice drawn but its truth not yet known."""
    folder.mkdir()
    embeddings = folder / "embeddings.npz"
    image_ids = np.char.zfill(np.arange(len(rows)).astype(np.str_), 9)
    np.savez(embeddings, image_ids=image_ids, embeddings=rows, digest=np.array(f"{name}-{seed}"))
    drawn = np.random.default_rng(seed).choice(len(rows), min(SLICE_ROWS, len(rows)), replace=False)
    case = Case(name, len(rows), embeddings, folder, min_similarity, master)
    np.savez(folder / "truth.npz", slice=np.sort(drawn), pairs=np.empty((0, 2), np.int64))
    return case


def run_case(case: Case, contenders: Sequence[str], *, num_runs: int, target_recall: float) -> list[Row]:
    """Flat search for the truth, ours, then the other contenders set to our recall; ratios are of this case."""
    brute, found = _run_peer("flat", case.job("flat", target_recall=1.0, plan={}), case, truth=None)
    truth = _truth(case, found)
    plan = _plan(case, target_recall)
    ours = [_run_ours(case, truth, plan, number) for number in range(num_runs)]
    best = sorted(ours, key=lambda row: row.seconds)[len(ours) // 2]
    rows = [replace(best, seconds=median(row.seconds for row in ours))]
    if "flat" in contenders:
        rows.append(_judged(brute, found, truth, case))
    for contender in contenders:
        if contender == "flat":
            continue
        job = case.job(contender, target_recall=rows[0].recall, plan=plan)
        try:
            row, found = _run_peer(contender, job, case, truth=truth)
        except click.ClickException as failure:
            click.echo(f"{contender} is left out at {case.num_images:,} images: {failure.message}", err=True)
            continue
        rows.append(_judged(row, found, truth, case))
    return [replace(row, ratio=row.seconds / rows[0].seconds) for row in rows]


def _plan(case: Case, target_recall: float) -> dict[str, Any]:
    arguments = ["tune", str(case.embeddings), "--min-score", str(case.min_similarity), "--json"]
    arguments += ["--target-recall", str(target_recall), "--output", str(case.folder / "plan.json")]
    run_measured(["-m", "cli", *arguments])
    plan: dict[str, Any] = json.loads((case.folder / "plan.json").read_text(encoding="utf-8"))
    return plan


def _run_ours(case: Case, truth: Truth, plan: Mapping[str, Any], number: int) -> Row:
    with _event_folder(case, f"{OURS}-{number}") as events:
        arguments = ["dedup", str(case.embeddings), "--workspace", str(case.folder / f"workspace-{number}")]
        arguments += ["--min-score", str(case.min_similarity), "--plan", str(case.folder / "plan.json")]
        arguments += ["--master", case.master] if case.master else []
        run = run_neardup(arguments, environment=keep_events(Path(events)))
        moved = shuffle_bytes(Path(events)) + block_bytes(case.folder / f"workspace-{number}")
    edges = read_edges(run.output("edges"), run.output("catalogue"))
    terms = plan["terms"]
    row = Row(
        case=case.name,
        contender=OURS,
        images=case.num_images,
        seconds=sum(run.stage_s[stage] for stage in STAGES),
        recall=0.0,
        recall_by_cosine={},
        true_pairs={},
        peak_mb=run.peak_mb,
        shuffle_bytes=moved,
        cpu_s=run.cpu_s,
        disk_bytes=bytes_below(case.folder / f"workspace-{number}"),
        setting=f"{terms['num_tables']} tables of {terms['family']}",
        stage_s=run.stage_s,
    )
    return _judged(row, edges, truth, case)


def _run_peer(contender: str, job: Job, case: Case, *, truth: Truth | None) -> tuple[Row, NDArray[np.int64]]:
    job_path = case.folder / f"{contender}.json"
    job_path.write_text(json.dumps(asdict(job)), encoding="utf-8")
    with _event_folder(case, contender) as events:
        ran = run_measured(
            ["-m", "benchmarks.batch_peers", contender, str(job_path)], environment=keep_events(Path(events))
        )
        moved = shuffle_bytes(Path(events))
    did = json.loads(ran.printed.splitlines()[-1])
    with np.load(job.pairs) as arrays:
        found = arrays["pairs"]
    row = Row(
        case=case.name,
        contender=contender,
        images=case.num_images,
        seconds=did["seconds"],
        recall=1.0 if truth is None else 0.0,
        recall_by_cosine={},
        true_pairs={},
        peak_mb=ran.peak_mb,
        shuffle_bytes=moved,
        cpu_s=ran.cpu_s,
        share_searched=did["share_searched"],
        setting=did["setting"],
    )
    return row, found


def _event_folder(case: Case, contender: str) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix=f"events-{contender}-", dir=case.folder)


def _truth(case: Case, pairs: NDArray[np.int64]) -> Truth:
    """The truth that flat search found, also written for the contenders."""
    with np.load(case.embeddings) as arrays:
        rows = arrays["embeddings"]
    with np.load(case.folder / "truth.npz") as arrays:
        slice_rows = arrays["slice"]
    np.savez(case.folder / "truth.npz", slice=slice_rows, pairs=pairs)
    return Truth(slice_rows, pairs, row_cosines(rows, pairs[:, 0], pairs[:, 1]))


def _judged(row: Row, found: NDArray[np.int64], truth: Truth, case: Case) -> Row:
    is_found = found_pairs(truth.pairs, found, num_images=case.num_images)
    recall, num_pairs = recall_by_cosine(truth, is_found, case.min_similarity)
    overall = float(is_found.mean()) if len(is_found) else 1.0
    return replace(row, recall=overall, recall_by_cosine=recall, true_pairs=num_pairs)


def sizes_of(contenders: Sequence[str], num_images: int) -> dict[int, list[str]]:
    """The contenders by the number of images that each of them gets, largest first."""
    sizes: dict[int, list[str]] = {num_images: []}
    for contender in contenders:
        sizes.setdefault(min(num_images, MAX_IMAGES.get(contender, num_images)), []).append(contender)
    return dict(sorted(sizes.items(), reverse=True))


def _chosen(_context: click.Context, _option: click.Parameter, names: str) -> list[str]:
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in PEERS]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)} is unknown; choose of {', '.join(PEERS)}")
    return chosen


@click.command()
@click.option("--images", "num_images", type=click.IntRange(min=2000), default=100_000, show_default=True)
@click.option("--peers", callback=_chosen, default=",".join(PEERS), show_default=True, help="Empty: ours alone.")
@click.option(
    "--photos", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Embed these, not synthetic."
)
@click.option(
    "--crowding",
    type=click.Choice(list(CROWDINGS)),
    default="spread",
    show_default=True,
    help="Synthetic embeddings as an earlier embedder made them, or as the one shipped does.",
)
@click.option("--min-score", type=click.FloatRange(0.3, 0.999), default=0.79, show_default=True)
@click.option("--target-recall", type=click.FloatRange(0.1, 0.9999), default=0.97, show_default=True)
@click.option(
    "--runs", "num_runs", type=click.IntRange(1), default=1, show_default=True, help="Of ours; the median counts."
)
@click.option("--master", help="Spark master. [default: this machine, without Spark for small steps of ours]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(
    *,
    num_images: int,
    peers: list[str],
    photos: Path | None,
    crowding: str,
    min_score: float,
    target_recall: float,
    num_runs: int,
    master: str | None,
    seed: int,
    json_path: Path | None,
) -> None:
    """Find all near pairs among embeddings, ours beside peers: seconds as a ratio, recall, memory, shuffled bytes.

    Example: python -m benchmarks batch --images 100000 --peers flat,ivf,spark-rows --json batch.json
    """
    name = "photos" if photos else crowding
    planted = (
        embed_photos(photos, num_images, seed=seed)
        if photos
        else plant_embeddings(num_images, seed=seed, crowding=CROWDINGS[crowding])
    )
    sizes = sizes_of(peers, len(planted.embeddings))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="neardup-benchmark-") as scratch:
        cases = [
            write_case(
                planted.embeddings[:size],
                name=name,
                folder=Path(scratch) / str(size),
                min_similarity=min_score,
                master=master,
                seed=seed,
            )
            for size in sizes
        ]
        del planted  # a gigabyte for a million images, which the contenders read from the files
        for case in cases:
            rows += run_case(case, sizes[case.num_images], num_runs=num_runs, target_recall=target_recall)
    packages = versions("pyspark", "faiss-cpu", "datasketch", "numba", "numpy", "pyarrow")
    _show(rows, f"{name} embeddings, cosine {min_score} and above, {master or 'no master'}, seed {seed}")
    click.echo("  ".join(f"{package} {version}" for package, version in packages.items()))
    figures = {
        "benchmark": "batch",
        "min_score": min_score,
        "target_recall": target_recall,
        "runs": num_runs,
        "master": master,
        "seed": seed,
        "cores": os.cpu_count(),
        "versions": packages,
        "rows": [asdict(row) for row in rows],
    }
    write_json(json_path, figures)


def _show(rows: Sequence[Row], title: str) -> None:
    bands = list(rows[0].recall_by_cosine)
    show_table(
        title,
        ["images, contender", "vs. ours", "seconds", "recall", *bands, "memory", "shuffled", "setting"],
        [
            [
                f"{row.images:,} {row.contender}",
                f"{row.ratio:.2f}",
                f"{'' if row.share_searched == 1 else '~'}{row.seconds:,.1f}",
                f"{row.recall:.3f}",
                *(f"{row.recall_by_cosine[band]:.3f}" for band in bands),
                f"{row.peak_mb:,.0f} MB",
                f"{row.shuffle_bytes / 1e6:,.0f} MB" if row.shuffle_bytes else "",
                row.setting,
            ]
            for row in rows
        ],
    )
    click.echo(f"~ extrapolated from searches of {SLICE_ROWS:,} rows, whose pairs recall counts.")
