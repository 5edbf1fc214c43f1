"""The rows of the blocked variable-byte shuffle: postings to the reduce partitions, candidate pairs back.

Spark never sees one row per term. A map task turns the terms of its images into one binary block per reduce partition;
a reduce task merges its blocks, and after walking the buckets packs the pairs it found into pair blocks. The bytes are
described in `FORMAT.md`.

Source of the idea: Gusev and Xu, arXiv 2209.08433, section 4 (inverted index of LSH terms in variable bytes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.bits import mix64
from lsh.errors import FormatError, ParameterError
from lsh.framing import FrameBytes, FrameFormat
from lsh.sorting import sort_by_keys, starts_of_runs
from lsh.variable_byte import decode, decode_sorted, encode, encode_sorted

MAX_PARTITIONS = 1 << 16
MAX_SHARED_TERMS = (1 << 32) - 1
MAX_WORDS_PER_SKETCH = 64
_BITS_PER_WORD = 64

_PairColumns = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]
"""Left docs, right docs and shared terms of pairs, `(m,)` each."""

TERM_BLOCK = FrameFormat(
    name="term block",
    magic=b"NDTB",
    version=2,
    counts=("num_docs", "num_postings", "docs_bytes", "terms_bytes", "rows_bytes", "words_per_sketch"),
)
PAIR_BLOCK = FrameFormat(
    name="pair block",
    magic=b"NDPB",
    version=1,
    counts=("num_pairs", "lefts_bytes", "rights_bytes", "shared_terms_bytes"),
)


@dataclass(frozen=True, slots=True, eq=False)
class TermPostings:
    """Postings `(terms[i], docs[doc_rows[i]])`, distinct and ascending by term, then doc.

    `terms` `(m,)` uint64 and `doc_rows` `(m,)` int64 run over postings; `docs` `(n,)` uint64 ascending and `sketches`
    `(n, words_per_sketch)` uint64 over the distinct docs.
    """

    terms: NDArray[np.uint64]
    doc_rows: NDArray[np.int64]
    docs: NDArray[np.uint64]
    sketches: NDArray[np.uint64]

    def __post_init__(self) -> None:
        if self.terms.shape != self.doc_rows.shape or self.terms.ndim != 1:
            raise ParameterError(f"terms {self.terms.shape} and doc_rows {self.doc_rows.shape} must be equal (m,)")
        if self.docs.ndim != 1 or self.sketches.ndim != 2 or len(self.docs) != len(self.sketches):
            raise ParameterError(
                f"docs {self.docs.shape} and sketches {self.sketches.shape} must be (n,) and (n, words_per_sketch)"
            )
        if np.any(self.docs[1:] <= self.docs[:-1]):
            raise ParameterError("docs of postings must be distinct and ascending; sort them first")
        if self.doc_rows.size and not _are_postings_sorted(self.terms, self.doc_rows, self.docs.size):
            raise ParameterError(
                f"postings must be distinct, ascending by (term, doc_row), with doc_rows in 0..{self.docs.size - 1}"
            )


def partition_of(terms: NDArray[np.uint64], num_partitions: int) -> NDArray[np.uint16]:
    """The reduce partition of each term: a 64-bit mix of the term, modulo `num_partitions` (1..65,536)."""
    if not 1 <= num_partitions <= MAX_PARTITIONS:
        raise ParameterError(f"num_partitions={num_partitions} is out of range 1..{MAX_PARTITIONS}")
    return _partition_of(np.ascontiguousarray(terms), num_partitions)  # type: ignore[no-any-return]


def encode_term_blocks(
    terms: NDArray[np.uint64], docs: NDArray[np.uint64], sketches: NDArray[np.uint64], *, num_partitions: int
) -> list[bytes]:
    """One term block for each reduce partition.

    `terms` are `(n, num_tables)`, `docs` `(n,)` ascending, `sketches` `(n, words_per_sketch)`.
    A partition's block holds the postings of its terms, and each doc they name once with its sketch.
    """
    if terms.ndim != 2 or docs.shape != terms.shape[:1] or sketches.ndim != 2 or len(sketches) != len(terms):
        raise ParameterError(
            f"terms {terms.shape}, docs {docs.shape} and sketches {sketches.shape} must be "
            f"(n, num_tables), (n,), (n, words_per_sketch)"
        )
    if not 1 <= sketches.shape[1] <= MAX_WORDS_PER_SKETCH:
        raise ParameterError(f"words_per_sketch={sketches.shape[1]} is out of range 1..{MAX_WORDS_PER_SKETCH}")
    if np.any(docs[1:] <= docs[:-1]):
        raise ParameterError("docs of a batch must be distinct and ascending; sort the batch by doc first")
    rows = np.repeat(np.arange(docs.size, dtype=np.uint64), terms.shape[1])
    all_terms, all_rows = sort_by_keys(terms.ravel(), rows)
    is_new = starts_of_runs(all_terms, all_rows)
    all_terms, all_rows = all_terms[is_new], all_rows[is_new]
    partitions = partition_of(all_terms, num_partitions)
    ends = np.cumsum(np.bincount(partitions, minlength=num_partitions))
    all_terms, all_rows = _by_partition(all_terms, all_rows, partitions, ends)
    parts = zip(np.split(all_terms, ends[:-1]), np.split(all_rows, ends[:-1]), strict=True)
    return [_encode_term_block(part_terms, part_rows, docs, sketches) for part_terms, part_rows in parts]


def decode_term_blocks(blocks: Sequence[FrameBytes]) -> TermPostings:
    """All postings of `blocks`, merged: distinct, sorted, with each doc once.

    A posting becomes one word, sorted in place, so memory stays near 20 bytes a posting. Raises FormatError for damaged
    blocks, and for two blocks that give one doc different sketches.
    """
    opened = [TERM_BLOCK.unpack(block) for block in blocks]
    row_bits = max(1, sum(counts[0] for counts, _ in opened).bit_length())
    words = np.empty(sum(counts[1] for counts, _ in opened), dtype=np.uint64)
    docs: list[NDArray[np.uint64]] = []
    sketches: list[NDArray[np.uint64]] = []
    num_rows = num_words = 0
    for counts, body in opened:
        part = _decoded(counts, body)
        if part.terms.size and int(part.terms[-1]).bit_length() + row_bits > _BITS_PER_WORD:
            return merged_postings([_decoded(*one) for one in opened])
        packed = words[num_words : num_words + part.terms.size]
        np.left_shift(part.terms, np.uint64(row_bits), out=packed)
        packed |= part.doc_rows.view(np.uint64) + np.uint64(num_rows)
        docs.append(part.docs)
        sketches.append(part.sketches)
        num_rows, num_words = num_rows + part.docs.size, num_words + part.terms.size
    if not opened:
        return merged_postings([])
    row_mask = np.uint64((1 << row_bits) - 1)
    all_docs, all_sketches, row_of = docs_once(docs, sketches)
    if row_of is not None:
        words = words & ~row_mask | row_of.view(np.uint64)[words & row_mask]
    words.sort()
    doc_rows = np.empty(words.size, np.int64)
    num_postings = _unpack_distinct(words, np.uint64(row_bits), doc_rows)
    return TermPostings(words[:num_postings], doc_rows[:num_postings], all_docs, all_sketches)


def merged_postings(decoded: Sequence[TermPostings]) -> TermPostings:
    """Postings of several blocks as one: distinct, sorted, with each doc once."""
    if not decoded:
        no_words = np.empty(0, dtype=np.uint64)
        return TermPostings(no_words, no_words.astype(np.int64), no_words, no_words.reshape(0, 1))
    docs, sketches, row_of = docs_once([part.docs for part in decoded], [part.sketches for part in decoded])
    offsets = np.cumsum([0, *(part.docs.size for part in decoded[:-1])])
    rows = np.concatenate([part.doc_rows + offset for part, offset in zip(decoded, offsets, strict=True)])
    terms, doc_rows = sort_by_keys(
        np.concatenate([part.terms for part in decoded]),
        (rows if row_of is None else row_of[rows]).astype(np.uint64),
    )
    is_new = starts_of_runs(terms, doc_rows)
    return TermPostings(terms[is_new], doc_rows[is_new].astype(np.int64), docs, sketches)


def docs_once(
    docs: Sequence[NDArray[np.uint64]], sketches: Sequence[NDArray[np.uint64]]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64] | None]:
    """The distinct docs of one block or more, ascending, with their sketches, and the new row of each old one in turn.

    None for rows that stay: those of blocks that follow one another.
    """
    widths = sorted({part.shape[1] for part in sketches})
    if len(widths) > 1:
        raise FormatError(f"term blocks have sketches of {widths} words; they come from different runs")
    block_docs, block_sketches = np.concatenate(docs), np.concatenate(sketches)
    if np.all(block_docs[1:] > block_docs[:-1]):
        return block_docs, block_sketches, None
    once, first_rows, row_of = np.unique(block_docs, return_index=True, return_inverse=True)
    kept = block_sketches[first_rows]
    is_different = np.any(kept[row_of] != block_sketches, axis=1)
    if np.any(is_different):
        doc = block_docs[np.argmax(is_different)]
        raise FormatError(f"doc {doc} has different sketches in two term blocks; they come from different runs")
    return once, kept, row_of


def encode_pair_block(pairs: NDArray[np.uint64], shared_terms: NDArray[np.uint32]) -> bytes:
    """Pairs `(m, 2)` uint64, left below right, rows distinct and ascending, with the `(m,)` terms each pair shares."""
    if pairs.ndim != 2 or pairs.shape[1] != 2 or shared_terms.shape != pairs.shape[:1]:
        raise ParameterError(f"pairs {pairs.shape} and shared_terms {shared_terms.shape} must be (m, 2) and (m,)")
    lefts, rights = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    if not _are_pairs_sorted(lefts, rights):
        raise ParameterError("pairs must have left < right and be distinct and ascending; sort them first")
    if np.any(shared_terms == 0):
        raise ParameterError(f"shared_terms holds a zero, allowed is 1..{MAX_SHARED_TERMS}; drop those pairs")
    previous = np.where(starts_of_runs(lefts), lefts, np.roll(rights, 1))
    sections = [encode_sorted(lefts), encode(rights - previous), encode(shared_terms.astype(np.uint64))]
    return PAIR_BLOCK.pack([lefts.size, *(section.size for section in sections)], sections)


def decode_pair_blocks(
    blocks: Iterable[FrameBytes], *, lefts: range | None = None
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """The distinct pairs of `blocks`, `(m, 2)` uint64 ascending, and the sum of their shared terms, `(m,)` uint32.

    With `lefts`, consecutive docs, only those pairs whose left doc is one of them: memory is then that of one block and
    of these pairs, 32 bytes each time that one comes. Raises FormatError for damaged blocks.
    """
    opened = [_with_lefts(_decoded_pairs(*PAIR_BLOCK.unpack(block)), lefts) for block in blocks]
    decoded = [part for part in opened if part[0].size]
    del opened
    if not decoded:
        return np.empty((0, 2), dtype=np.uint64), np.empty(0, dtype=np.uint32)
    bounds = np.array([_bounds_of_pairs(*part) for part in decoded], dtype=np.uint64)
    first_left = np.uint64(bounds[:, 0].min())
    last_left, last_right, most_shared = (np.uint64(bound) for bound in bounds[:, 1:].max(axis=0))
    right_bits, shared_bits = (np.uint64(int(bound).bit_length()) for bound in (last_right, most_shared))
    if int(last_left - first_left).bit_length() + int(right_bits) + int(shared_bits) > _BITS_PER_WORD:
        return _pairs_of_any_size(decoded)
    words = np.empty(sum(part[0].size for part in decoded), dtype=np.uint64)
    num_words = 0
    for part_lefts, rights, shared_terms in decoded:
        packed = words[num_words : num_words + part_lefts.size]
        np.left_shift(part_lefts - first_left, right_bits, out=packed)
        packed |= rights
        packed <<= shared_bits
        packed |= shared_terms
        num_words += part_lefts.size
    decoded.clear()
    words.sort()
    num_pairs, most = _sum_runs(words, shared_bits, totals := np.empty(words.size, dtype=np.uint64))
    _check_shared_terms(int(most))
    pairs = np.empty((num_pairs, 2), dtype=np.uint64)
    np.add(words[:num_pairs] >> right_bits, first_left, out=pairs[:, 0])
    np.bitwise_and(words[:num_pairs], np.uint64((1 << int(right_bits)) - 1), out=pairs[:, 1])
    return pairs, totals[:num_pairs].astype(np.uint32)


def _with_lefts(pairs: _PairColumns, lefts: range | None) -> _PairColumns:
    """The pairs of a block whose left doc is one of `lefts`."""
    if lefts is None:
        return pairs
    first, stop = np.searchsorted(pairs[0], np.array([lefts.start, lefts.stop], dtype=np.uint64))
    if stop - first == pairs[0].size:
        return pairs
    # Slices alone would keep all of the block.
    left_docs, right_docs, shared_terms = (column[first:stop].copy() for column in pairs)
    return left_docs, right_docs, shared_terms


def _bounds_of_pairs(
    lefts: NDArray[np.uint64], rights: NDArray[np.uint64], shared_terms: NDArray[np.uint64]
) -> tuple[int, int, int, int]:
    return int(lefts[0]), int(lefts[-1]), int(rights.max()), int(shared_terms.max())


def _pairs_of_any_size(decoded: Sequence[_PairColumns]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """What `decode_pair_blocks` returns, of pairs that do not fit in one word with what they share."""
    lefts, rights, shared_terms = sort_by_keys(*(np.concatenate(parts) for parts in zip(*decoded, strict=True)))
    first = np.flatnonzero(starts_of_runs(lefts, rights))
    totals = np.add.reduceat(shared_terms, first)
    _check_shared_terms(int(totals.max()))
    return np.stack([lefts[first], rights[first]], axis=1), totals.astype(np.uint32)


def _check_shared_terms(most: int) -> None:
    if most > MAX_SHARED_TERMS:
        raise FormatError(f"a pair shares {most} terms, more than {MAX_SHARED_TERMS}; a block is damaged")


def _encode_term_block(
    terms: NDArray[np.uint64], rows: NDArray[np.uint64], docs: NDArray[np.uint64], sketches: NDArray[np.uint64]
) -> bytes:
    """The block of one partition; `rows` index into `docs`, but the block numbers only the docs it names."""
    is_named = np.zeros(docs.size, dtype=np.bool_)
    is_named[rows] = True
    block_rows = (np.cumsum(is_named) - 1)[rows].astype(np.uint64)
    sections = [encode_sorted(docs[is_named]), encode_sorted(terms), encode(block_rows)]
    counts = [int(is_named.sum()), terms.size, *(section.size for section in sections), sketches.shape[1]]
    return TERM_BLOCK.pack(counts, [*sections, sketches[is_named].astype("<u8")])


def _decoded(counts: tuple[int, ...], body: NDArray[np.uint8]) -> TermPostings:
    """The postings of a term block that `TERM_BLOCK` has unpacked."""
    num_docs, num_postings, docs_bytes, terms_bytes, rows_bytes, words_per_sketch = counts
    if not 1 <= words_per_sketch <= MAX_WORDS_PER_SKETCH:
        raise FormatError(f"words_per_sketch={words_per_sketch} of a term block is out of range; the block is damaged")
    docs_data, terms_data, rows_data, sketches_data = TERM_BLOCK.split(
        body, [docs_bytes, terms_bytes, rows_bytes, 8 * words_per_sketch * num_docs]
    )
    rows = decode(rows_data, num_postings)
    _check_rows(rows, num_docs)
    return checked_postings(
        decode_sorted(terms_data, num_postings),
        rows.astype(np.int64),
        decode_sorted(docs_data, num_docs),
        np.frombuffer(sketches_data, dtype="<u8").reshape(num_docs, words_per_sketch).copy(),
    )


def _check_rows(rows: NDArray[np.uint64], num_docs: int) -> None:
    if rows.size and int(rows.max()) >= num_docs:
        raise FormatError(f"a posting names doc row {int(rows.max())}, the term block has {num_docs} docs")


def checked_postings(
    terms: NDArray[np.uint64], doc_rows: NDArray[np.int64], docs: NDArray[np.uint64], sketches: NDArray[np.uint64]
) -> TermPostings:
    try:
        return TermPostings(terms, doc_rows, docs, sketches)
    except ParameterError as error:
        raise FormatError(f"a term block is damaged: {error}") from error


def _decoded_pairs(counts: tuple[int, ...], body: NDArray[np.uint8]) -> _PairColumns:
    """Lefts, rights and shared terms of a pair block that `PAIR_BLOCK` has unpacked."""
    num_pairs, *sizes_bytes = counts
    lefts_data, rights_data, shared_terms_data = PAIR_BLOCK.split(body, sizes_bytes)
    lefts = decode_sorted(lefts_data, num_pairs)
    rights = decode(rights_data, num_pairs)
    shared_terms = decode(shared_terms_data, num_pairs)
    position = int(_accumulate_rights(lefts, rights))
    if position >= 0:
        raise FormatError(f"pair {position} of a pair block is out of order or over 64 bits; the block is damaged")
    if num_pairs and not 1 <= int(shared_terms.min()) <= int(shared_terms.max()) <= MAX_SHARED_TERMS:
        raise FormatError(f"a pair block holds shared_terms out of range 1..{MAX_SHARED_TERMS}; the block is damaged")
    return lefts, rights, shared_terms


@njit(cache=True, nogil=True)
def _sum_runs(words: NDArray[np.uint64], shared_bits: np.uint64, totals: NDArray[np.uint64]) -> tuple[int, np.uint64]:
    """Moves the distinct keys above `shared_bits` of sorted `words` to the front; fills `totals` with what they share.

    Returns how many there are and the largest total.
    """
    mask = (np.uint64(1) << shared_bits) - np.uint64(1)
    num_keys, most = 0, np.uint64(0)
    for i in range(words.size):
        key, shared = words[i] >> shared_bits, words[i] & mask
        if num_keys and words[num_keys - 1] == key:
            totals[num_keys - 1] += shared
        else:
            words[num_keys] = key
            totals[num_keys] = shared
            num_keys += 1
        most = max(most, totals[num_keys - 1])
    return num_keys, most


@njit(cache=True, nogil=True)
def _partition_of(terms: NDArray[np.uint64], num_partitions: int) -> NDArray[np.uint16]:
    partitions = np.empty(terms.size, np.uint16)
    for i in range(terms.size):
        partitions[i] = np.uint16(mix64(terms[i]) % np.uint64(num_partitions))
    return partitions


@njit(cache=True, nogil=True)
def _unpack_distinct(words: NDArray[np.uint64], row_bits: np.uint64, doc_rows: NDArray[np.int64]) -> int:
    """Turns sorted words into the terms above their `row_bits`, each word once, and fills `doc_rows` with the rest.

    Returns how many there are. One pass, because more take longer than the sort.
    """
    mask = (np.uint64(1) << row_bits) - np.uint64(1)
    num_words, before = 0, np.uint64(0)
    for i in range(words.size):
        word = words[i]
        words[num_words], doc_rows[num_words] = word >> row_bits, np.int64(word & mask)
        num_words += int(i == 0 or word != before)
        before = word
    return num_words


@njit(cache=True, nogil=True)
def _by_partition(
    terms: NDArray[np.uint64], rows: NDArray[np.uint64], partitions: NDArray[np.uint16], ends: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Terms and rows by partition, those of one in the order they have; `ends` say where each partition ends."""
    part_terms, part_rows = np.empty_like(terms), np.empty_like(rows)
    places = np.empty_like(ends)
    places[0] = 0
    places[1:] = ends[:-1]
    for i in range(terms.size):
        place = places[partitions[i]]
        part_terms[place], part_rows[place] = terms[i], rows[i]
        places[partitions[i]] = place + 1
    return part_terms, part_rows


