"""Posting lists: the postings of many docs by term, made to be mapped into memory and read in part.

A term's list holds the rows of its docs, delta and variable-byte coded, and an offset for each term says where it
starts; each doc stands once, with its sketch. Who wants a few terms searches these and decodes their lists alone.
`FORMAT.md` describes the bytes.

Source: Manning, Raghavan and Schuetze, "Introduction to Information Retrieval", section 5.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.blocks import MAX_WORDS_PER_SKETCH
from lsh.buckets import Buckets
from lsh.errors import FormatError
from lsh.framing import FrameBytes, FrameFormat
from lsh.variable_byte import encode, encoded_sizes, gaps

POSTING_LISTS = FrameFormat(
    name="file of posting lists",
    magic=b"NDPL",
    version=2,
    counts=("num_terms", "num_docs", "words_per_sketch", "data_bytes"),
)
_NO_DOCS = np.empty(0, np.uint64)
_MORE, _GROUP, _SEVEN = np.uint64(0x80), np.uint64(0x7F), np.uint64(7)


@dataclass(frozen=True, slots=True, eq=False)
class PostingLists:
    """The list of `terms[i]` takes the bytes `offsets[i] .. offsets[i + 1]` of `data` `(data_bytes,)` uint8.

    `terms` `(num_terms,)` ascend and are distinct, `offsets` are `(num_terms + 1,)`, `docs` `(n,)` ascending, with
    `sketches` `(n, words_per_sketch)`; all uint64. Lists hold rows of `docs`, ascending.
    """

    terms: NDArray[np.uint64]
    offsets: NDArray[np.uint64]
    docs: NDArray[np.uint64]
    sketches: NDArray[np.uint64]
    data: NDArray[np.uint8]

    @classmethod
    def of(cls, buckets: Buckets) -> PostingLists:
        """The lists of some buckets, none of them empty."""
        starts = buckets.ends - buckets.sizes
        rows = buckets.doc_rows.astype(np.uint64)
        values = gaps(rows)
        values[starts] = rows[starts]
        ends = np.append(np.uint64(0), np.cumsum(encoded_sizes(values), dtype=np.uint64))
        offsets = np.append(ends[starts], ends[-1])
        return cls(buckets.terms, offsets, buckets.docs, buckets.sketches, encode(values))

    def frame(self) -> list[bytes | memoryview]:
        """The buffers, one after the other, of the frame that `from_frame` reads."""
        counts = [self.terms.size, self.docs.size, self.sketches.shape[1], self.data.size]
        words = [values.astype("<u8", copy=False) for values in (self.terms, self.offsets, self.docs, self.sketches)]
        return POSTING_LISTS.buffers(counts, [*words, self.data])

    @classmethod
    def from_frame(cls, frame: FrameBytes, *, is_verified: bool = False) -> PostingLists:
        """Lists that share the memory of `frame`, bytes or a memory map.

        Raises FormatError for a frame that is damaged or truncated. Of one that `is_verified` the checksum is not
        read, which would read it all; lists are checked when they are read.
        """
        counts, body = POSTING_LISTS.unpack(frame, is_verified=is_verified)
        num_terms, num_docs, words_per_sketch, data_bytes = counts
        if not 1 <= words_per_sketch <= MAX_WORDS_PER_SKETCH:
            raise FormatError(f"words_per_sketch={words_per_sketch} of posting lists is out of range; they are damaged")
        num_words = [num_terms, num_terms + 1, num_docs, num_docs * words_per_sketch]
        *words, data = POSTING_LISTS.split(body, [*(8 * number for number in num_words), data_bytes])
        terms, offsets, docs, sketches = (np.frombuffer(section, "<u8") for section in words)
        return cls(terms, offsets, docs, sketches.reshape(num_docs, words_per_sketch), data)

    def _rows_of(
        self, terms: NDArray[np.uint64], removed_docs: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Where the rows of each of `terms` end, and all of these rows."""
        if np.any(self.docs[1:] <= self.docs[:-1]):
            raise FormatError("docs of posting lists are not distinct and ascending; the lists are damaged")
        places = _places_of(terms, self.terms)
        starts, ends = self.offsets[places], self.offsets[np.minimum(places + 1, self.offsets.size - 1)]
        if np.any(starts > ends) or np.any(ends > self.data.size):
            raise FormatError("a posting list ends before it starts, or behind all; the lists are damaged")
        rows = np.empty(int((ends - starts).sum()), np.uint32)
        row_ends = np.empty(terms.size, np.int64)
        is_removed = (
            np.isin(self.docs, removed_docs, assume_unique=True) if removed_docs.size else np.zeros(0, np.bool_)
        )
        num_rows = _decode_lists(self.data, starts, ends, self.docs.size, is_removed, rows, row_ends)
        if num_rows < 0:
            raise FormatError("a posting list does not hold whole, distinct, ascending rows; the lists are damaged")
        return row_ends, rows[:num_rows]

    def buckets_of(self, terms: NDArray[np.uint64], *, removed_docs: NDArray[np.uint64] = _NO_DOCS) -> Buckets:
        """The buckets of some terms, ascending and distinct, without `removed_docs`, ascending, and with all docs.

        Raises FormatError for damaged lists.
        """
        return Buckets(terms, *self._rows_of(terms, removed_docs), self.docs, self.sketches)

    def buckets(self) -> Buckets:
        """All buckets; raises FormatError for damaged lists."""
        return self.buckets_of(self.terms)


