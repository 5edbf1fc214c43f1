"""Assignments: which canonical each image follows, kept by every cluster step for the images that it has moved.

A run, and a night that looks at all images, say it of every image that follows another; a night that updates clusters
says it of the images that follow another one than before. So the whole is what all of these steps say, of which the
newest counts for each image.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.nights import Known, live_images, read_columns
from batch_jobs.workspace import read_json
from lsh.clusters import member_order

FIGURES = ("num_clusters", "num_duplicates", "num_exact_copies", "reclaimable_bytes")


@dataclass(frozen=True, slots=True, eq=False)
class Assignments:
    """By doc `(num_docs,)`: the doc of its canonical, its own where it is one or stands alone, and the score with it.

    What they say of docs that are gone counts no more.
    """

    canonical_docs: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Members:
    """Images in clusters of two or more, one row each, by doc."""

    docs: NDArray[np.int64]
    canonical_docs: NDArray[np.int64]
    scores: NDArray[np.float32]

    @classmethod
    def of(cls, canonical_docs: NDArray[np.int64], scores: NDArray[np.float32]) -> Members:
        """Those of the docs `0..n-1`, of which each has a canonical and a score with it, `(n,)`."""
        docs = np.flatnonzero(np.bincount(canonical_docs)[canonical_docs] > 1)
        return cls(docs, canonical_docs[docs], scores[docs])

    @property
    def arranged(self) -> Members:
        """Cluster by cluster, by size, then canonical; in each the canonical itself, then by score and doc."""
        order = member_order(self.canonical_docs, self.scores, self.docs)
        return Members(self.docs[order], self.canonical_docs[order], self.scores[order])

    def of_clusters(self, is_wanted: NDArray[np.bool_]) -> Members:
        """Those whose canonical `is_wanted` `(n,)`."""
        which = is_wanted[self.canonical_docs]
        return Members(self.docs[which], self.canonical_docs[which], self.scores[which])


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Images and where they are, `(n,)` each: every image of the clusters and contents that any of them is in.

    `original_docs` are their own where nothing is embedded.
    """

    docs: NDArray[np.int64]
    image_ids: pa.ChunkedArray
    original_docs: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    canonical_docs: NDArray[np.int64]
    scores: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        images: pa.Table,
        canonical_docs: NDArray[np.int64],
        scores: NDArray[np.float32],
        *,
        embedded_docs: NDArray[np.int64],
    ) -> Placed:
        """Rows of a catalogue with the docs of their canonicals, and their scores with them."""
        docs, contents = (images[name].to_numpy() for name in ("doc", "original_doc"))
        original_docs = np.where(np.isin(contents, embedded_docs), contents, docs)
        return cls(docs, images["image_id"], original_docs, numbers_of(images["size_bytes"]), canonical_docs, scores)

    @property
    def none(self) -> Placed:
        """None of them."""
        nothing = self.docs[:0]
        return Placed(nothing, self.image_ids.slice(0, 0), nothing, nothing, nothing, self.scores[:0])

    @property
    def is_clustered(self) -> NDArray[np.bool_]:
        """Which of them are in a cluster of two or more."""
        is_clustered: NDArray[np.bool_] = np.bincount(self.canonical_docs)[self.canonical_docs] > 1
        return is_clustered

    def figures(self) -> Counter[str]:
        """What the summary of a run counts."""
        is_canonical, is_clustered = self.docs == self.canonical_docs, self.is_clustered
        counts = (
            (is_clustered & is_canonical).sum(),
            (is_clustered & ~is_canonical).sum(),
            self.docs.size - (np.bincount(self.original_docs) > 0).sum(),
            self.size_bytes[is_clustered & ~is_canonical].sum(),
        )
        return Counter(dict(zip(FIGURES, map(int, counts), strict=True)))


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """What is different `now`: which images have another canonical or score, and which are in a cluster that changed.

    `unclustered` are the ids of images that were in a cluster of two or more and are in none now, ascending.
    """

    is_moved: NDArray[np.bool_]
    is_changed: NDArray[np.bool_]
    unclustered: pa.ChunkedArray

    @classmethod
    def between(cls, then: Placed, now: Placed) -> Moves:
        """What is different `now`. Images of both sides stand first, behind them those that were removed, or came."""
        num_known = int(np.isin(then.docs, now.docs).sum())
        stood_at = np.append(then.canonical_docs[:num_known], now.docs[num_known:])
        is_moved = now.canonical_docs != stood_at
        is_moved[:num_known] |= now.scores[:num_known] != then.scores[:num_known]
        changed = [now.canonical_docs[is_moved], stood_at[is_moved], then.canonical_docs[num_known:]]
        were_clustered, are_clustered = (one.image_ids.filter(pa.array(one.is_clustered)) for one in (then, now))
        unclustered = were_clustered.filter(
            pc.invert(pc.is_in(were_clustered, value_set=are_clustered.combine_chunks()))
        )
        unclustered = unclustered.take(pc.sort_indices(unclustered))
        return cls(is_moved, np.isin(now.canonical_docs, np.concatenate(changed)), unclustered)


def numbers_of(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A column as int64, nulls (embeddings made elsewhere have no sizes) as 0."""
    numbers: NDArray[np.int64] = pc.fill_null(column.cast(pa.int64()), 0).to_numpy()
    return numbers


def read_assignments(tables: tuple[str, ...], *, num_docs: int) -> Assignments:
    """What the `assignments` of cluster steps, oldest first, say of the docs `0 .. num_docs - 1`."""
    canonical_docs, scores = np.arange(num_docs), np.ones(num_docs, np.float32)
    if tables:
        assigned = read_columns(tables, ["doc", "canonical_doc", "score"])
        docs = assigned["doc"].to_numpy()
        # Of repeated docs the last assignment stays.
        canonical_docs[docs], scores[docs] = assigned["canonical_doc"].to_numpy(), assigned["score"].to_numpy()
    return Assignments(canonical_docs, scores)


def read_figures(whole: Known) -> Counter[str]:
    """`Placed.figures` of all images, as the newest cluster step has counted them."""
    stats = read_json(Path(whole.assignments[-1]).parent / "commit.json")["stats"]
    return Counter({name: stats[name] for name in FIGURES})


def read_clusters(whole: Known) -> pa.Table:
    """All clusters of two or more: `CLUSTERS` rows, in the order of `clusters_table`."""
    images = live_images(whole, ["image_id"])
    return clusters_table(images["image_id"], read_members(whole, images["doc"].to_numpy()))


def read_members(whole: Known, docs: NDArray[np.int64]) -> Members:
    """The members of all clusters, as rows of all live images, whose `docs` `(n,)` ascend."""
    assigned = read_assignments(whole.assignments, num_docs=max(whole.next_doc, int(docs.max(initial=-1)) + 1))
    return Members.of(np.searchsorted(docs, assigned.canonical_docs[docs]), assigned.scores[docs])


def clusters_table(image_ids: pa.ChunkedArray, members: Members) -> pa.Table:
    """`CLUSTERS` rows of members, whose docs are the rows of `image_ids`, arranged."""
    members = members.arranged
    columns = [
        image_ids.take(pa.array(members.docs)),
        image_ids.take(pa.array(members.canonical_docs)),
        members.scores,
        members.docs == members.canonical_docs,
        np.bincount(members.canonical_docs)[members.canonical_docs].astype(np.int32),
    ]
    return pa.table(columns, schema=schemas.arrow(schemas.CLUSTERS))
