"""Which images' clusters a night may change, and the matches that decide it.

Clusters are stars, so little reaches far. A content is *touched* when it is new, when an image of it came or went, when
its canonical is gone, or when a decision by hand names it, a match of it, or another image of their clusters: matches
that a decision has cost come back when images go, and may part two canonicals. Every content that is not touched keeps
its canonical; so the scope of a night is what is touched, what that matches, and the clusters of both. Of the matches
those of touched contents are needed; the match of any other with its canonical is known by its assignment.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.dataset
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.assignments import Assignments, Placed, read_assignments, read_figures
from batch_jobs.contents import Contents
from batch_jobs.nights import Known, read_columns, read_docs

_COLUMNS = ["doc", "image_id", "original_doc", "size_bytes"]
_NO_IMAGES = schemas.arrow(schemas.CATALOGUE).empty_table().select(_COLUMNS)


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Matches `(m,)`: both ends, contents or rows of images, and scores."""

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

    def __getitem__(self, which: NDArray[np.bool_]) -> Edges:
        return Edges(self.lefts[which], self.rights[which], self.scores[which])

    def on_rows(self, contents: Contents) -> Edges:
        """Those between contents that are there, their ends as rows."""
        lefts, rights = contents.rows_of(self.lefts), contents.rows_of(self.rights)
        is_live = (lefts >= 0) & (rights >= 0)
        return Edges(lefts, rights, self.scores)[is_live]


