"""Step 6, cluster: matches become clusters around canonical images.

The greedy k-cut runs on the driver over packed arrays, about 40 bytes an edge and 100 an image, without Spark.
Byte-identical copies were embedded once; here they join the cluster of their original with its score. What people have
decided about clusters (`decisions`) holds whatever the scores say. A night updates the clusters of the night before
instead of cutting anew.

Images are numbered by their rows here: `0..n-1` in the order of their docs, so that docs that are gone cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.decisions import Decisions, apply_decisions
from batch_jobs.nights import Known, live_images, read_columns, read_docs
from batch_jobs.session import write_arrow
from lsh.clusters import greedy_cut, updated_cut

STEP = "cluster"
TABLES = ("clusters", "assignments")
COLUMNS = ("doc", "image_id", "original_doc", "width", "height", "size_bytes")


@dataclass(frozen=True, slots=True)
class Members:
    """Images in clusters of two or more, one row each, by doc."""

    docs: NDArray[np.int64]
    canonical_docs: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Before:
    """What the night before decided, by row: `canonical_rows` `(n,)`, -1 where it is gone; and which images are new."""

    canonical_rows: NDArray[np.int64]
    is_new: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Contents:
    """The distinct images among live ones, by `docs` ascending, and the row of the first live image of each."""

    docs: NDArray[np.int64]
    rows: NDArray[np.int64]

    def rows_of(self, docs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each content doc, -1 for one that is gone."""
        if not self.docs.size:
            return np.full(docs.shape, -1)
        places = np.minimum(np.searchsorted(self.docs, docs), self.docs.size - 1)
        return np.where(self.docs[places] == docs, self.rows[places], -1)


def cluster_matches(
    folder: Path, *, whole: Known, decisions: Decisions, before: Known | None = None
) -> Mapping[str, Any]:
    """Write `clusters`, largest first, the canonical first in each, and `assignments`; returns the summary's counts.

    `whole` are the tables that hold everything, this night's own included; `before` is what was there when the night
    began, None to cut from scratch.
    """
    images = live_images(whole, COLUMNS)
    content_docs = images["original_doc"].to_numpy()
    is_embedded = np.isin(content_docs, read_docs(whole.embeddings))
    contents, original_rows = contents_of(content_docs, is_embedded)
    lefts, rights, scores = _live_matches(whole.edges, contents)
    pixels = _numbers(images["width"]) * _numbers(images["height"])
    decided = apply_decisions(
        lefts=lefts,
        rights=rights,
        scores=scores,
        original_docs=original_rows,
        pixels=pixels,
        decided=decisions.on_docs(images["image_id"], is_embedded),
    )
    members = cluster_docs(
        lefts=decided.lefts,
        rights=decided.rights,
        scores=decided.scores,
        original_docs=decided.original_docs,
        pixels=pixels,
        before=_before(before, contents, len(images)) if before is not None else None,
    )
    write_arrow(_clusters_table(members, images["image_id"]), folder / "clusters")
    write_arrow(_assignments_table(members, contents, content_docs), folder / "assignments")
    is_canonical = members.docs == members.canonical_docs
    return {
        "num_clusters": int(is_canonical.sum()),
        "num_duplicates": int((~is_canonical).sum()),
        "num_exact_copies": int((original_rows != np.arange(len(images))).sum()),
        "reclaimable_bytes": int(_numbers(images["size_bytes"])[members.docs[~is_canonical]].sum()),
        "num_decisions": len(decisions.active),
        "num_dropped_edges": decided.num_dropped,
        "num_overruled_merges": decided.num_overruled,
    }


def contents_of(content_docs: NDArray[np.int64], is_embedded: NDArray[np.bool_]) -> tuple[Contents, NDArray[np.int64]]:
    """The contents that have an embedding, and for each image the row of its content, its own without an embedding."""
    rows = np.arange(content_docs.size)
    docs, first, inverse = np.unique(content_docs[is_embedded], return_index=True, return_inverse=True)
    contents = Contents(docs, rows[is_embedded][first])
    rows[is_embedded] = contents.rows[inverse]
    return contents, rows


def _live_matches(
    edges: tuple[str, ...], contents: Contents
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Rows of both ends and scores of all matches between contents that are live."""
    matches = read_columns(edges, ["left_doc", "right_doc", "score"])
    lefts, rights = (contents.rows_of(matches[end].to_numpy()) for end in ("left_doc", "right_doc"))
    is_live = (lefts >= 0) & (rights >= 0)
    return lefts[is_live], rights[is_live], matches["score"].to_numpy()[is_live]


def _before(known: Known, contents: Contents, num_images: int) -> Before:
    canonical_rows = np.arange(num_images)
    assigned = read_columns((known.assignments or "",), ["doc", "canonical_doc"])
    rows = contents.rows_of(assigned["doc"].to_numpy())
    canonical_rows[rows[rows >= 0]] = contents.rows_of(assigned["canonical_doc"].to_numpy())[rows >= 0]
    is_new = np.zeros(num_images, np.bool_)
    is_new[contents.rows[contents.docs >= known.next_doc]] = True
    return Before(canonical_rows, is_new)


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
    before: Before | None = None,
) -> Members:
    """Cluster docs `0..n-1` along edges `(m,)` between originals, or update their clusters of `before`.

    The better image is the one with more pixels, then the smaller doc. `original_docs` and `pixels` are `(n,)`.
    """
    num_docs = len(original_docs)
    rank = np.empty(num_docs, np.int64)
    rank[np.lexsort((np.arange(num_docs), -pixels))] = np.arange(num_docs)
    if before is None:
        cut = greedy_cut(num_docs, lefts, rights, scores, rank)
    else:
        # A canonical that was merged by hand is where its merge is.
        rows = before.canonical_rows
        canonical_rows = np.where(rows >= 0, original_docs[rows], rows)
        cut = updated_cut(num_docs, lefts, rights, scores, rank, before=canonical_rows, is_new=before.is_new)
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


def _assignments_table(members: Members, contents: Contents, content_docs: NDArray[np.int64]) -> pa.Table:
    """`ASSIGNMENTS` rows, by doc: one for each content that has another canonical than itself."""
    is_assigned = np.isin(members.docs, contents.rows) & (members.docs != members.canonical_docs)
    docs, canonical_docs = (content_docs[rows[is_assigned]] for rows in (members.docs, members.canonical_docs))
    order = np.argsort(docs)
    return pa.table([docs[order], canonical_docs[order]], schema=schemas.arrow(schemas.ASSIGNMENTS))


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
