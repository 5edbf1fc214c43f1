"""The kernels of a lookup behind its posting lists: distinct docs -> those whose sketch is near -> the best k by code.

What feeds them says where the lists lie: a memory-mapped generation (`lsh.index.lookup`) or pages from Redis
(`lsh.redis_store.lookup`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.bits import count_ones
from lsh.index import layout
from lsh.index.prefetch import prefetch, prefetch_row

_ROWS_AHEAD = 16
_SLOT_FACTOR = np.uint64(0x9E3779B1)
_LOW_WORD = np.uint64((1 << 32) - 1)


class Lists(NamedTuple):
    """The posting lists as the kernel reads them."""

    part_starts: NDArray[np.uint64]
    offsets: NDArray[np.uint32]
    postings: NDArray[np.uint8]
    bits_per_part: int
    num_rows: int


class Scratch(NamedTuple):
    """What the kernel writes for one query; one set per thread."""

    terms: NDArray[np.uint64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    slots: NDArray[np.int32]
    docs: NDArray[np.int64]
    counts: NDArray[np.int32]
    codes: NDArray[np.int8]
    sketch: NDArray[np.uint64]


def query_scratch(*, num_probes: int, max_postings: int, dim: int) -> Scratch:
    """Scratch for one thread that looks queries up."""
    return Scratch(
        terms=np.empty(num_probes, dtype=np.uint64),
        starts=np.empty(num_probes, dtype=np.int64),
        sizes=np.empty(num_probes, dtype=np.int64),
        slots=np.empty(max(16, 1 << (2 * max_postings - 1).bit_length()), dtype=np.int32),
        docs=np.empty(max_postings, dtype=np.int64),
        counts=np.empty(max_postings, dtype=np.int32),
        codes=np.empty((1, dim), dtype=np.int8),
        sketch=np.empty((1, layout.WORDS_PER_SKETCH), dtype=np.uint64),
    )


@njit(cache=True, nogil=True)
def collect(lists: Lists, scratch: Scratch, max_postings: int, sketches: NDArray[np.uint64]) -> int:
    """Distinct docs of all lists and how many lists hold each; returns their number."""
    num_postings = int(_read_lists(lists, scratch, max_postings, sketches))
    return int(_count_distinct(scratch, num_postings))


@njit(cache=True, nogil=True)
def _read_lists(lists: Lists, scratch: Scratch, max_postings: int, sketches: NDArray[np.uint64]) -> int:
    """Decodes up to `max_postings` docs of all lists into `scratch.docs`; a damaged list ends where it is damaged."""
    num_read = 0
    words = sketches.reshape(-1)
    for i in range(scratch.terms.size):
        position, end = scratch.starts[i], scratch.starts[i] + scratch.sizes[i]
        doc = np.int64(0)
        while position < end and num_read < max_postings:
            gap, bits = np.int64(0), 0
            while True:
                byte = np.int64(lists.postings[position])
                position += 1
                gap |= (byte & 0x7F) << bits
                bits += 7
                if byte < 0x80 or position >= end or bits > 28:
                    break
            doc += gap
            if doc >= lists.num_rows:
                break
            prefetch(words, doc * sketches.shape[1])
            scratch.docs[num_read] = doc
            num_read += 1
    return num_read


@njit(cache=True, nogil=True)
def _count_distinct(scratch: Scratch, num_postings: int) -> int:
    """Moves the distinct docs to the front by open addressing and counts each; returns how many they are."""
    slot_bits = 4
    while 1 << slot_bits < 2 * num_postings:
        slot_bits += 1
    last_slot = (1 << slot_bits) - 1
    scratch.slots[: last_slot + 1] = -1
    num_found = 0
    for i in range(num_postings):
        doc = scratch.docs[i]
        slot = _first_slot(doc, slot_bits)
        while True:
            place = scratch.slots[slot]
            if place < 0:
                scratch.slots[slot] = num_found
                scratch.docs[num_found] = doc
                scratch.counts[num_found] = 1
                num_found += 1
                break
            if scratch.docs[place] == doc:
                scratch.counts[place] += 1
                break
            slot = (slot + 1) & last_slot
    return num_found


@njit(cache=True, nogil=True)
def _first_slot(doc: int, slot_bits: int) -> np.int64:
    """The highest bits of a product: numba widens 32-bit products to 64 bits, so the word is cut first."""
    return np.int64((np.uint64(doc) * _SLOT_FACTOR & _LOW_WORD) >> np.uint64(32 - slot_bits))


@njit(cache=True, nogil=True)
def keep_near(  # noqa: PLR0917 - numba kernels take their arrays one by one
    scratch: Scratch,
    num_found: int,
    sketches: NDArray[np.uint64],
    excluded: NDArray[np.bool_],
    end_row: int,
    max_distance: int,
) -> int:
    """Moves the docs whose sketch is near to the front; returns how many they are.

    Rows from `end_row` on and those that are `excluded` are left out.
    """
    num_near = 0
    for i in range(num_found):
        doc = scratch.docs[i]
        distance = np.uint64(0)
        for word in range(sketches.shape[1]):
            distance += count_ones(sketches[doc, word] ^ scratch.sketch[0, word])
        # Storing first and counting after keeps the loop free of a branch that nobody can predict.
        scratch.docs[num_near] = doc
        scratch.counts[num_near] = scratch.counts[i]
        is_wanted = doc < end_row and not (doc < excluded.size and excluded[doc])
        num_near += int(distance) <= max_distance and is_wanted
    return num_near


@njit(cache=True, nogil=True)
def rank(  # noqa: PLR0917 - numba kernels take their arrays one by one
    scratch: Scratch,
    num_near: int,
    codes: NDArray[np.int8],
    min_similarity: np.float32,
    docs: NDArray[np.int64],
    similarities: NDArray[np.float32],
    shared_terms: NDArray[np.int32],
) -> None:
    """Fills one query's row of the answer by insertion: descending similarity, then ascending doc."""
    query = scratch.codes[0]
    square, _ = _dots(query, query)
    num_kept, k = 0, docs.size
    for i in range(min(num_near, _ROWS_AHEAD)):
        prefetch_row(codes, scratch.docs[i])
    for i in range(num_near):
        if i + _ROWS_AHEAD < num_near:
            prefetch_row(codes, scratch.docs[i + _ROWS_AHEAD])
        doc = scratch.docs[i]
        product, doc_square = _dots(query, codes[doc])
        squares = np.float64(square) * np.float64(doc_square)
        similarity = np.float32(product / np.sqrt(squares)) if squares > 0 else np.float32(0.0)
        if similarity < min_similarity:
            continue
        if num_kept == k and not _is_better(similarity, doc, similarities[k - 1], docs[k - 1]):
            continue
        num_kept = min(num_kept + 1, k)
        place = num_kept - 1
        while place > 0 and _is_better(similarity, doc, similarities[place - 1], docs[place - 1]):
            docs[place], similarities[place] = docs[place - 1], similarities[place - 1]
            shared_terms[place] = shared_terms[place - 1]
            place -= 1
        docs[place], similarities[place], shared_terms[place] = doc, similarity, scratch.counts[i]


@njit(cache=True, nogil=True)
def _is_better(similarity: np.float32, doc: int, other_similarity: np.float32, other_doc: int) -> bool:
    return bool(similarity > other_similarity or (similarity == other_similarity and doc < other_doc))


@njit(cache=True, nogil=True)
def _dots(query: NDArray[np.int8], code: NDArray[np.int8]) -> tuple[np.int32, np.int32]:
    """The product of two codes, and the square of the second."""
    product, square = np.int32(0), np.int32(0)
    for i in range(query.size):
        value = np.int32(code[i])
        product += np.int32(query[i]) * value
        square += value * value
    return product, square
