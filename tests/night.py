"""A night without Spark: the steps of the pipeline on a handful of embeddings, committed and recorded as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.cluster_matches import cluster_matches
from batch_jobs.decisions import read_decisions
from batch_jobs.find_candidates import Join, join_part
from batch_jobs.make_terms import hash_batches
from batch_jobs.nights import Known
from batch_jobs.run_records import RunRecord, begin_record, find_record, finish_record, finished_runs, now
from batch_jobs.select_matches import Selection, verify_blocks
from batch_jobs.session import write_arrow
from batch_jobs.settings import RunSettings, digest
from batch_jobs.workspace import Workspace
from embed.pair_scoring import PairScorer
from lsh.candidates import CandidateParams
from lsh.terms import TermParams

DIM = 32
NUM_PARTS = 3
PARAMS = TermParams(num_tables=24, dim=DIM, num_polytopes=1, polytope_dim=32)
STEPS = ("catalogue", "embed", "terms", "candidates", "select", "cluster")


def family(seed: int, size: int, *, spread: float = 0.15) -> NDArray[np.float32]:
    """`(size, DIM)` float32 unit rows around one centre: cosines of about `1 / (1 + spread ** 2)`."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=DIM) + spread * rng.normal(size=(size, DIM))
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def pets() -> dict[str, NDArray[np.float32]]:
    """Four cats, three dogs, and a fish that looks like nobody."""
    named = {f"cat-{place}": row for place, row in enumerate(family(1, 4))}
    named |= {f"dog-{place}": row for place, row in enumerate(family(2, 3))}
    return {**named, "fish": family(3, 1)[0]}


