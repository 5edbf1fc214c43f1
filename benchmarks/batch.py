"""`python -m benchmarks batch`: given embeddings through terms, candidates, select and cluster, with planted pairs.

The embeddings are synthetic with the structure that those of a trained network have: a decaying spectrum (about 37
effective dimensions of 256) and topics of very different size, so that random pairs have cosines of 0.22 at the 90th
percentile, 0.43 at the 99th and 0.65 at the 99.9th. Half of the images are families: a photo and 1 to 20 edits of it
at cosines from 0.7 to 1.0. Uniform noise on the sphere would leave almost nothing to join.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.neardup_run import run_neardup
from benchmarks.results import versions, write_json
from cli.tables import show_table

STAGES = ("terms", "candidates", "select", "cluster")
DIM = 256
SPECTRUM_DECAY = 38.0
NUM_TOPICS = 1000
TOPIC_SIZE_EXPONENT = 0.9
TOPIC_SHARE = (0.1, 0.72)
MAX_EDITS = 20
MIN_EDIT_COSINE = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedEmbeddings:
    """`embeddings` `(n, dim)` float32 unit rows; rows with the same `family` `(n,)` come from one photo."""

    embeddings: NDArray[np.float32]
    family: NDArray[np.int64]

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """All pairs of one family: `(m, 2)` rows with left < right, and their exact cosines `(m,)`."""
        order = np.argsort(self.family, kind="stable")
        starts = np.flatnonzero(np.diff(self.family[order])) + 1
        pairs, cosines = [], []
        for rows in np.split(order, starts):
            if len(rows) < 2:
                continue
            left, right = np.triu_indices(len(rows), 1)
            members = self.embeddings[rows]
            pairs.append(np.column_stack([rows[left], rows[right]]))
            cosines.append((members @ members.T)[left, right])
        return np.concatenate(pairs), np.concatenate(cosines)


def plant_embeddings(num_images: int, *, seed: int) -> PlantedEmbeddings:
    """`num_images` embeddings, at least 2, about half of them in families; the seed decides them."""
    rng = np.random.default_rng(seed)
    num_edits = rng.integers(1, MAX_EDITS, size=num_images, endpoint=True)
    num_families = max(1, int(np.searchsorted(np.cumsum(num_edits + 1), num_images // 2, side="right")))
    num_edits = np.minimum(num_edits[:num_families], num_images - 1)
    num_photos = num_images - int(num_edits.sum())
    photos = _photo_embeddings(num_photos, rng)
    photo_of_edit = np.repeat(np.arange(num_families), num_edits)
    cosine = rng.uniform(MIN_EDIT_COSINE, 1.0, len(photo_of_edit)).astype(np.float32)[:, None]
    edited = photos[photo_of_edit]
    change = _directions(len(edited), rng)
    change = _unit(change - np.einsum("nd,nd->n", change, edited)[:, None] * edited)
    edits = cosine * edited + np.sqrt(1 - cosine**2) * change
    order = rng.permutation(num_images)
    return PlantedEmbeddings(
        embeddings=_unit(np.concatenate([photos, edits]))[order],
        family=np.concatenate([np.arange(num_photos), photo_of_edit])[order],
    )


def _photo_embeddings(num: int, rng: np.random.Generator) -> NDArray[np.float32]:
    topics = _directions(NUM_TOPICS, rng)
    weight = 1.0 / np.arange(1, NUM_TOPICS + 1) ** TOPIC_SIZE_EXPONENT
    topic = rng.choice(NUM_TOPICS, num, p=weight / weight.sum())
    share = rng.uniform(*TOPIC_SHARE, num).astype(np.float32)[:, None]
    return _unit(np.sqrt(share) * topics[topic] + np.sqrt(1 - share) * _directions(num, rng))


def _directions(num: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Unit rows whose variance decays exponentially over dimensions that are no coordinate axes."""
    spectrum = np.exp(-np.arange(DIM, dtype=np.float32) / SPECTRUM_DECAY)
    return _unit((rng.standard_normal((num, DIM), dtype=np.float32) * spectrum) @ _axes())


@cache
def _axes() -> NDArray[np.float32]:
    """The same random orthonormal axes for every seed: a network's last layer has no coordinate of large variance."""
    axes: NDArray[np.float32] = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM))).Q.astype(np.float32)
    return axes