NO_EDGES = Edges(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def read_edges(tables: tuple[str, ...]) -> Edges:
    """The matches of all segments, gone contents among them."""
    if not tables:
        return NO_EDGES
    matches = read_columns(tables, ["left_doc", "right_doc", "score"])
    return Edges(*(matches[name].to_numpy() for name in matches.column_names))


@dataclass(frozen=True, slots=True, eq=False)
class LastNight:
    """What was there when a night began: docs below `next_doc`, as they were `assigned`, and the `figures` of them.

    `removed` are the images that are gone since: `doc`, `image_id`, `original_doc`, `size_bytes`.
    """

    next_doc: int
    assigned: Assignments
    removed: pa.Table
    figures: Counter[str]

    @classmethod
    def of(cls, before: Known, whole: Known) -> LastNight:
        """What was there `before` a night of which all there is now is the `whole`."""
        gone = read_docs(whole.removed[len(before.removed) :])
        removed = _NO_IMAGES
        if gone.size:
            is_gone = pyarrow.dataset.field("doc").isin(pa.array(gone))
            removed = read_columns(before.catalogues, _COLUMNS, where=is_gone)
        assigned = read_assignments(before.assignments, num_docs=before.next_doc)
        return cls(before.next_doc, assigned, removed, read_figures(before))

    @property
    def removed_docs(self) -> NDArray[np.int64]:
        docs: NDArray[np.int64] = self.removed["doc"].to_numpy()
        return docs

    def canonicals_of(
        self, docs: NDArray[np.int64], content_docs: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The docs of the canonicals that contents had, -1 for new ones, and their scores, by their first images now.

        Where that image is new, the content was known by one that is gone now.
        """
        order = np.argsort(self.removed["original_doc"].to_numpy())
        gone_contents, gone_docs = self.removed["original_doc"].to_numpy()[order], self.removed_docs[order]
        then, is_followed = docs.copy(), (docs >= self.next_doc) & np.isin(content_docs, gone_contents)
        then[is_followed] = gone_docs[np.searchsorted(gone_contents, content_docs[is_followed])]
        is_known = then < self.next_doc
        canonical_docs, scores = np.full(docs.size, -1), np.ones(docs.size, np.float32)
        canonical_docs[is_known] = self.assigned.canonical_docs[then[is_known]]
        scores[is_known] = self.assigned.scores[then[is_known]]
        return canonical_docs, scores

    def contents_of(
        self, wanted: NDArray[np.int64], docs: NDArray[np.int64], content_docs: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The content of each wanted doc, one of `docs` or of those that were removed, -1 for others."""
        all_docs = np.append(docs, self.removed_docs)
        order = np.argsort(all_docs, kind="stable")
        places = order[np.minimum(np.searchsorted(all_docs, wanted, sorter=order), order.size - 1)]
        contents = np.append(content_docs, self.removed["original_doc"].to_numpy())[places]
        return np.where(all_docs[places] == wanted, contents, -1)

    def placed(self, images: pa.Table, *, embedded_docs: NDArray[np.int64]) -> Placed:
        """Where the known ones among live images were, and behind them those that were removed."""
        known = images.slice(0, int(np.searchsorted(images["doc"].to_numpy(), self.next_doc)))
        there = pa.concat_tables([known.select(_COLUMNS), self.removed.select(_COLUMNS)])
        docs = there["doc"].to_numpy()
        canonical_docs, scores = self.assigned.canonical_docs[docs], self.assigned.scores[docs]
        return Placed.of(there, canonical_docs, scores, embedded_docs=embedded_docs)


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """The `rows` `(n,)`, ascending, of the live images whose clusters may change, all of them without a night before.

    By content doc, `is_touched` tells which contents are touched, whose matches with live ones are the `edges`, and
    `degrees` how many live ones each content in the scope matches, where there was a night.
    """

    rows: NDArray[np.int64]
    is_touched: NDArray[np.bool_]
    edges: Edges
    degrees: NDArray[np.int64]


def scope_of(
    docs: NDArray[np.int64],
    content_docs: NDArray[np.int64],
    edges: Edges,
    *,
    last: LastNight | None,
    named_contents: NDArray[np.int64],
) -> Scope:
    """The scope of what has changed since the `last` night, among live images of these docs and contents `(n,)`.

    `docs` ascend, `edges` are all matches of all contents, `named_contents` those that decisions name.
    """
    next_doc = last.next_doc if last else 0
    num_docs = max(next_doc, int(docs.max(initial=-1)) + 1)
    num_known = int(np.searchsorted(docs, next_doc))
    known_contents = content_docs[:num_known]
    is_touched = _marked(num_docs, content_docs[num_known:], named_contents)
    canonical_docs = np.empty(0, np.int64)
    if last is not None:
        canonical_docs = last.assigned.canonical_docs[docs[:num_known]]
        is_touched[last.removed["original_doc"].to_numpy()] = True
        led_by = [last.removed_docs]
        if named_contents.size:
            is_named = _marked(num_docs, named_contents)
            around = edges[is_named[edges.lefts] | is_named[edges.rights]]
            is_near = is_named | _marked(num_docs, around.lefts, around.rights)
            led_by.append(canonical_docs[is_near[known_contents]])
        is_touched[known_contents[_marked(num_docs, *led_by)[canonical_docs]]] = True
    is_live = _marked(num_docs, content_docs)
    touching = edges[is_touched[edges.lefts] | is_touched[edges.rights]]
    touching = touching[is_live[touching.lefts] & is_live[touching.rights]]
    is_near = is_touched | _marked(num_docs, touching.lefts, touching.rights)
    is_in = is_near[content_docs]
    if last is not None:
        gone_from = last.assigned.canonical_docs[last.removed_docs]
        leads = _marked(num_docs, canonical_docs[is_in[:num_known]], gone_from)
        is_in[:num_known] |= leads[canonical_docs]
    degrees = _degrees(edges, is_near, is_live) if last is not None else np.empty(0, np.int64)
    return Scope(np.flatnonzero(is_in), is_touched, touching, degrees)


def _marked(num_docs: int, *docs: NDArray[np.int64]) -> NDArray[np.bool_]:
    is_marked = np.zeros(num_docs, np.bool_)
    for some in docs:
        is_marked[some] = True
    return is_marked


def _degrees(edges: Edges, is_near: NDArray[np.bool_], is_live: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many live contents each content that `is_near` matches, by content doc, 0 for others."""
    counted = []
    for ends, others in ((edges.lefts, edges.rights), (edges.rights, edges.lefts)):
        is_wanted = is_near[ends]
        counted.append(ends[is_wanted][is_live[others[is_wanted]]])
    return np.bincount(np.concatenate(counted), minlength=is_near.size)
