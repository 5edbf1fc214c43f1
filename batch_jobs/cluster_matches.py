"""Step 6, cluster: matches become clusters around canonical images.

The greedy k-cut runs on the driver over packed arrays, about 40 bytes an edge and 100 an image, without Spark. Where a
crowd of many images falls into pieces for want of comparisons, the missing ones are made here and it is cut again.
Byte-identical copies were embedded once; here they join the cluster of their original with its score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.select_matches import Match
from batch_jobs.session import write_arrow
from lsh.clusters import greedy_cut

STEP = "cluster"
TABLES = ("clusters",)
MAX_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Members:
    """Images in clusters of two or more, one row each, by doc."""

    docs: NDArray[np.int64]
    canonical_docs: NDArray[np.int64]
    scores: NDArray[np.float32]


def cluster_matches(
    folder: Path, *, edges: str, embeddings: str, catalogue: str, match: Match | None = None
) -> Mapping[str, Any]:
    """Write `clusters`, largest first, the canonical first in each; returns the counts for the summary.

    `match` compares pairs that the cut asks for; without it, crowds stay as they are.
    """
    matches = pq.read_table(edges, columns=["left_doc", "right_doc", "score"])
    images = pq.read_table(catalogue, columns=["doc", "image_id", "original_doc", "width", "height", "size_bytes"])
    images = images.sort_by("doc")
    original_docs = images["original_doc"].to_numpy()
    is_embedded = np.isin(original_docs, pq.read_table(embeddings, columns=["doc"])["doc"].to_numpy())
    members = cluster_docs(
        lefts=matches["left_doc"].to_numpy(),
        rights=matches["right_doc"].to_numpy(),
        scores=matches["score"].to_numpy(),
        original_docs=np.where(is_embedded, original_docs, np.arange(len(original_docs))),
        pixels=_numbers(images["width"]) * _numbers(images["height"]),
        match=match,
    )
    write_arrow(_clusters_table(members, images["image_id"]), folder / "clusters")
    is_canonical = members.docs == members.canonical_docs
    return {
        "num_clusters": int(is_canonical.sum()),
        "num_duplicates": int((~is_canonical).sum()),
        "num_exact_copies": int((is_embedded & (original_docs != np.arange(len(original_docs)))).sum()),
        "reclaimable_bytes": int(_numbers(images["size_bytes"])[members.docs[~is_canonical]].sum()),
    }


def _numbers(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A column as int64, nulls (embeddings made elsewhere have no sizes) as 0."""
    numbers: NDArray[np.int64] = pc.fill_null(column.cast(pa.int64()), 0).to_numpy()
    return numbers


def cluster_docs(
    *,
    lefts: NDArray[np.int64],
    rights: NDArray[np.int64],
    scores: NDArray[np.float32],
    original_docs: NDArray[np.int64],
    pixels: NDArray[np.int64],
    match: Match | None = None,
) -> Members:
    """Cluster docs `0..n-1` along edges `(m,)` between originals.

    The better image is the one with more pixels, then the smaller doc. `original_docs` and `pixels` are `(n,)`.
    """
    num_docs = len(original_docs)
    rank = np.empty(num_docs, np.int64)
    rank[np.lexsort((np.arange(num_docs), -pixels))] = np.arange(num_docs)
    cut = greedy_cut(num_docs, lefts, rights, scores, rank)
    asked = np.empty(0, np.int64)
    for _ in range(MAX_ROUNDS if match else 0):
        keys = cut.unmet[:, 0] * num_docs + cut.unmet[:, 1]
        unmet = cut.unmet[~np.isin(keys, asked)]
        if match is None or not len(unmet):
            break
        asked = np.append(asked, keys)
        is_match, unmet_scores = match(unmet)
        lefts, rights = np.append(lefts, unmet[is_match, 0]), np.append(rights, unmet[is_match, 1])
        scores = np.append(scores, unmet_scores[is_match])
        cut = greedy_cut(num_docs, lefts, rights, scores, rank)
    canonical_docs = cut.canonical[original_docs]
    member_scores = cut.score[original_docs]
    sizes = np.bincount(canonical_docs, minlength=num_docs)
    docs = np.flatnonzero(sizes[canonical_docs] > 1)
    return Members(docs, canonical_docs[docs], member_scores[docs])


def _clusters_table(members: Members, image_ids: pa.ChunkedArray) -> pa.Table:
    """`CLUSTERS` rows, ordered by size, then canonical doc, the canonical itself, score and doc."""
    _, cluster_of_row, sizes = np.unique(members.canonical_docs, return_inverse=True, return_counts=True)
    size = sizes[cluster_of_row].astype(np.int32)
    is_canonical = members.docs == members.canonical_docs
    order = np.lexsort((members.docs, -members.scores, ~is_canonical, members.canonical_docs, -size))
    columns = [
        image_ids.take(pa.array(members.docs[order])),
        image_ids.take(pa.array(members.canonical_docs[order])),
        members.scores[order],
        is_canonical[order],
        size[order],
    ]
    return pa.table(columns, schema=schemas.arrow(schemas.CLUSTERS))


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