def run_night(
    workspace: Path,
    images: Mapping[str, NDArray[np.float32]],
    *,
    copies: Mapping[str, str] | None = None,
    rejects: Sequence[str] = (),
    min_score: float = 0.8,
    until: str = STEPS[-1],
    prediction: Mapping[str, float] | None = None,
    candidates: CandidateParams | None = None,
) -> RunRecord:
    """Run the steps up to `until` on embeddings by image id; `copies` maps ids to ids with the same bytes."""
    ids = sorted({**images, **(copies or {})})
    doc_of = {image_id: doc for doc, image_id in enumerate(ids)}
    original_docs = [doc_of[(copies or {}).get(image_id, image_id)] for image_id in ids]
    docs = np.array([doc_of[image_id] for image_id in ids if image_id in images])
    rows = np.array([images[image_id] for image_id in ids if image_id in images])
    params = candidates or CandidateParams()
    fingerprint = digest([ids, rows.tobytes().hex(), list(rejects)])
    catalogue = pa.table(
        {
            "image_id": ids,
            "doc": np.arange(len(ids)),
            "original_doc": original_docs,
            "width": [100] * len(ids),
            "height": [100] * len(ids),
            "size_bytes": [1000] * len(ids),
        }
    )
    embedded = pa.table(
        {"doc": docs, "embedding": [row.tobytes() for row in rows]}, schema=schemas.arrow(schemas.EMBEDDINGS)
    )
    rejected = pa.table(
        {
            "image_id": list(rejects),
            "stage": ["catalogue"] * len(rejects),
            "reason": ["truncated"] * len(rejects),
            "detail": ["it ends in the middle"] * len(rejects),
        }
    )
    with Workspace(workspace) as opened:
        decisions = read_decisions(workspace)
        settings = RunSettings(source="given.npz", workspace=workspace, min_score=min_score, prediction=prediction)
        run_id = digest([fingerprint, min_score, asdict(params), decisions.digest])[:16]
        parent = next(finished_runs(workspace), None)
        record = RunRecord(
            run_id=run_id,
            command="dedup",
            source="given.npz",
            fingerprint=fingerprint,
            settings=settings.to_json(),
            embedder_digest="d" * 64,
            scorer_digest="cosine",
            min_score=min_score,
            decisions_digest=decisions.digest,
            num_decisions=len(decisions.active),
            parent=parent.run_id if parent else None,
            started_at=now(),
        )
        begin_record(opened, record)

        def commit(step: str, inputs: dict[str, Any], tables: Mapping[str, pa.Table], **stats: Any) -> str:
            def write(folder: Path) -> Mapping[str, Any]:
                for name, table in tables.items():
                    write_arrow(table, folder / name)
                return stats

            return opened.step(step, inputs=inputs, write=write, tables=tuple(tables)).key

        keys = {"catalogue": commit("catalogue", {"f": fingerprint}, {"catalogue": catalogue, "rejects": rejected})}
        hashed = pa.Table.from_batches(
            list(hash_batches(iter(embedded.to_batches()), params=PARAMS, num_parts=NUM_PARTS))
        )
        blocks = hashed.filter(hashed["block"].is_valid()).select(["part", "block"])
        codes = hashed.filter(hashed["code"].is_valid()).select(["doc", "code"])
        aside = opened.steps_folder / f".term-blocks-{run_id}"
        aside.mkdir()
        for part in range(NUM_PARTS):
            write_arrow(blocks.filter(pa.compute.equal(blocks["part"], part)), aside / f"part={part}")
        join = Join(
            new=str(aside),
            known=(),
            removed_docs=np.empty(0, np.int64),
            first_new_doc=0,
            params=params,
            docs_per_range=100,
        )
        joined = pa.concat_tables([join_part(part, join) for part in range(NUM_PARTS)])
        counts = {
            name: int(np.sum(joined[name].drop_null().to_numpy()))
            for name in ("num_pairs", "num_buckets", "num_oversized_buckets", "num_cut_pairs")
        }
        largest = int(np.max(joined["largest_bucket"].drop_null().to_numpy()))
        selection = Selection(
            dim=DIM, min_score=min_score, min_shared_terms=1, scorer=PairScorer(), num_tables=PARAMS.num_tables
        )

        def select(folder: Path) -> Mapping[str, Any]:
            write_arrow(codes, folder.parent / f".codes-{run_id}")
            path = str(folder.parent / f".codes-{run_id}")
            pairs = joined.filter(joined["block"].is_valid())
            scored = verify_blocks(pairs, codes=(path,), selection=selection, docs_per_range=100)
            write_arrow(scored.filter(scored["histogram"].is_null()).drop(["histogram"]), folder / "edges")
            histogram = np.frombuffer(scored["histogram"].drop_null()[0].as_py(), "<i8")
            return {"num_distinct_pairs": int(histogram.sum()), "score_histogram": histogram.tolist()}

        embed_inputs = {"catalogue": keys["catalogue"], "embedder": "d" * 64, "dtype": "float32"}
        actions = {
            "embed": lambda: commit("embed", embed_inputs, {"embeddings": embedded, "rejects": rejected.slice(0, 0)}),
            "terms": lambda: commit(
                "terms", {"embed": keys["embed"], "terms": PARAMS.to_json()}, {"term_blocks": blocks, "codes": codes}
            ),
            "candidates": lambda: commit(
                "candidates",
                {"terms": keys["terms"], "candidates": asdict(params)},
                {"pair_blocks": joined},
                docs_per_range=100,
                largest_bucket=largest,
                **counts,
            ),
            "select": lambda: (
                opened.step(
                    "select",
                    inputs={
                        "candidates": keys["candidates"],
                        "scorer": "cosine",
                        "min_score": min_score,
                        "min_shared_terms": 1,
                        "verified": True,
                    },
                    write=select,
                    tables=("edges",),
                ).key
            ),
            "cluster": lambda: (
                opened.step(
                    "cluster",
                    inputs={"select": keys["select"], "decisions": decisions.digest},
                    write=partial(
                        cluster_matches,
                        whole=Known(
                            edges=(str(opened.steps_folder / f"select-{keys.get('select')}" / "edges"),),
                            embeddings=(str(opened.steps_folder / f"embed-{keys.get('embed')}" / "embeddings"),),
                            catalogues=(str(opened.steps_folder / f"catalogue-{keys['catalogue']}" / "catalogue"),),
                        ),
                        decisions=decisions,
                    ),
                    tables=("clusters", "assignments"),
                ).key
            ),
        }
        for step in STEPS[1 : STEPS.index(until) + 1]:
            keys[step] = actions[step]()
        if until == STEPS[-1]:
            stats = find_record(workspace, run_id).step("cluster")
            assert stats is not None
            results = {
                "images": len(ids) + len(rejects),
                "rejected": len(rejects),
                "rejects_by_reason": {"truncated": len(rejects)} if rejects else {},
                "exact_copies": stats.stats["num_exact_copies"],
                "clusters": stats.stats["num_clusters"],
                "duplicates": stats.stats["num_duplicates"],
                "reclaimable_bytes": stats.stats["reclaimable_bytes"],
                "candidates": find_record(workspace, run_id).stat("select", "num_distinct_pairs"),
            }
            finish_record(opened, run_id, seconds=dict.fromkeys(STEPS, 0.5), results=results)
        return find_record(workspace, run_id)


def clusters_of(workspace: Path, record: RunRecord) -> list[set[str]]:
    """The members of each cluster of a run."""
    found: dict[str, set[str]] = {}
    for row in pq.read_table(record.table(workspace, "cluster", "clusters")).to_pylist():
        found.setdefault(row["canonical_id"], set()).add(row["image_id"])
    return sorted(found.values(), key=sorted)