@njit(cache=True, nogil=True)
def _are_postings_sorted(terms: NDArray[np.uint64], doc_rows: NDArray[np.int64], num_docs: int) -> bool:
    for i in range(terms.size):
        if not 0 <= doc_rows[i] < num_docs:
            return False
        if i and not (terms[i - 1] < terms[i] or (terms[i - 1] == terms[i] and doc_rows[i - 1] < doc_rows[i])):
            return False
    return True


@njit(cache=True, nogil=True)
def _are_pairs_sorted(lefts: NDArray[np.uint64], rights: NDArray[np.uint64]) -> bool:
    for i in range(lefts.size):
        if lefts[i] >= rights[i]:
            return False
        if i and not (lefts[i - 1] < lefts[i] or (lefts[i - 1] == lefts[i] and rights[i - 1] < rights[i])):
            return False
    return True


@njit(cache=True, nogil=True)
def _accumulate_rights(lefts: NDArray[np.uint64], rights: NDArray[np.uint64]) -> int:
    """Replaces the gaps in `rights` by the rights; returns the first that is no gap or overflows, or -1."""
    for i in range(lefts.size):
        previous = rights[i - 1] if i and lefts[i - 1] == lefts[i] else lefts[i]
        right = previous + rights[i]
        if right <= previous:
            return i
        rights[i] = right
    return -1
