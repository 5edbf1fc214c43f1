"""What a night has to do: which images of the source are new, changed or gone since the night before."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from batch_jobs.errors import SourceError

EXAMPLES = 5


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """`arrivals` are the images to look at: `image_id`, `uri`, `state`, and `known_doc`, null for an unknown id.

    `rows` are their places in the listing. `gone_docs`, ascending, are live docs whose image the source does not have,
    `redone_contents` those that are made again whatever their bytes. `num_known` counts live images that nothing
    happens to.
    """

    arrivals: pa.Table
    rows: NDArray[np.int64]
    gone_docs: NDArray[np.int64]
    redone_contents: NDArray[np.int64]
    num_known: int

    @property
    def num_new(self) -> int:
        return int(self.arrivals["known_doc"].null_count)

    @property
    def num_touched(self) -> int:
        """Known images whose file was written again, or that are to be redone."""
        return len(self.arrivals) - self.num_new

    @property
    def is_empty(self) -> bool:
        return not len(self.arrivals) and not self.gone_docs.size


def find_changes(
    listing: pa.Table, images: pa.Table, *, only: Collection[str] = (), keeps_missing: bool = False
) -> Changes:
    """Compare the `listing` of a source (`sources.list_source`) with the live `images`.

    `images` has `image_id`, `doc`, `original_doc`, `state`, by doc. With `only`, these images and their exact copies
    are redone, and all else waits for the next night. `keeps_missing`: the source holds only what is added.
    Raises SourceError for ids that are missing or listed twice, and for ids of `only` that neither side has.
    """
    if listing["image_id"].null_count:
        raise SourceError("the source has rows without an image_id; every image needs one")
    rows = rows_of(listing["image_id"], images["image_id"])
    is_known = rows >= 0
    _require_unique(listing["image_id"], rows)
    docs = images["doc"].to_numpy()
    is_listed = np.zeros(docs.size, np.bool_)
    is_listed[rows[is_known]] = True
    is_gone = ~is_listed & (not keeps_missing)
    is_touched = is_known & (listing["state"].to_numpy() != images["state"].to_numpy()[rows]) if docs.size else is_known
    redone = np.empty(0, np.int64)
    is_arrival = ~is_known | is_touched
    if only:
        wanted = pa.array(sorted(only), pa.string())
        _require_found(wanted, listing["image_id"], images["image_id"])
        contents = images["original_doc"].to_numpy()
        is_named = pc.is_in(images["image_id"], value_set=wanted).to_numpy()
        redone = np.unique(contents[is_named])
        is_redone = np.isin(contents, redone)
        is_arrival = pc.is_in(listing["image_id"], value_set=wanted).to_numpy()
        is_arrival[is_known] |= is_redone[rows[is_known]]
        is_gone &= is_redone
    known_docs = pa.array(np.append(docs, -1)[rows[is_arrival]], mask=~is_known[is_arrival])
    arrivals = listing.filter(pa.array(is_arrival)).append_column("known_doc", known_docs)
    num_touched = int((is_known & is_arrival).sum())
    return Changes(
        arrivals, np.flatnonzero(is_arrival), docs[is_gone], redone, docs.size - int(is_gone.sum()) - num_touched
    )


def rows_of(image_ids: pa.ChunkedArray, among: pa.ChunkedArray) -> NDArray[np.int64]:
    """The row of each id `among` distinct ones, -1 for one that is not there.

    A table is made of the shorter side, as a night's additions mostly are.
    """
    if len(among) <= len(image_ids):
        rows = pc.index_in(image_ids, value_set=among.combine_chunks())
        return pc.fill_null(rows, -1).to_numpy().astype(np.int64)  # type: ignore[no-any-return]
    distinct = pc.unique(image_ids)
    number_of = pc.fill_null(pc.index_in(among, value_set=distinct), -1).to_numpy()
    row_of = np.full(len(distinct) + 1, -1)
    row_of[number_of] = np.arange(len(among))
    row_of[-1] = -1
    return row_of[pc.index_in(image_ids, value_set=distinct).to_numpy()]  # type: ignore[no-any-return]


def _require_unique(image_ids: pa.ChunkedArray, rows: NDArray[np.int64]) -> None:
    known_twice = np.bincount(rows[rows >= 0]).max(initial=0) > 1
    new_ids = image_ids.filter(pa.array(rows < 0))
    if not known_twice and pc.count_distinct(new_ids, mode="all").as_py() == len(new_ids):
        return
    counted = image_ids.value_counts()
    values, counts = (pc.struct_field(counted, index) for index in (0, 1))
    twice = values.filter(pc.greater(counts, 1)).slice(0, EXAMPLES).to_pylist()
    raise SourceError(
        f"the source has image_ids that occur more than once, such as {', '.join(map(str, twice))}; make them unique"
    )


def _require_found(wanted: pa.Array, *sides: pa.ChunkedArray) -> None:
    is_found = np.zeros(len(wanted), np.bool_)
    for side in sides:
        is_found |= pc.is_in(wanted, value_set=side.combine_chunks()).to_numpy(zero_copy_only=False)
    if not is_found.all():
        unknown = wanted.filter(pa.array(~is_found)).slice(0, EXAMPLES).to_pylist()
        raise SourceError(f"no image is called {', '.join(unknown)}: neither the source nor a night before has it")
