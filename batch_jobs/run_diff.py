"""What is different between two runs: images, clusters and matched pairs, by image id.

Docs are numbers of one run, so both runs' image ids are numbered anew, together; everything else is sets of integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batch_jobs.assignments import read_clusters
from batch_jobs.contents import contents_of
from batch_jobs.nights import Known, live_images, read_columns
from batch_jobs.run_records import RunRecord
from batch_jobs.run_tables import RunTables

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Found:
    """How many there are, and some of them as lists of image ids."""

    count: int
    examples: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDiff:
    """What the run `after` has that `before` had not, and the reverse.

    A cluster of `after` appeared when none of its images was in a cluster, and one of `before` vanished when none of
    its images is in one. One is headed anew when its canonical is still there but most of its images follow another
    (examples: old and new canonical), and has changed when its canonical stayed and its members did not.
    """

    before: str
    after: str
    images_added: Found
    images_removed: Found
    clusters_appeared: Found
    clusters_vanished: Found
    clusters_headed_anew: Found
    clusters_changed: Found
    pairs_gained: Found
    pairs_lost: Found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def counts(self) -> dict[str, int]:
        """The figures alone, by name."""
        return {name: value.count for name, value in self.named().items()}

    def named(self) -> Mapping[str, Found]:
        """Each kind of difference by its name."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if isinstance(value, Found)}


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """One run in common numbers: its images, each image's canonical or -1 `(n,)`, and its pairs as keys, ascending."""

    is_there: NDArray[np.bool_]
    canonical: Numbers
    pairs: Numbers


def diff_runs(workspace: Path, before: RunRecord, after: RunRecord, *, num_examples: int = 10) -> RunDiff:
    """Compare the tables of two runs of a workspace; raises WorkspaceError where they are gone."""
    wholes = [RunTables(workspace, run).clustered for run in (before, after)]
    images = [live_images(one, ["image_id", "original_doc"]) for one in wholes]
    image_ids = pc.unique(pa.chunked_array([c for one in images for c in one["image_id"].chunks], pa.string()))
    # In the order of the ids, so that examples do not depend on the order of files.
    image_ids = image_ids.take(pc.sort_indices(image_ids))
    old, new = (_side(whole, rows, image_ids) for whole, rows in zip(wholes, images, strict=True))

    def named(numbers: Numbers) -> tuple[str, ...]:
        ids: list[str] = image_ids.take(pa.array(numbers)).to_pylist()
        return tuple(ids)

    def singles(numbers: Numbers) -> Found:
        return Found(len(numbers), tuple((one,) for one in named(numbers[:num_examples])))

    def pairs(keys: Numbers) -> Found:
        ends = [np.array(divmod(key, len(image_ids))) for key in keys[:num_examples].tolist()]
        return Found(len(keys), tuple(named(one) for one in ends))

    headed_anew, heads = _headed_anew(old, new)
    return RunDiff(
        before=before.run_id,
        after=after.run_id,
        images_added=singles(np.flatnonzero(new.is_there & ~old.is_there)),
        images_removed=singles(np.flatnonzero(old.is_there & ~new.is_there)),
        clusters_appeared=singles(_without_members_in(new, old)),
        clusters_vanished=singles(_without_members_in(old, new)),
        clusters_headed_anew=Found(
            len(headed_anew),
            tuple(
                named(np.array(ends))
                for ends in zip(headed_anew[:num_examples].tolist(), heads[:num_examples].tolist(), strict=True)
            ),
        ),
        clusters_changed=singles(_changed(old, new)),
        pairs_gained=pairs(np.setdiff1d(new.pairs, old.pairs, assume_unique=True)),
        pairs_lost=pairs(np.setdiff1d(old.pairs, new.pairs, assume_unique=True)),
    )


def _side(whole: Known, images: pa.Table, image_ids: pa.Array) -> _Side:
    numbers = _numbers(images["image_id"], image_ids)
    is_there = np.zeros(len(image_ids), np.bool_)
    is_there[numbers] = True
    clusters = read_clusters(whole)
    canonical = np.full(len(image_ids), -1)
    canonical[_numbers(clusters["image_id"], image_ids)] = _numbers(clusters["canonical_id"], image_ids)
    # A pair is told by the first images with its bytes; nights may have removed those that were embedded.
    contents, _ = contents_of(images["original_doc"].to_numpy(), np.ones(len(images), np.bool_))
    matches = read_columns(whole.edges, ["left_doc", "right_doc"])
    rows = np.stack([contents.rows_of(matches[name].to_numpy()) for name in ("left_doc", "right_doc")])
    ends = np.sort(numbers[rows[:, (rows >= 0).all(axis=0)]], axis=0)
    return _Side(is_there, canonical, np.unique(ends[0] * len(image_ids) + ends[1]))


def _numbers(ids: pa.ChunkedArray, image_ids: pa.Array) -> Numbers:
    numbers: Numbers = pc.index_in(ids, value_set=image_ids).to_numpy().astype(np.int64)
    return numbers


def _clusters(side: _Side) -> Numbers:
    found: Numbers = np.unique(side.canonical[side.canonical >= 0])
    return found


def _without_members_in(side: _Side, other: _Side) -> Numbers:
    """The canonicals of clusters of `side` whose images are in no cluster of `other`."""
    shared = side.canonical[(side.canonical >= 0) & (other.canonical >= 0)]
    return np.setdiff1d(_clusters(side), shared)


def _headed_anew(old: _Side, new: _Side) -> tuple[Numbers, Numbers]:
    """The old canonicals, still there, most of whose clustered members follow another one now; and that one."""
    both = (old.canonical >= 0) & (new.canonical >= 0)
    followed, counts = np.unique(np.stack([old.canonical[both], new.canonical[both]]), axis=1, return_counts=True)
    # By old canonical, most followed first, the smallest number on a tie.
    order = np.lexsort((followed[1], -counts, followed[0]))
    heads, first = np.unique(followed[0][order], return_index=True)
    now = followed[1][order][first]
    is_anew = (heads != now) & new.is_there[heads]
    return heads[is_anew], now[is_anew]


def _changed(old: _Side, new: _Side) -> Numbers:
    """Canonicals of both runs whose sets of members differ."""
    stayed = np.intersect1d(_clusters(old), _clusters(new))
    moved = old.canonical != new.canonical
    touched = np.union1d(old.canonical[moved], new.canonical[moved])
    return np.intersect1d(stayed, touched)