def _unit(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def found_pairs(planted: NDArray[np.int64], edges: NDArray[np.int64], *, num_images: int) -> NDArray[np.bool_]:
    """For each planted pair whether it is among `edges`; both `(*, 2)` rows, an edge in any order of its ends."""
    keys = planted.min(axis=1) * num_images + planted.max(axis=1)
    edge_keys = edges.min(axis=1) * num_images + edges.max(axis=1)
    return np.isin(keys, edge_keys)


def read_edges(edges: Path, catalogue: Path) -> NDArray[np.int64]:
    """`(m, 2)` row numbers of the matches; an image id is its row number in digits, the catalogue maps docs to ids."""
    import pyarrow.parquet as pq

    images = pq.read_table(catalogue, columns=["doc", "image_id"])
    docs = images["doc"].to_numpy()
    row_of_doc = np.full(int(docs.max()) + 1, -1, dtype=np.int64)
    row_of_doc[docs] = np.array(images["image_id"].to_pylist(), dtype=np.str_).astype(np.int64)
    ends = pq.read_table(edges, columns=["left_doc", "right_doc"])
    return np.column_stack([row_of_doc[ends[column].to_numpy()] for column in ("left_doc", "right_doc")])


def _recall_rows(
    cosines: NDArray[np.float32], found: NDArray[np.bool_], min_score: float
) -> list[tuple[str, int, float]]:
    """Label, number of planted pairs and recall: of all pairs above `min_score`, then by cosine."""
    edges = [min_score, *(edge for edge in (0.85, 0.9, 0.95) if edge > min_score), 1.01]
    bands = [(min_score, 1.01), *pairwise(edges)]
    rows = []
    for low, high in bands:
        inside = (cosines >= low) & (cosines < high)
        label = f"cosine {low:.2f} to {min(high, 1.0):.2f}"
        rows.append((label, int(inside.sum()), float(found[inside].mean()) if inside.any() else 1.0))
    return rows


@click.command()
@click.option("--images", "num_images", type=click.IntRange(min=2), default=100_000, show_default=True)
@click.option("--min-score", type=click.FloatRange(0.0, 1.0), default=0.79, show_default=True)
@click.option("--master", default="local[2]", show_default=True, help="Spark master.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(*, num_images: int, min_score: float, master: str, seed: int, json_path: Path | None) -> None:
    """Cluster given embeddings: seconds of each stage after Spark is up, and recall of planted pairs.

    Example: python -m benchmarks batch --images 100000 --json batch.json
    """
    planted = plant_embeddings(num_images, seed=seed)
    with tempfile.TemporaryDirectory(prefix="neardup-benchmark-") as scratch:
        source = Path(scratch) / "embeddings.npz"
        image_ids = np.char.zfill(np.arange(num_images).astype(np.str_), 9)
        np.savez(source, image_ids=image_ids, embeddings=planted.embeddings, digest=np.array(f"synthetic-{seed}"))
        arguments = ["dedup", str(source), "--workspace", f"{scratch}/workspace", "--min-score", str(min_score)]
        run = run_neardup([*arguments, "--master", master])
        edges = read_edges(run.output("edges"), run.output("catalogue"))
    pairs, cosines = planted.pairs()
    recall = _recall_rows(cosines, found_pairs(pairs, edges, num_images=num_images), min_score)
    stage_s = {stage: run.stage_s[stage] for stage in STAGES}
    packages = versions("pyspark", "numba", "numpy", "pyarrow")
    show_table(
        f"{num_images:,} given embeddings, {master}, seed {seed}",
        ["", "", ""],
        [
            *([f"{stage} (s)", f"{seconds:.1f}", ""] for stage, seconds in stage_s.items()),
            ["all four (s)", f"{sum(stage_s.values()):.1f}", ""],
            ["whole command (s)", f"{run.wall_s:.1f}", ""],
            [f"peak memory of the process tree ({run.memory.upper()})", f"{run.peak_mb:,.0f} MB", ""],
            ["matches", f"{len(edges):,}", ""],
            ["clusters", f"{run.summary['clusters']:,}", ""],
            *([f"recall of planted pairs, {label}", f"{share:.4f}", f"of {num:,}"] for label, num, share in recall),
        ],
    )
    click.echo("  ".join(f"{name} {version}" for name, version in packages.items()))
    figures = {
        "benchmark": "batch",
        "images": num_images,
        "min_score": min_score,
        "master": master,
        "seed": seed,
        "versions": packages,
        "stage_s": run.stage_s,
        "four_stages_s": sum(stage_s.values()),
        "wall_s": run.wall_s,
        "peak_mb": run.peak_mb,
        "memory": run.memory,
        "matches": len(edges),
        "clusters": run.summary["clusters"],
        "recall": [{"pairs": label, "num_pairs": num, "recall": share} for label, num, share in recall],
    }
    write_json(json_path, figures)
