"""Step 6, cluster: matches become clusters around canonical images.

The greedy k-cut runs on the driver over packed arrays, about 40 bytes an edge and 100 an image, without Spark.
Byte-identical copies were embedded once; here they join the cluster of their original with its score. What people have
decided about clusters (`decisions`) holds whatever the scores say. A night updates the clusters of the night before
instead of cutting anew.

Where a crowd of many images falls into pieces for want of comparisons, the missing ones are made here and it is cut
again. Decisions apply to what matches there as to all matches, and later nights keep it (`crowd_edges`).

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
from batch_jobs.decisions import NO_DECISIONS, DecidedEdges, Decisions, DocDecisions, apply_decisions
from batch_jobs.nights import Known, live_images, read_columns, read_docs
from batch_jobs.select_matches import Match
from batch_jobs.session import write_arrow
from lsh.clusters import Clusters, greedy_cut, member_order, updated_cut

STEP = "cluster"
TABLES = ("clusters", "assignments", "crowd_edges")
COLUMNS = ("doc", "image_id", "original_doc", "width", "height", "size_bytes")
MAX_ROUNDS = 8
MAX_DOCS_PER_CONTENT = 4
"""While no more docs were given than that, a table by doc is quicker to look at than a search."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Matches: rows of both ends and scores, each `(m,)`."""

    lefts: NDArray[np.int64]
    rights: NDArray[np.int64]
    scores: NDArray[np.float32]

    def __add__(self, other: Edges) -> Edges:
        if not other.lefts.size:
            return self
        return Edges(
            np.append(self.lefts, other.lefts),
            np.append(self.rights, other.rights),
            np.append(self.scores, other.scores),
        )


