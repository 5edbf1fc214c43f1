"""Step 6, cluster: matches become clusters around canonical images.

The greedy k-cut runs on the driver over packed arrays, about 40 bytes an edge and 100 an image, without Spark.
Byte-identical copies were embedded once; here they join the cluster of their original with its score. What people have
decided about clusters (`decisions`) holds whatever the scores say. A night updates the clusters of the night before
instead of cutting anew: it looks at those that it may change (`cluster_scope`), and writes what is different.

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
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.assignments import Members, Moves, Placed, clusters_table, numbers_of
from batch_jobs.cluster_scope import NO_EDGES, Edges, LastNight, Scope, read_edges, scope_of
from batch_jobs.contents import Contents, contents_of
from batch_jobs.decisions import NO_DECISIONS, DecidedEdges, Decisions, DocDecisions, apply_decisions
from batch_jobs.nights import Known, live_images, read_docs
from batch_jobs.select_matches import Match
from batch_jobs.session import write_arrow
from lsh.clusters import Clusters, greedy_cut, updated_cut

STEP = "cluster"
TABLES = ("clusters", "unclustered", "assignments", "crowd_edges")
COLUMNS = ("doc", "image_id", "original_doc", "width", "height", "size_bytes")
MAX_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Before:
    """What the night before decided, by row: `canonical_rows` `(n,)`, -1 where it is gone; and which images are new.

    `degrees` are those that `lsh.clusters.updated_cut` takes, 0 for copies.
    """

    canonical_rows: NDArray[np.int64]
    is_new: NDArray[np.bool_]
    degrees: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Clustered:
    """What clustering came to: each image's canonical and score with it, matches found in crowds, cost of decisions."""

    canonical_docs: NDArray[np.int64]
    scores: NDArray[np.float32]
    crowd_edges: Edges
    num_dropped: int
    num_overruled: int

    @property
    def members(self) -> Members:
        """The images in clusters of two or more."""
        return Members.of(self.canonical_docs, self.scores)


def cluster_matches(
    folder: Path,
    *,
    whole: Known,
    decisions: Decisions,
    before: Known | None = None,
    is_update: bool = False,
    match: Match | None = None,
) -> Mapping[str, Any]:
    """Write `clusters`, largest first, the canonical first in each, `unclustered`, `assignments` and `crowd_edges`.

    `whole` are the tables that hold everything, this night's own included; `before` is what was there when the night
    began, None to cut from scratch. An update looks at what may have changed since, if decisions have not, and writes
    what has. `match` compares pairs of docs that the cut asks for; without it, crowds stay as they are. Returns the
    summary's counts.
    """
    images = live_images(whole, COLUMNS)
    all_contents = images["original_doc"].to_numpy()
    last = LastNight.of(before, whole) if before is not None else None
    updated = last if is_update else None
    known_in_crowds = read_edges(whole.crowd_edges)
    scope = scope_of(
        images["doc"].to_numpy(),
        all_contents,
        read_edges(whole.edges) + known_in_crowds,
        last=last,
        named_contents=all_contents[decisions.are_named(images["image_id"])] if updated else all_contents,
    )
    images = images.take(pa.array(scope.rows)) if scope.rows.size < len(images) else images
    docs, content_docs = (images[name].to_numpy() for name in ("doc", "original_doc"))
    embedded_docs = read_docs(whole.embeddings)
    is_embedded = np.isin(content_docs, embedded_docs)
    contents, original_rows = contents_of(content_docs, is_embedded)
    edges, update = scope.edges.on_rows(contents), None
    if last is not None:
        update, staying = _update_of(last, scope, contents, docs=docs, content_docs=content_docs)
        edges += staying
    clustered = cluster_docs(
        edges,
        original_docs=original_rows,
        pixels=numbers_of(images["width"]) * numbers_of(images["height"]),
        decided=decisions.on_docs(images["image_id"], is_embedded),
        before=update,
        match=(lambda pairs: match(content_docs[pairs])) if match else None,
    )
    now = Placed.of(images, docs[clustered.canonical_docs], clustered.scores, embedded_docs=embedded_docs)
    then = updated.placed(images, embedded_docs=embedded_docs) if updated else now.none
    moves = Moves.between(then, now)
    in_crowds = clustered.crowd_edges if updated else known_in_crowds.on_rows(contents) + clustered.crowd_edges
    clusters = clusters_table(images["image_id"], clustered.members.of_clusters(moves.is_changed))
    write_arrow(clusters, folder / "clusters")
    write_arrow(pa.table([moves.unclustered], schema=schemas.arrow(schemas.UNCLUSTERED)), folder / "unclustered")
    write_arrow(_assignments_table(now, moves.is_moved), folder / "assignments")
    write_arrow(_crowd_edges_table(in_crowds, content_docs), folder / "crowd_edges")
    figures = now.figures()
    if updated:
        figures.update(updated.figures)
        figures.subtract(then.figures())
    return {
        **figures,
        "is_update": is_update,
        "num_decisions": len(decisions.active),
        "num_crowd_edges": int(in_crowds.lefts.size),
        "num_dropped_edges": clustered.num_dropped,
        "num_overruled_merges": clustered.num_overruled,
    }


