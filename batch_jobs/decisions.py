"""Decisions by hand about clusters: a log of image ids that all later runs obey.

    decisions.jsonl     {"number": 1, "kind": "split", "groups": [["a.jpg"], ["b.jpg"]], "by": ..., "reason": ...}
                        {"number": 2, "kind": "merge", "groups": [["c.jpg", "d.jpg"]], ...}
                        {"number": 3, "kind": "forget", "forgets": 1, ...}

`split` keeps images of different groups out of one cluster, `merge` keeps those of its group in one. Nothing is ever
taken out of the log: `forget` only ends what an earlier decision did. A decision may be taken while a run is under way;
that run goes on with the decisions it started with.

A cluster is a star: all its members match its canonical directly. So two images can never meet in a cluster when they
do not match each other and no third image matches both, and `apply_decisions` drops matches until that holds. Images
merged by hand become one node of the graph, as byte-identical copies are.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batch_jobs.errors import DecisionError, LeaseHeldError, WorkspaceError
from batch_jobs.lease import Lease
from batch_jobs.settings import digest
from batch_jobs.workspace import published_file, workspace_error

DECISIONS_FILE = "decisions.jsonl"
WAIT_S = 30.0

Node = TypeVar("Node", bound=Hashable)


class DecisionKind(StrEnum):
    """What a decision does."""

    SPLIT = "split"
    MERGE = "merge"
    FORGET = "forget"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One line of the log. `forgets` is the number of the decision that a `forget` ends; `groups` is empty then.

    Raises DecisionError where the groups are not what the kind needs.
    """

    kind: DecisionKind
    groups: tuple[tuple[str, ...], ...] = ()
    by: str
    reason: str
    forgets: int | None = None
    decided_at: str = ""
    number: int = 0

    def __post_init__(self) -> None:
        named = [image_id for group in self.groups for image_id in group]
        if self.kind is not DecisionKind.FORGET and (len(named) < 2 or not all(self.groups)):
            raise DecisionError(f"a {self.kind} needs two images or more; {len(named)} given")
        twice = sorted({image_id for image_id in named if named.count(image_id) > 1})
        if twice:
            raise DecisionError(f"{twice[0]} is named twice in one {self.kind}; name every image once")
        if self.kind is DecisionKind.SPLIT and len(self.groups) < 2:
            raise DecisionError("a split needs two groups or more; one given")
        if self.kind is DecisionKind.MERGE and len(self.groups) != 1:
            raise DecisionError(f"a merge needs one group; {len(self.groups)} given")

    @property
    def labels(self) -> dict[str, int]:
        """The number of the group of each image."""
        return {image_id: number for number, group in enumerate(self.groups) for image_id in group}

    def describe(self) -> str:
        """The decision in one line for an operator."""
        what = f"forgets {self.forgets}" if self.kind is DecisionKind.FORGET else " | ".join(map(_listed, self.groups))
        return f"{self.number}  {self.decided_at}  {self.kind}  {what}  by {self.by}: {self.reason}"


def _listed(group: tuple[str, ...]) -> str:
    more = f", and {len(group) - 3} more" if len(group) > 3 else ""
    return ", ".join(group[:3]) + more


@dataclass(frozen=True, slots=True)
class DocDecisions:
    """Decisions on docs: each of `splits` maps docs to the number of their group, each of `merges` is one group."""

    splits: tuple[Mapping[int, int], ...]
    merges: tuple[tuple[int, ...], ...]


NO_DECISIONS = DocDecisions(splits=(), merges=())


