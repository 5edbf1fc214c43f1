"""Rules of what a night has to do."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_jobs.changes import Changes, find_changes, rows_of
from batch_jobs.errors import SourceError


def changes(
    listed: dict[str, int],
    known: list[tuple[str, int, int, int]],
    *,
    only: Collection[str] = (),
    keeps_missing: bool = False,
) -> Changes:
    """`listed` has the state of each id, `known` rows are id, doc, original_doc, state."""
    listing = pa.table(
        {
            "image_id": pa.array(list(listed), pa.string()),
            "uri": pa.nulls(len(listed), pa.string()),
            "state": pa.array(list(listed.values()), pa.int64()),
        }
    )
    columns = list(zip(*known, strict=True)) or [(), (), (), ()]
    kinds = {"image_id": pa.string(), "doc": pa.int64(), "original_doc": pa.int64(), "state": pa.int64()}
    images = pa.table(
        {
            name: pa.chunked_array([pa.array(column, kind)])
            for (name, kind), column in zip(kinds.items(), columns, strict=True)
        }
    )
    return find_changes(listing, images, only=only, keeps_missing=keeps_missing)


KNOWN = [("a", 0, 0, 10), ("b", 1, 1, 11), ("copy-of-b", 4, 1, 12), ("d", 7, 7, 13)]


def arrivals(found: Changes) -> dict[str, int | None]:
    return dict(zip(found.arrivals["image_id"].to_pylist(), found.arrivals["known_doc"].to_pylist(), strict=True))


def test_new_touched_and_gone_images_are_told_apart() -> None:
    """An unknown id is new, another state touched, a missing id gone, and all else known."""
    found = changes({"new": 1, "b": 99, "a": 10, "d": 13}, KNOWN)
    assert arrivals(found) == {"new": None, "b": 1}
    assert found.rows.tolist() == [0, 1]
    assert found.gone_docs.tolist() == [4]
    assert (found.num_known, found.num_new, found.num_touched) == (2, 1, 1)


def test_everything_is_new_where_nothing_is_known() -> None:
    """A first night looks at all images."""
    found = changes({"a": 1, "b": 2}, [])
    assert arrivals(found) == {"a": None, "b": None}
    assert found.num_known == 0


def test_the_same_listing_has_no_changes() -> None:
    """States and ids as they were ask for nothing."""
    assert changes({row[0]: row[3] for row in KNOWN}, KNOWN).is_empty


def test_an_addition_lacks_nothing() -> None:
    """With `keeps_missing` nothing is gone."""
    found = changes({"new": 1}, KNOWN, keeps_missing=True)
    assert arrivals(found) == {"new": None}
    assert not found.gone_docs.size
    assert found.num_known == 4


def test_only_the_named_and_their_copies_are_redone() -> None:
    """`only` takes the copies of the content along, and leaves new, touched and gone images for later."""
    found = changes({"new": 1, "a": 99, "b": 11, "copy-of-b": 12}, KNOWN, only=["b"])
    assert arrivals(found) == {"b": 1, "copy-of-b": 4}
    assert found.redone_contents.tolist() == [1]
    assert not found.gone_docs.size
    assert changes({"a": 10}, KNOWN, only=["d"]).gone_docs.tolist() == [7]


def test_unknown_names_are_refused() -> None:
    """An id of `only` that neither the source nor a night has is named."""
    with pytest.raises(SourceError, match="no image is called x, y:"):
        changes({"a": 10}, KNOWN, only=["a", "y", "x"])


def test_rows_without_an_id_are_refused() -> None:
    """An image without an id could never be found again."""
    listing = pa.table({"image_id": pa.array([None], pa.string()), "uri": pa.nulls(1, pa.string()), "state": [1]})
    with pytest.raises(SourceError, match="without an image_id"):
        find_changes(listing, listing)


@given(st.lists(st.sampled_from("abcdefgh")), st.sets(st.sampled_from("abcdefgh")))
def test_rows_are_found_from_either_side(listed: list[str], known: set[str]) -> None:
    """Each id has its row among the known, however many there are of either."""
    among = sorted(known)
    found = rows_of(pa.chunked_array([listed], pa.string()), pa.chunked_array([among], pa.string()))

    assert found.tolist() == [among.index(image_id) if image_id in known else -1 for image_id in listed]