def _update_of(
    last: LastNight, scope: Scope, contents: Contents, *, docs: NDArray[np.int64], content_docs: NDArray[np.int64]
) -> tuple[Before, Edges]:
    """What the last night decided about images `(n,)`, and the edges of untouched contents to their canonicals."""
    nodes = contents.rows
    canonical_docs, scores = last.canonicals_of(docs[nodes], contents.docs)
    leads = np.where(canonical_docs < 0, nodes, contents.rows_of(last.contents_of(canonical_docs, docs, content_docs)))
    canonical_rows, is_new, degrees = np.arange(docs.size), np.zeros(docs.size, np.bool_), np.zeros(docs.size, np.int64)
    canonical_rows[nodes] = leads
    is_new[nodes] = contents.docs >= last.next_doc
    degrees[nodes] = scope.degrees[contents.docs]
    stays = (leads >= 0) & (leads != nodes) & ~scope.is_touched[contents.docs]
    stays[stays] = ~scope.is_touched[content_docs[leads[stays]]]
    return Before(canonical_rows, is_new, degrees), Edges(nodes[stays], leads[stays], scores[stays])


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
        cut = _cut(kept, -pixels, before, crowd_edges)
        if match is None or not rounds_left:
            break
        unmet, asked = _not_asked(original_docs[cut.unmet], all_edges, asked, num_docs)
        if not len(unmet):
            break
        is_match, scores = match(unmet)
        if not is_match.any():
            break
        crowd_edges += Edges(unmet[is_match, 0], unmet[is_match, 1], scores[is_match])
    return Clustered(
        cut.canonical[kept.original_docs],
        cut.score[kept.original_docs],
        crowd_edges,
        kept.num_dropped,
        kept.num_overruled,
    )


def _cut(kept: DecidedEdges, quality_rank: NDArray[np.int64], before: Before | None, crowd_edges: Edges) -> Clusters:
    """The clusters along `kept` edges, `crowd_edges` being those of them that were not there before."""
    num_docs = len(kept.original_docs)
    if before is None:
        return greedy_cut(num_docs, kept.lefts, kept.rights, kept.scores, quality_rank)
    # A canonical that was merged by hand is where its merge is, and so are the matches of all that were merged.
    rows = before.canonical_rows
    found = np.bincount(np.append(crowd_edges.lefts, crowd_edges.rights), minlength=num_docs)
    return updated_cut(
        num_docs,
        kept.lefts,
        kept.rights,
        kept.scores,
        quality_rank,
        before=np.where(rows >= 0, kept.original_docs[rows], rows),
        is_new=before.is_new,
        degrees=np.bincount(kept.original_docs, before.degrees + found, num_docs).astype(np.int64),
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


def _assignments_table(now: Placed, is_moved: NDArray[np.bool_]) -> pa.Table:
    """`ASSIGNMENTS` rows, by doc: one for each image that has moved."""
    columns = [now.docs[is_moved], now.canonical_docs[is_moved], now.scores[is_moved]]
    return pa.table(columns, schema=schemas.arrow(schemas.ASSIGNMENTS))


def _crowd_edges_table(edges: Edges, content_docs: NDArray[np.int64]) -> pa.Table:
    """`CROWD_EDGES` rows, by left doc, then right doc."""
    ends = content_docs[np.stack([edges.lefts, edges.rights], axis=1)]
    lefts, rights = ends.min(axis=1), ends.max(axis=1)
    order = np.lexsort((rights, lefts))
    return pa.table([lefts[order], rights[order], edges.scores[order]], schema=schemas.arrow(schemas.CROWD_EDGES))


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
