"""Rules of posting lists."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lsh.blocks import decode_term_blocks, encode_term_blocks
from lsh.buckets import Buckets
from lsh.errors import FormatError
from lsh.posting_lists import POSTING_LISTS, PostingLists

term = st.integers(0, 40) | st.integers(2**63, 2**64 - 1)
docs_and_terms = st.dictionaries(st.integers(0, 400), st.lists(term, min_size=2, max_size=2), max_size=40)


def words(values: Any) -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def buckets_of(terms_of_doc: dict[int, list[int]]) -> Buckets:
    docs = sorted(terms_of_doc)
    terms = words([terms_of_doc[doc] for doc in docs]).reshape(-1, 2)
    sketches = words([[doc, 2**64 - 1 - doc] for doc in docs]).reshape(-1, 2)
    blocks = encode_term_blocks(terms, words(docs), sketches, num_partitions=1) if docs else []
    return Buckets.of(decode_term_blocks(blocks))


def lists_of(terms_of_doc: dict[int, list[int]]) -> PostingLists:
    return PostingLists.of(buckets_of(terms_of_doc))


def frame_of(lists: PostingLists) -> bytes:
    return b"".join(lists.frame())


def assert_same(actual: Buckets, expected: Buckets) -> None:
    for name in ("terms", "ends", "doc_rows", "docs", "sketches"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))


@given(docs_and_terms)
def test_lists_survive_their_bytes(terms_of_doc: dict[int, list[int]]) -> None:
    """Lists read from the bytes they were written to hold the same buckets, and write the same bytes again."""
    expected = buckets_of(terms_of_doc)
    lists = PostingLists.from_frame(frame_of(PostingLists.of(expected)))

    assert_same(lists.buckets(), expected)
    assert frame_of(lists) == frame_of(PostingLists.of(expected))


@given(docs_and_terms, st.sets(term, max_size=8), st.sets(st.integers(0, 400)))
def test_lists_of_some_terms_are_those_of_a_scan(
    terms_of_doc: dict[int, list[int]], wanted: set[int], removed: set[int]
) -> None:
    """The docs of each term that is asked for, there or not, are those that have it and were not removed."""
    wanted |= {terms[0] for terms in list(terms_of_doc.values())[::3]}
    asked = sorted(wanted)
    lists = lists_of(terms_of_doc)
    found = lists.buckets_of(words(asked), removed_docs=words(sorted(removed)))

    assert [found.docs[found.rows(number)].tolist() for number in range(len(asked))] == [
        [doc for doc in sorted(terms_of_doc) if one in terms_of_doc[doc] and doc not in removed] for one in asked
    ]


def test_few_terms_of_many_are_found() -> None:
    """First, last, neighbouring and missing terms, near and far from one another."""
    terms = words(range(0, 3000, 3))
    lists = PostingLists.of(Buckets(terms, np.arange(1, 1001), np.zeros(1000, np.uint32), words([7]), words([[1]])))
    asked = [0, 1, 3, 6, 1500, 1501, 2994, 2997, 2998, 5000]

    assert lists.buckets_of(words(asked)).sizes.tolist() == [int(one % 3 == 0 and one < 3000) for one in asked]


def test_sections_in_a_frame_are_aligned() -> None:
    """Words start at a multiple of 8 bytes, so that a memory map of the frame needs no copy."""
    frame = np.frombuffer(frame_of(lists_of({5: [1, 2], 9: [2, 3]})), dtype=np.uint8)
    lists = PostingLists.from_frame(frame)

    for section in (lists.terms, lists.offsets, lists.docs, lists.sketches):
        assert np.shares_memory(section, frame)
        assert section.flags.aligned


def test_every_flipped_bit_raises() -> None:
    """Posting lists with any one bit flipped raise FormatError where the checksum is read."""
    frame = frame_of(lists_of({5: [3, 3], 300: [3, 200]}))
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(FormatError):
            PostingLists.from_frame(damaged)


def test_every_truncation_raises() -> None:
    """Posting lists cut at any byte, or with bytes after them, raise FormatError, whether their checksum is read."""
    frame = frame_of(lists_of({5: [3, 3], 300: [3, 200]}))
    for is_verified in (False, True):
        for size in range(len(frame)):
            with pytest.raises(FormatError):
                PostingLists.from_frame(frame[:size], is_verified=is_verified)
        with pytest.raises(FormatError):
            PostingLists.from_frame(frame + b"\0", is_verified=is_verified)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": [0, 0, 1]}, "whole, distinct, ascending"),
        ({"data": [0, 5, 1]}, "whole, distinct, ascending"),
        ({"data": [0x80, 0, 1]}, "whole, distinct, ascending"),
        ({"data": [0, 0x81, 1]}, "whole, distinct, ascending"),
        ({"data": [*[0xFF] * 6, 1], "offsets": [0, 6, 7]}, "whole, distinct, ascending"),
        ({"offsets": [0, 4, 3]}, "behind all"),
        ({"offsets": [2, 0, 3]}, "ends before it starts"),
        ({"docs": [300, 5]}, "docs of posting lists are not"),
    ],
)
def test_damaged_lists_raise_when_they_are_read(changed: dict[str, list[int]], message: str) -> None:
    """Repeated rows, rows of no doc, cut or long codes, wrong offsets and docs, where nobody has read the checksum."""
    whole = lists_of({5: [3, 3], 300: [3, 200]})
    dtypes = {"data": np.uint8, "offsets": np.uint64, "docs": np.uint64}
    damaged = replace(whole, **{name: np.array(values, dtypes[name]) for name, values in changed.items()})
    lists = PostingLists.from_frame(frame_of(damaged), is_verified=True)

    with pytest.raises(FormatError, match=message):
        lists.buckets()


@pytest.mark.parametrize("words_per_sketch", [0, 65])
def test_sketches_of_no_length_raise(words_per_sketch: int) -> None:
    """A number of words that no sketch has raises FormatError."""
    frame = POSTING_LISTS.pack([0, 0, words_per_sketch, 0], [words([0])])
    with pytest.raises(FormatError, match="words_per_sketch"):
        PostingLists.from_frame(frame)


def test_a_huge_count_with_a_right_checksum_raises() -> None:
    """A count that no memory could hold raises FormatError before anything is allocated."""
    body = struct.pack("<4Q", 2**61, 2**60, 4, 2**60)
    frame = struct.pack("<4sIII", b"NDPL", 2, 4, zlib.crc32(body)) + body

    with pytest.raises(FormatError, match="found 0"):
        PostingLists.from_frame(frame)