@dataclass(frozen=True, slots=True)
class Decisions:
    """The log of a workspace, in the order in which it was written."""

    log: tuple[Decision, ...] = ()

    @property
    def active(self) -> tuple[Decision, ...]:
        """The splits and merges that nobody has taken back."""
        forgotten = {decision.forgets for decision in self.log}
        return tuple(one for one in self.log if one.kind is not DecisionKind.FORGET and one.number not in forgotten)

    @property
    def digest(self) -> str:
        """Names what clustering depends on: kinds and images, not who decided, when and why."""
        return digest([[one.kind, [sorted(group) for group in one.groups]] for one in self.active])

    @property
    def named(self) -> list[str]:
        """The ids that the active decisions name, in order."""
        return sorted({image_id for one in self.active for image_id in one.labels})

    def about(self, image_ids: Iterable[str]) -> tuple[Decision, ...]:
        """The active decisions that name one of some images."""
        wanted = set(image_ids)
        return tuple(one for one in self.active if wanted.intersection(one.labels))

    def are_named(self, image_ids: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Which of these ids `(n,)` an active decision names."""
        named = self.named
        if not named:
            return np.zeros(len(image_ids), np.bool_)
        are: NDArray[np.bool_] = pc.is_in(
            image_ids.cast(pa.string()), value_set=pa.array(named, pa.string())
        ).to_numpy()
        return are

    def on_docs(self, image_ids: pa.ChunkedArray, is_embedded: NDArray[np.bool_]) -> DocDecisions:
        """The active decisions on the docs `0..n-1` of these ids; images that are not there are left out.

        `is_embedded` `(n,)` tells which docs have an embedding, their own or that of a byte-identical image.
        """
        named = self.named
        if not named:
            return NO_DECISIONS
        places = pc.index_in(image_ids.cast(pa.string()), value_set=pa.array(named, pa.string())).to_numpy()
        doc_of = {named[int(places[doc])]: doc for doc in np.flatnonzero(~np.isnan(places) & is_embedded).tolist()}
        known = [
            (one.kind, {doc_of[image_id]: label for image_id, label in one.labels.items() if image_id in doc_of})
            for one in self.active
        ]
        return DocDecisions(
            splits=tuple(labels for kind, labels in known if kind is DecisionKind.SPLIT and len(labels) > 1),
            merges=tuple(tuple(labels) for kind, labels in known if kind is DecisionKind.MERGE and len(labels) > 1),
        )


def read_decisions(workspace: Path) -> Decisions:
    """The decisions of a workspace folder, none where nobody has decided; raises WorkspaceError for a damaged log."""
    path = workspace / DECISIONS_FILE
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return Decisions()
    except (OSError, ValueError) as error:
        raise WorkspaceError(f"{path} cannot be read ({error}); restore it from a backup") from error
    return Decisions(tuple(_parsed(line, number, path) for number, line in enumerate(lines, 1)))


def _parsed(line: str, number: int, path: Path) -> Decision:
    try:
        value: dict[str, Any] = json.loads(line)
        value |= {
            "kind": DecisionKind(value["kind"]),
            "groups": tuple(tuple(str(image_id) for image_id in group) for group in value["groups"]),
        }
        decision = Decision(**value)
    except (ValueError, KeyError, TypeError, DecisionError) as error:
        raise WorkspaceError(f"line {number} of {path} is no decision ({error}); restore it from a backup") from error
    if decision.number != number:
        raise WorkspaceError(f"line {number} of {path} has number {decision.number}; restore it from a backup")
    return decision


def record_decision(workspace: Path, decision: Decision) -> Decision:
    """Append a decision, whole and on disk, and return it with its number and time.

    An equal one that is active already is returned instead. Raises DecisionError where it contradicts an active one or
    forgets one that is not active, WorkspaceError where the log cannot be written.
    """
    try:
        with Lease(
            workspace / ".leases" / "decisions", "another decision", lock=workspace / ".decisions.lock", wait_s=WAIT_S
        ):
            decisions = read_decisions(workspace)
            same = [one for one in decisions.active if (one.kind, one.groups) == (decision.kind, decision.groups)]
            if same:
                return same[0]
            check_decision(decisions, decision)
            numbered = replace(
                decision,
                number=len(decisions.log) + 1,
                decided_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            path = workspace / DECISIONS_FILE
            written = path.read_bytes() if path.exists() else b""
            with published_file(path) as file:
                file.write(written + json.dumps(asdict(numbered), sort_keys=True).encode() + b"\n")
            return numbered
    except LeaseHeldError as error:
        raise LeaseHeldError(f"{workspace / DECISIONS_FILE} is being written by {error}; try again") from error
    except OSError as error:
        raise workspace_error(workspace, error) from error


def check_decision(decisions: Decisions, decision: Decision) -> None:
    """Raises DecisionError where a new decision contradicts the active ones or forgets one that is not active."""
    active = decisions.active
    if decision.kind is DecisionKind.FORGET:
        if decision.forgets not in {one.number for one in active}:
            raise DecisionError(
                f"there is no decision {decision.forgets} to forget; `neardup cluster decisions` lists those that hold"
            )
        return
    splits = [one for one in (*active, decision) if one.kind is DecisionKind.SPLIT]
    groups = _Groups[str]([one.labels for one in splits])
    for merge in (one for one in (*active, decision) if one.kind is DecisionKind.MERGE):
        first, *others = merge.groups[0]
        for other in others:
            forbidden_by = groups.join(first, other)
            if forbidden_by is not None:
                earlier = splits[forbidden_by] if merge is decision else merge
                raise DecisionError(
                    f"this contradicts an earlier decision: {earlier.describe()}; "
                    f"`neardup cluster forget {earlier.number}` takes it back"
                )


class _Groups(Generic[Node]):
    """Union-find over nodes that never joins what one of `splits` keeps apart."""

    def __init__(self, splits: Iterable[Mapping[Node, int]]) -> None:
        self._parent: dict[Node, Node] = {}
        self._labels: dict[Node, dict[int, int]] = defaultdict(dict)
        for number, labels in enumerate(splits):
            for node, label in labels.items():
                self._labels[node][number] = label

    def join(self, left: Node, right: Node) -> int | None:
        """Join two nodes, or return the number of a split that forbids it."""
        kept, gone = self._root(left), self._root(right)
        if kept == gone:
            return None
        labels, others = self._labels[kept], self._labels[gone]
        for number, label in others.items():
            if labels.get(number, label) != label:
                return number
        labels |= others
        self._parent[gone] = kept
        return None

    def __iter__(self) -> Iterator[list[Node]]:
        """The groups of two nodes or more."""
        members: dict[Node, list[Node]] = defaultdict(list)
        for node in list(self._parent):
            members[self._root(node)].append(node)
        return (group for group in members.values() if len(group) > 1)

    def _root(self, node: Node) -> Node:
        parent = self._parent.setdefault(node, node)
        while parent != node:
            grandparent = self._parent[parent]
            self._parent[node] = grandparent
            node, parent = parent, grandparent
        return node


@dataclass(frozen=True, slots=True, eq=False)
class DecidedEdges:
    """What clustering must use: edges `(m,)` between originals, and the `original_docs` `(n,)` that docs follow.

    `num_dropped` counts the edges that a split has cost, `num_overruled` the merges that a split forbade.
    """

    lefts: NDArray[np.int64]
    rights: NDArray[np.int64]
    scores: NDArray[np.float32]
    original_docs: NDArray[np.int64]
    num_dropped: int = 0
    num_overruled: int = 0


def apply_decisions(
    *,
    lefts: NDArray[np.int64],
    rights: NDArray[np.int64],
    scores: NDArray[np.float32],
    original_docs: NDArray[np.int64],
    pixels: NDArray[np.int64],
    decided: DocDecisions,
) -> DecidedEdges:
    """Edges between originals `(m,)` as the decisions leave them, for clusters in which members match their canonical.

    Docs of one merge follow the one with most pixels, then the smallest doc, as copies follow their original. Docs of
    different groups of a split get no edge in common: not with each other, and of the edges of a third doc to several
    groups only those to the group of its best match stay. Where a split and a merge or equal bytes disagree, the split
    holds. `original_docs` and `pixels` are `(n,)`.
    """
    if not decided.splits and not decided.merges:
        return DecidedEdges(lefts, rights, scores, original_docs)
    groups = _Groups[int](decided.splits)
    own = original_docs.copy()
    for doc in sorted({doc for group in (*decided.splits, *decided.merges) for doc in group}):
        if own[doc] != doc and groups.join(int(own[doc]), doc) is not None:
            own[doc] = doc
    num_overruled = sum(groups.join(merge[0], other) is not None for merge in decided.merges for other in merge[1:])
    target = np.arange(len(own))
    for group in groups:
        target[group] = min(group, key=lambda doc: (-int(pixels[doc]), doc))
    lefts, rights, scores = _reattached(target[lefts], target[rights], scores)
    own = target[own]
    splits = [{int(own[doc]): label for doc, label in labels.items()} for labels in decided.splits]
    is_kept = np.ones(len(lefts), np.bool_)
    is_kept[list(_forbidden(lefts, rights, scores, splits))] = False
    return DecidedEdges(
        lefts[is_kept],
        rights[is_kept],
        scores[is_kept],
        own,
        num_dropped=int((~is_kept).sum()),
        num_overruled=num_overruled,
    )


def _reattached(
    lefts: NDArray[np.int64], rights: NDArray[np.int64], scores: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Each pair once, the smaller doc left, with its best score; loops left out."""
    low, high = np.minimum(lefts, rights), np.maximum(lefts, rights)
    order = np.lexsort((-scores, high, low))
    order = order[low[order] != high[order]]
    low, high = low[order], high[order]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    return low[is_first], high[is_first], scores[order][is_first]


def _forbidden(
    lefts: NDArray[np.int64],
    rights: NDArray[np.int64],
    scores: NDArray[np.float32],
    splits: list[dict[int, int]],
) -> Iterator[int]:
    """The edges that would bring docs of different labels of one of `splits` into one star."""
    named = np.array(sorted({doc for labels in splits for doc in labels}), np.int64)
    incident = np.flatnonzero(np.isin(lefts, named) | np.isin(rights, named))
    edges_of: dict[int, list[tuple[float, int, int]]] = defaultdict(list)
    for edge, left, right, score in zip(
        incident.tolist(), lefts[incident].tolist(), rights[incident].tolist(), scores[incident].tolist(), strict=True
    ):
        edges_of[left].append((-score, right, edge))
        edges_of[right].append((-score, left, edge))
    for labels in splits:
        around: dict[int, list[tuple[float, int, int]]] = defaultdict(list)
        for doc, label in labels.items():
            for worse, other, edge in edges_of[doc]:
                if labels.get(other, label) != label:
                    yield edge
                elif other not in labels:
                    around[other].append((worse, doc, edge))
        for matches in around.values():
            kept = labels[min(matches)[1]]
            yield from (edge for _, doc, edge in matches if labels[doc] != kept)