NO_EDGES = Edges(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Clustered:
    """What clustering came to: the members, the matches that it found in crowds, and what decisions have cost."""

    members: Members
    crowd_edges: Edges
    num_dropped: int
    num_overruled: int


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """The distinct images among live ones, by `docs` ascending, and the row of the first live image of each.

    `row_of` has the row of each doc from `first_doc` on, -1 for one that is gone, and -1 at last; it is empty where
    docs lie far apart.
    """

    docs: NDArray[np.int64]
    rows: NDArray[np.int64]
    first_doc: int
    row_of: NDArray[np.int64]

    @classmethod
    def of(cls, content_docs: NDArray[np.int64], rows: NDArray[np.int64]) -> Contents:
        """Those of live images, whose `rows` `(n,)` ascend."""
        first_doc = int(content_docs.min(initial=np.iinfo(np.int64).max))
        num_docs = int(content_docs.max(initial=first_doc - 1)) - first_doc + 1
        if num_docs > MAX_DOCS_PER_CONTENT * content_docs.size:
            docs, places = np.unique(content_docs, return_index=True)
            return cls(docs, rows[places], first_doc, np.empty(0, np.int64))
        row_of = np.full(num_docs + 1, -1)
        # The last assignment to a place stays, which is that of the first image.
        row_of[(content_docs - first_doc)[::-1]] = rows[::-1]
        places = np.flatnonzero(row_of >= 0)
        return cls(places + first_doc, row_of[places], first_doc, row_of)

    def rows_of(self, docs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each content doc, -1 for one that is gone."""
        if not self.row_of.size:
            places = np.minimum(np.searchsorted(self.docs, docs), self.docs.size - 1)
            return np.where(self.docs[places] == docs, self.rows[places], -1)
        # Without a sign, docs before the first are behind the last.
        places = np.minimum((docs - self.first_doc).view(np.uint64), np.uint64(self.row_of.size - 1))
        rows: NDArray[np.int64] = self.row_of[places]
        return rows


def cluster_matches(
    folder: Path, *, whole: Known, decisions: Decisions, before: Known | None = None, match: Match | None = None
) -> Mapping[str, Any]:
    """Write `clusters`, largest first, the canonical first in each, `assignments` and `crowd_edges`.

    `whole` are the tables that hold everything, this night's own included; `before` is what was there when the night
    began, None to cut from scratch. `match` compares pairs of docs that the cut asks for; without it, crowds stay as
    they are. Returns the summary's counts.
    """
    images = live_images(whole, COLUMNS)
    content_docs = images["original_doc"].to_numpy()
    is_embedded = np.isin(content_docs, read_docs(whole.embeddings))
    contents, original_rows = contents_of(content_docs, is_embedded)
    edges = _live_edges(whole.edges, contents)
    known_in_crowds = _live_edges((whole.crowd_edges,) if whole.crowd_edges else (), contents)
    clustered = cluster_docs(
        edges + known_in_crowds,
        original_docs=original_rows,
        pixels=_numbers(images["width"]) * _numbers(images["height"]),
        decided=decisions.on_docs(images["image_id"], is_embedded),
        before=_before(before, contents, len(images)) if before is not None else None,
        match=(lambda pairs: match(content_docs[pairs])) if match else None,
    )
    members = clustered.members
    write_arrow(_clusters_table(members, images["image_id"]), folder / "clusters")
    write_arrow(_assignments_table(members, contents, content_docs), folder / "assignments")
    write_arrow(_crowd_edges_table(known_in_crowds + clustered.crowd_edges, content_docs), folder / "crowd_edges")
    is_canonical = members.docs == members.canonical_docs
    return {
        "num_clusters": int(is_canonical.sum()),
        "num_duplicates": int((~is_canonical).sum()),
        "num_exact_copies": int((original_rows != np.arange(len(images))).sum()),
        "reclaimable_bytes": int(_numbers(images["size_bytes"])[members.docs[~is_canonical]].sum()),
        "num_decisions": len(decisions.active),
        "num_crowd_edges": int(known_in_crowds.lefts.size + clustered.crowd_edges.lefts.size),
        "num_dropped_edges": clustered.num_dropped,
        "num_overruled_merges": clustered.num_overruled,
    }


def contents_of(content_docs: NDArray[np.int64], is_embedded: NDArray[np.bool_]) -> tuple[Contents, NDArray[np.int64]]:
    """The contents that have an embedding, and for each image the row of its content, its own without an embedding."""
    rows = np.arange(content_docs.size)
    embedded_docs = content_docs[is_embedded]
    contents = Contents.of(embedded_docs, rows[is_embedded])
    rows[is_embedded] = contents.rows_of(embedded_docs)
    return contents, rows


def _live_edges(edges: tuple[str, ...], contents: Contents) -> Edges:
    """All matches between contents that are live."""
    if not edges:
        return NO_EDGES
    matches = read_columns(edges, ["left_doc", "right_doc", "score"])
    lefts, rights = (contents.rows_of(matches[end].to_numpy()) for end in ("left_doc", "right_doc"))
    is_live = (lefts >= 0) & (rights >= 0)
    return Edges(lefts[is_live], rights[is_live], matches["score"].to_numpy()[is_live])


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
    edges: Edges,
    *,
    original_docs: NDArray[np.int64],
    pixels: NDArray[np.int64],
    decided: DocDecisions = NO_DECISIONS,
    before: Before | None = None,
    match: Match | None = None,
) -> Clustered:
    """Cluster docs `0..n-1` along edges between originals, or update their clusters of `before`.

    The better image is the one with more pixels, then the smaller doc. `original_docs` and `pixels` are `(n,)`.
    `match` compares pairs of originals.
    """
    num_docs = len(original_docs)
    crowd_edges, asked = NO_EDGES, np.empty(0, np.int64)
    for rounds_left in reversed(range(MAX_ROUNDS + 1)):
        all_edges = edges + crowd_edges
        kept = apply_decisions(
            lefts=all_edges.lefts,
            rights=all_edges.rights,
            scores=all_edges.scores,
            original_docs=original_docs,
            pixels=pixels,
            decided=decided,
        )
        cut = _cut(kept, -pixels, before)
        if match is None or not rounds_left:
            break
        unmet, asked = _not_asked(original_docs[cut.unmet], all_edges, asked, num_docs)
        if not len(unmet):
            break
        is_match, scores = match(unmet)
        if not is_match.any():
            break
        crowd_edges += Edges(unmet[is_match, 0], unmet[is_match, 1], scores[is_match])
    canonical_docs = cut.canonical[kept.original_docs]
    member_scores = cut.score[kept.original_docs]
    sizes = np.bincount(canonical_docs, minlength=num_docs)
    docs = np.flatnonzero(sizes[canonical_docs] > 1)
    return Clustered(
        Members(docs, canonical_docs[docs], member_scores[docs]), crowd_edges, kept.num_dropped, kept.num_overruled
    )


def _cut(kept: DecidedEdges, quality_rank: NDArray[np.int64], before: Before | None) -> Clusters:
    num_docs = len(kept.original_docs)
    if before is None:
        return greedy_cut(num_docs, kept.lefts, kept.rights, kept.scores, quality_rank)
    # A canonical that was merged by hand is where its merge is.
    rows = before.canonical_rows
    canonical_rows = np.where(rows >= 0, kept.original_docs[rows], rows)
    return updated_cut(
        num_docs, kept.lefts, kept.rights, kept.scores, quality_rank, before=canonical_rows, is_new=before.is_new
    )


def _not_asked(
    pairs: NDArray[np.int64], edges: Edges, asked: NDArray[np.int64], num_docs: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Those of `pairs` `(m, 2)` that are no edges, as a decision may have dropped, nor `asked`; and all asked now.

    Pairs are asked by their keys, `left * num_docs + right`.
    """
    keys = np.unique(pairs.min(axis=1) * num_docs + pairs.max(axis=1))
    is_near = np.isin(edges.lefts, pairs) & np.isin(edges.rights, pairs)
    lefts, rights = edges.lefts[is_near], edges.rights[is_near]
    met = np.minimum(lefts, rights) * num_docs + np.maximum(lefts, rights)
    keys = keys[~np.isin(keys, met) & ~np.isin(keys, asked) & (keys // num_docs != keys % num_docs)]
    return np.stack([keys // num_docs, keys % num_docs], axis=1), np.append(asked, keys)


def _clusters_table(members: Members, image_ids: pa.ChunkedArray) -> pa.Table:
    """`CLUSTERS` rows, ordered by size, then canonical doc, the canonical itself, score and doc."""
    size = np.bincount(members.canonical_docs)[members.canonical_docs].astype(np.int32)
    is_canonical = members.docs == members.canonical_docs
    order = member_order(members.canonical_docs, members.scores, members.docs)
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


def _crowd_edges_table(edges: Edges, content_docs: NDArray[np.int64]) -> pa.Table:
    """`CROWD_EDGES` rows, by left doc, then right doc."""
    ends = content_docs[np.stack([edges.lefts, edges.rights], axis=1)]
    lefts, rights = ends.min(axis=1), ends.max(axis=1)
    order = np.lexsort((rights, lefts))
    return pa.table([lefts[order], rights[order], edges.scores[order]], schema=schemas.arrow(schemas.CROWD_EDGES))


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
