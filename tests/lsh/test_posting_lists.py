"""Rules of posting lists."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lsh.errors import FormatError, ParameterError
from lsh.posting_lists import POSTING_LISTS, PostingLists

NUM_BUCKETS = 12
doc = st.integers(0, 5) | st.integers(0, 300) | st.integers(0, 2**64 - 1)
pairs_of_bucket_and_doc = st.lists(st.tuples(st.integers(0, NUM_BUCKETS - 1), doc), max_size=60)


def build(pairs: list[tuple[int, int]]) -> PostingLists:
    buckets = np.array([pair[0] for pair in pairs], dtype=np.uint64)
    return PostingLists.build(buckets, np.array([pair[1] for pair in pairs], dtype=np.uint64), NUM_BUCKETS)


def contents(lists: PostingLists) -> list[list[int]]:
    return [lists[bucket].tolist() for bucket in range(len(lists))]


def frame_of(offsets: list[int], data: list[int], *, num_postings: int) -> bytes:
    """A frame with a right checksum around whatever content."""
    sections: list[NDArray[np.generic]] = [np.array(offsets, dtype="<u8"), np.array(data, dtype=np.uint8)]
    return POSTING_LISTS.pack([len(offsets) - 1, num_postings, len(data)], sections)


@given(pairs_of_bucket_and_doc)
def test_lists_equal_sorted_sets(pairs: list[tuple[int, int]]) -> None:
    """A bucket's list is the sorted set of docs paired with it, whatever their order and repetition."""
    expected = [sorted({doc for bucket, doc in pairs if bucket == number}) for number in range(NUM_BUCKETS)]

    assert contents(build(pairs)) == expected


@given(pairs_of_bucket_and_doc)
def test_lists_survive_their_bytes(pairs: list[tuple[int, int]]) -> None:
    """Lists read from the bytes they were written to are the same, and write the same bytes again."""
    lists = build(pairs)
    again = PostingLists.from_bytes(lists.to_bytes())

    assert contents(again) == contents(lists)
    assert again.to_bytes() == lists.to_bytes()


def test_lists_of_no_buckets_are_lists() -> None:
    """Zero buckets and zero pairs build, write and read."""
    nothing = np.empty(0, dtype=np.uint64)

    assert len(PostingLists.from_bytes(PostingLists.build(nothing, nothing, 0).to_bytes())) == 0


def test_offsets_in_a_frame_are_aligned() -> None:
    """Offsets start at a multiple of 8 bytes, so that a memory map of the frame needs no copy."""
    frame = np.frombuffer(build([(1, 5)]).to_bytes(), dtype=np.uint8)
    offsets = PostingLists.from_bytes(frame).offsets

    assert np.shares_memory(offsets, frame)
    assert offsets.flags.aligned


@pytest.mark.parametrize("bucket", [-1, NUM_BUCKETS])
def test_a_bucket_out_of_range_raises(bucket: int) -> None:
    """Only buckets 0 to num_buckets - 1 can be read; there is no counting from the end."""
    with pytest.raises(IndexError, match=rf"bucket {bucket} is out of range 0..{NUM_BUCKETS - 1}"):
        build([])[bucket]


def test_pairs_that_do_not_fit_raise() -> None:
    """A bucket too large, lengths that differ and a negative number of buckets raise ParameterError."""
    one = np.ones(1, dtype=np.uint64)
    with pytest.raises(ParameterError, match=r"bucket 1 is out of range 0\.\.0"):
        PostingLists.build(one, one, 1)
    with pytest.raises(ParameterError, match="must be equal"):
        PostingLists.build(one, one[:0], 2)
    with pytest.raises(ParameterError, match="num_buckets=-1"):
        PostingLists.build(one, one, -1)


def test_every_flipped_bit_raises() -> None:
    """Posting lists with any one bit flipped raise FormatError."""
    frame = build([(0, 300), (2, 5), (2, 200)]).to_bytes()
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(FormatError):
            PostingLists.from_bytes(damaged)


def test_every_truncation_raises() -> None:
    """Posting lists cut at any byte, or with bytes after them, raise FormatError."""
    frame = build([(0, 300), (2, 5), (2, 200)]).to_bytes()
    for size in range(len(frame)):
        with pytest.raises(FormatError):
            PostingLists.from_bytes(frame[:size])
    with pytest.raises(FormatError):
        PostingLists.from_bytes(frame + b"\0")


@pytest.mark.parametrize(
    ("offsets", "data", "num_postings", "message"),
    [
        ([0, 2], [5, 0], 2, "bucket 0 does not hold"),
        ([0, 1, 2], [0x85, 1], 1, "bucket 0 does not hold"),
        ([0, 2, 1, 3], [1, 2, 3], 3, "bucket 1 ends before it starts"),
        ([0, 1], [1, 2], 2, "offsets run from 0 to 1, expected 0 to data.size=2"),
        ([1, 2], [1, 2], 2, "offsets run from 1 to 2"),
        ([0, 2], [1, 2], 3, "hold 2 values, expected 3"),
        ([0, 11], [*[0xFF] * 9, 1, 1], 2, "bucket 0 does not hold"),
    ],
)
def test_unsound_lists_with_a_right_checksum_raise(
    offsets: list[int], data: list[int], num_postings: int, message: str
) -> None:
    """Repeated docs, cut codes, falling offsets, wrong counts and overflowing docs raise FormatError."""
    with pytest.raises(FormatError, match=message):
        PostingLists.from_bytes(frame_of(offsets, data, num_postings=num_postings))


def test_a_huge_count_with_a_right_checksum_raises() -> None:
    """A count that no memory could hold raises FormatError before anything is allocated."""
    body = struct.pack("<3Q", 2**61, 2**60, 2**60)
    frame = struct.pack("<4sIII", b"NDPL", 1, 3, zlib.crc32(body)) + body

    with pytest.raises(FormatError, match="found 0"):
        PostingLists.from_bytes(frame)
