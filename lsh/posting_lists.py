"""Posting lists of one hash table: bucket -> sorted docs, in two arrays.

`offsets[bucket] .. offsets[bucket + 1]` are the bytes of a bucket's docs in `data`, delta and variable-byte coded. A
lookup is one array access, no key search, and both arrays can be read straight from a memory-mapped file. `FORMAT.md`
describes the bytes; the index is made of these, one for each table and range of buckets.

Source: Manning, Raghavan and Schuetze, "Introduction to Information Retrieval", section 5.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.errors import FormatError, ParameterError
from lsh.framing import FrameBytes, FrameFormat
from lsh.sorting import sort_by_keys, starts_of_runs
from lsh.variable_byte import decode, decode_sorted, encode, encoded_sizes, gaps

MAX_BUCKETS = 1 << 40

POSTING_LISTS = FrameFormat(
    name="file of posting lists",
    magic=b"NDPL",
    version=1,
    counts=("num_buckets", "num_postings", "data_bytes"),
)


@dataclass(frozen=True, slots=True, eq=False)
class PostingLists:
    """The docs of each bucket: `offsets` `(num_buckets + 1,)` uint64 into `data` `(size_bytes,)` uint8."""

    offsets: NDArray[np.uint64]
    data: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.offsets.ndim != 1 or self.offsets.size == 0 or self.data.ndim != 1:
            raise ParameterError(
                f"offsets {self.offsets.shape} and data {self.data.shape} must be (num_buckets + 1,) and (size_bytes,)"
            )
        if self.offsets[0] != 0 or self.offsets[-1] != self.data.size:
            raise ParameterError(
                f"offsets run from {self.offsets[0]} to {self.offsets[-1]}, expected 0 to data.size={self.data.size}"
            )

    @classmethod
    def build(
        cls, bucket_of_each_pair: NDArray[np.uint64], doc_of_each_pair: NDArray[np.uint64], num_buckets: int
    ) -> PostingLists:
        """Lists from `(m,)` uint64 pairs of bucket and doc in any order; a pair given twice counts once.

        Raises ParameterError for arrays of different length and buckets outside `0..num_buckets - 1`.
        """
        if bucket_of_each_pair.shape != doc_of_each_pair.shape or bucket_of_each_pair.ndim != 1:
            raise ParameterError(
                f"buckets {bucket_of_each_pair.shape} and docs {doc_of_each_pair.shape} must be equal (m,)"
            )
        if not 0 <= num_buckets <= MAX_BUCKETS:
            raise ParameterError(f"num_buckets={num_buckets} is out of range 0..{MAX_BUCKETS}")
        if bucket_of_each_pair.size and int(bucket_of_each_pair.max()) >= num_buckets:
            raise ParameterError(
                f"bucket {int(bucket_of_each_pair.max())} is out of range 0..{num_buckets - 1}; "
                f"strip the table's number from the term"
            )
        buckets, docs = sort_by_keys(
            bucket_of_each_pair.astype(np.uint64, copy=False), doc_of_each_pair.astype(np.uint64, copy=False)
        )
        is_new = starts_of_runs(buckets, docs)
        buckets, docs = buckets[is_new], docs[is_new]
        values = np.where(starts_of_runs(buckets), docs, gaps(docs))
        bytes_of_bucket = np.zeros(num_buckets + 1, dtype=np.uint64)
        np.add.at(bytes_of_bucket, buckets.astype(np.int64) + 1, encoded_sizes(values).astype(np.uint64))
        return cls(np.cumsum(bytes_of_bucket, dtype=np.uint64), encode(values))

    @property
    def num_buckets(self) -> int:
        """How many buckets there are, empty ones included."""
        return self.offsets.size - 1

    def __len__(self) -> int:
        return self.num_buckets

    def __getitem__(self, bucket: int) -> NDArray[np.uint64]:
        """The docs of `bucket`, ascending; raises IndexError outside `0..num_buckets - 1`."""
        if not 0 <= bucket < self.num_buckets:
            raise IndexError(f"bucket {bucket} is out of range 0..{self.num_buckets - 1}")
        codes = self.data[int(self.offsets[bucket]) : int(self.offsets[bucket + 1])]
        return decode_sorted(codes, int(_num_ends(codes)))

    def to_bytes(self) -> bytes:
        """The frame that `from_bytes` reads."""
        counts = [self.num_buckets, int(_num_ends(self.data)), self.data.size]
        return POSTING_LISTS.pack(counts, [self.offsets.astype("<u8", copy=False), self.data])

    @classmethod
    def from_bytes(cls, frame: FrameBytes) -> PostingLists:
        """Lists that share the memory of `frame` (bytes or a memory map), checked to the last byte.

        Raises FormatError for a damaged or truncated frame, and for lists that are not ascending.
        """
        (num_buckets, num_postings, data_bytes), body = POSTING_LISTS.unpack(frame)
        offsets_bytes, data = POSTING_LISTS.split(body, [8 * (num_buckets + 1), data_bytes])
        offsets = np.frombuffer(offsets_bytes, dtype="<u8")
        try:
            lists = cls(offsets, data)
        except ParameterError as error:
            raise FormatError(f"a file of posting lists is damaged: {error}") from error
        if np.any(offsets[1:] < offsets[:-1]):
            bucket = int(np.argmax(offsets[1:] < offsets[:-1]))
            raise FormatError(f"the posting list of bucket {bucket} ends before it starts; the file is damaged")
        bucket = int(_first_bad_bucket(offsets, data, decode(data, num_postings)))
        if bucket >= 0:
            raise FormatError(f"posting list of bucket {bucket} does not hold whole, distinct, ascending docs")
        return lists


@njit(cache=True, nogil=True)
def _num_ends(data: NDArray[np.uint8]) -> int:
    num_ends = 0
    for i in range(data.size):
        num_ends += data[i] < 0x80
    return num_ends


@njit(cache=True, nogil=True)
def _first_bad_bucket(offsets: NDArray[np.uint64], data: NDArray[np.uint8], values: NDArray[np.uint64]) -> int:
    """The first bucket that cuts a code, holds a doc twice, or overflows 64 bits; -1 if all are sound."""
    position = 0
    for bucket in range(offsets.size - 1):
        start, end = np.int64(offsets[bucket]), np.int64(offsets[bucket + 1])
        if end > start and data[end - 1] >= 0x80:
            return bucket
        num_docs = _num_ends(data[start:end])
        doc = np.uint64(0)
        for i in range(num_docs):
            gap = values[position + i]
            if i and (gap == 0 or doc + gap < doc):
                return bucket
            doc += gap
        position += num_docs
    return -1