@njit(cache=True, nogil=True)
def _places_of(wanted: NDArray[np.uint64], terms: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The place of each of `wanted` among `terms`, both ascending; the number of terms for one that is not there.

    Exponential search from the place before: few steps for many terms, few terms looked at for a few.
    """
    places = np.empty(wanted.size, np.int64)
    place = 0
    for i in range(wanted.size):
        low, step = place, 1
        while low + step < terms.size and terms[low + step] < wanted[i]:
            low += step
            step *= 2
        high = min(low + step, terms.size)
        while low < high:
            middle = (low + high) // 2
            if terms[middle] < wanted[i]:
                low = middle + 1
            else:
                high = middle
        place = low
        places[i] = place if place < terms.size and terms[place] == wanted[i] else terms.size
    return places


@njit(cache=True, nogil=True)
def _decode_lists(  # noqa: PLR0917 - numba kernels take their arrays one by one
    data: NDArray[np.uint8],
    starts: NDArray[np.uint64],
    ends: NDArray[np.uint64],
    num_docs: int,
    is_removed: NDArray[np.bool_],
    rows: NDArray[np.uint32],
    row_ends: NDArray[np.int64],
) -> np.int64:
    """Fills `rows` with those of each list and `row_ends` with where they end; returns how many there are.

    -1 where a list holds a row twice, a row of no doc, or a code that is not whole. `is_removed` tells which rows to
    leave out, none where it is empty.
    """
    num_rows = np.uint64(0)
    for i in range(starts.size):
        position, end, row = starts[i], ends[i], np.uint64(0)
        while position < end:
            is_first = position == starts[i]
            byte = np.uint64(data[position])
            position += np.uint64(1)
            gap, shift = byte & _GROUP, _SEVEN
            while byte >= _MORE:
                if position == end or shift > np.uint64(28):
                    return np.int64(-1)
                byte = np.uint64(data[position])
                position += np.uint64(1)
                gap |= (byte & _GROUP) << shift
                shift += _SEVEN
            row += gap
            is_overlong = byte == 0 and shift > _SEVEN
            if row >= np.uint64(num_docs) or is_overlong or (gap == 0 and not is_first):
                return np.int64(-1)
            rows[num_rows] = np.uint32(row)
            num_rows += np.uint64(is_removed.size == 0 or not is_removed[row])
        row_ends[i] = np.int64(num_rows)
    return np.int64(num_rows)
