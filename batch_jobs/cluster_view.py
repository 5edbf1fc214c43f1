"""One cluster of a run as people look at it: its members and why they are there, and who matches but is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq

from batch_jobs import cluster_matches
from batch_jobs.decisions import Decision, DecisionKind, Decisions
from batch_jobs.run_tables import Row, RunTables

MAX_OUTSIDERS = 50


@dataclass(frozen=True, slots=True)
class ViewedMember:
    """A member with its score and, where it matches the canonical by itself, similarity and shared terms."""

    image_id: str
    score: float
    similarity: float | None
    shared_terms: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Outsider:
    """An image that matches a member but is in another cluster or in none (`canonical_id` is None)."""

    image_id: str
    matches: str
    score: float
    canonical_id: str | None
    why: str


@dataclass(frozen=True, slots=True)
class ClusterView:
    """A cluster of two or more, or an image alone: then `members` holds just that image."""

    canonical_id: str
    members: tuple[ViewedMember, ...]
    outsiders: tuple[Outsider, ...]
    decisions: tuple[Decision, ...]


def view_cluster(tables: RunTables, image_id: str, decisions: Decisions) -> ClusterView:
    """The cluster of an image; raises SourceError for an image that the run does not have."""
    tables.required_image(image_id)
    membership = tables.membership([image_id])
    canonical_id = membership[image_id]["canonical_id"] if membership else image_id
    members = tables.cluster(canonical_id) or [
        {"image_id": image_id, "canonical_id": image_id, "score": 1.0, "is_canonical": True}
    ]
    about = decisions.about(row["image_id"] for row in members)
    images = tables.images_named(row["image_id"] for row in members)
    originals = {row["original_doc"] for row in images.values()}
    canonical = images[canonical_id]
    edges = tables.edges(originals)
    with_canonical = {doc: edge for edge in edges for doc in _other_end(edge, canonical["original_doc"])}
    merged = [one for one in about if one.kind is DecisionKind.MERGE]
    num_copies = Counter(row["original_doc"] for row in images.values())
    return ClusterView(
        canonical_id=canonical_id,
        members=tuple(
            _member(
                row,
                images[row["image_id"]],
                canonical,
                with_canonical.get(images[row["image_id"]]["original_doc"]),
                merged,
                is_copy=num_copies[images[row["image_id"]]["original_doc"]] > 1,
            )
            for row in members
        ),
        outsiders=tuple(_outsiders(tables, edges, originals, about)),
        decisions=about,
    )


def _other_end(edge: Row, doc: int) -> list[int]:
    ends = (edge["left_doc"], edge["right_doc"])
    return [end for end in ends if end != doc] if doc in ends else []


def _member(
    row: Row, image: Row, canonical: Row, edge: Row | None, merged: list[Decision], *, is_copy: bool
) -> ViewedMember:
    by_hand = [one.number for one in merged if row["image_id"] in one.labels]
    if row["is_canonical"]:
        why = "canonical"
    elif image["original_doc"] == canonical["original_doc"]:
        why = "byte-identical to the canonical"
    elif edge is not None:
        why = "matches the canonical"
    elif by_hand:
        why = f"merged by hand (decision {by_hand[0]})"
    elif is_copy:
        why = "byte-identical to a member"
    else:
        why = "matches an image that was merged with the canonical"
    return ViewedMember(
        image_id=row["image_id"],
        score=row["score"],
        similarity=edge["similarity"] if edge else None,
        shared_terms=edge["shared_terms"] if edge else None,
        why=why,
    )


def _outsiders(tables: RunTables, edges: list[Row], originals: set[int], about: tuple[Decision, ...]) -> list[Outsider]:
    crossing = [edge for edge in edges if (edge["left_doc"] in originals) != (edge["right_doc"] in originals)]
    crossing = crossing[:MAX_OUTSIDERS]
    images = tables.images({edge[end] for edge in crossing for end in ("left_doc", "right_doc")})
    ids = {doc: row["image_id"] for doc, row in images.items()}
    membership = tables.membership(ids.values())
    found = []
    for edge in crossing:
        left_is_in = edge["left_doc"] in originals
        inside, outside = (edge["left_doc"], edge["right_doc"]) if left_is_in else (edge["right_doc"], edge["left_doc"])
        row = membership.get(ids[outside])
        found.append(
            Outsider(
                image_id=ids[outside],
                matches=ids[inside],
                score=edge["score"],
                canonical_id=row["canonical_id"] if row else None,
                why=_why_outside(row, ids[inside], ids[outside], about),
            )
        )
    return found


def _why_outside(row: Row | None, inside: str, outside: str, about: tuple[Decision, ...]) -> str:
    for one in about:
        labels = one.labels
        if one.kind is DecisionKind.SPLIT and outside in labels and labels.get(inside) != labels[outside]:
            return f"split by hand (decision {one.number})"
    if row is None:
        return "its own: all that it matches fits another canonical better"
    if row["is_canonical"]:
        return "canonical of its own cluster"
    return f"fits its canonical better ({row['score']:.4f})"


def preview(tables: RunTables, decisions: Decisions) -> dict[str, set[str]]:
    """What the clusters of a run would be under other decisions: members by canonical id. Nothing is written.

    Those of a night are updated, as the next night does.
    """
    before = tables.whole if tables.night else None
    with TemporaryDirectory(prefix="neardup-") as folder:
        cluster_matches.cluster_matches(Path(folder), whole=tables.whole, decisions=decisions, before=before)
        return _by_canonical(Path(folder) / "clusters")


def _by_canonical(table: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    columns = pq.read_table(table, columns=["canonical_id", "image_id"]).to_pydict()
    for canonical_id, image_id in zip(columns["canonical_id"], columns["image_id"], strict=True):
        found.setdefault(canonical_id, set()).add(image_id)
    return found
