"""Candidates of new docs: those with one another and with known ones, which are not put into buckets again.

A night has few new docs. In a regular bucket each of them meets each known doc, whatever block names it, so known
blocks are paired one at a time, with sketches that stay near the processor. Only the few buckets that are cut need all
of their docs together.

`join_term_blocks` and `candidates.candidate_pairs` are the slow twin, and the way for sketches of other lengths and
for blocks whose docs do not follow one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.bits import count_ones
from lsh.blocks import TermPostings, checked_postings, decode_term_blocks, docs_once, merged_postings, term_columns
from lsh.candidates import (
    MIN_KEYS_PER_CHUNK,
    CandidateParams,
    Candidates,
    candidate_pairs,
    regular_keys,
    tally_cut,
)
from lsh.crowds import UNCUT_PER_CROWD, doc_ranks, is_crowd
from lsh.errors import FormatError
from lsh.framing import FrameBytes
from lsh.pair_tally import PairTally, Spill
from lsh.sketches import WORDS_PER_SKETCH
from lsh.sorting import starts_of_runs

_DOCS_AT_ONCE = 65_536
"""Whose sketches stay near a processor, 2 MiB of them; blocks of fewer docs are put together."""
_MAX_PENDING = 16
_BEHIND_ALL = np.uint64(1 << 62)
"""Added to new docs, it brings them behind all known ones."""
_ZERO, _ROW_BITS = np.uint64(0), np.uint64(32)


@dataclass(frozen=True, slots=True, eq=False)
class _Shared:
    """Postings of the wanted terms: `ends` `(num_wanted,)` of each term's `doc_rows` `(m,)`, else as `TermPostings`."""

    ends: NDArray[np.int64]
    doc_rows: NDArray[np.uint32]
    docs: NDArray[np.uint64]
    sketches: NDArray[np.uint64]


def new_candidates(
    known: Iterable[FrameBytes],
    new: Sequence[FrameBytes],
    params: CandidateParams,
    *,
    removed_docs: NDArray[np.uint64],
    among_new: bool = True,
    spill: Spill | None = None,
) -> Candidates:
    """What `candidate_pairs` finds in the postings of `join_term_blocks`, where the docs of `new` are the new ones.

    Without `among_new` the pairs of two new docs, all of them behind the known ones, are left out and not even compared
    in regular buckets. Raises FormatError as `decode_term_blocks` does.
    """
    return _candidates_of(
        decode_term_blocks(new), known, params, removed_docs=removed_docs, among_new=among_new, spill=spill
    )


def candidates_with_later(
    known: Iterable[FrameBytes],
    new: Sequence[FrameBytes],
    params: CandidateParams,
    *,
    removed_docs: NDArray[np.uint64],
    spill: Spill | None = None,
) -> Candidates:
    """What `new_candidates` finds without `among_new`, where the known docs lie behind the new ones, as views do."""

    def turned(pairs: NDArray[np.uint64], shared_terms: NDArray[np.uint32]) -> tuple[NDArray[Any], NDArray[Any]]:
        order = np.lexsort((pairs[:, 0], pairs[:, 1]))
        return np.column_stack([pairs[order, 1] - _BEHIND_ALL, pairs[order, 0]]), shared_terms[order]

    added = decode_term_blocks(new)
    found = _candidates_of(
        replace(added, docs=added.docs + _BEHIND_ALL),
        known,
        params,
        removed_docs=removed_docs,
        among_new=False,
        spill=None if spill is None else lambda *found: spill(*turned(*found)),
    )
    pairs, shared_terms = turned(found.pairs, found.shared_terms)
    return replace(found, pairs=pairs, shared_terms=shared_terms)


def _candidates_of(
    added: TermPostings,
    known: Iterable[FrameBytes],
    params: CandidateParams,
    *,
    removed_docs: NDArray[np.uint64],
    among_new: bool,
    spill: Spill | None,
) -> Candidates:
    is_first = starts_of_runs(added.terms)
    terms = added.terms[is_first]
    shared = list(_coalesced(_shared(known, terms, removed_docs)))
    if not shared and among_new:
        return candidate_pairs(added, params, spill=spill)
    if not shared:
        return Candidates.of(PairTally(added.docs), num_buckets=0, largest_bucket=0, num_cut_buckets=0, num_cut_pairs=0)
    first_new_doc = int(added.docs[0])
    if not among_new and spill is not None:
        spill = _spill_with_known(spill, first_new_doc)
    shared.append(_of_new(added, is_first))
    docs = np.concatenate([part.docs for part in shared])
    have_usual_sketches = all(part.sketches.shape[1] == WORDS_PER_SKETCH for part in shared)
    if have_usual_sketches and np.all(docs[1:] > docs[:-1]):
        buckets = _Buckets.of(shared, terms, docs)
        del shared
        found = _paired(buckets, params, among_new=among_new, spill=spill)
    else:
        found = candidate_pairs(_joined(shared, terms), params, first_new_doc=first_new_doc, spill=spill)
    if among_new:
        return found
    pairs, shared_terms = _with_known(found.pairs, found.shared_terms, first_new_doc)
    return replace(found, pairs=pairs, shared_terms=shared_terms)


def _with_known(
    pairs: NDArray[np.uint64], shared_terms: NDArray[np.uint32], first_new_doc: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Without the pairs of two new docs, some of which the heads of cut buckets make."""
    is_wanted = pairs[:, 0] < np.uint64(first_new_doc)
    return pairs[is_wanted], shared_terms[is_wanted]


def _spill_with_known(spill: Spill, first_new_doc: int) -> Spill:
    return lambda pairs, shared_terms: spill(*_with_known(pairs, shared_terms, first_new_doc))


def join_term_blocks(
    known: Iterable[FrameBytes], new: Sequence[FrameBytes], *, removed_docs: NDArray[np.uint64]
) -> TermPostings:
    """The postings of the `new` blocks, and those of `known` ones that share a term with them.

    Known blocks are walked one at a time and not sorted again, so what no new doc shares costs its decoding alone.
    Postings of `removed_docs` `(m,)`, ascending, are left out of the known blocks. Raises FormatError as
    `decode_term_blocks` does.
    """
    added = decode_term_blocks(new)
    is_first = starts_of_runs(added.terms)
    terms = added.terms[is_first]
    shared = list(_shared(known, terms, removed_docs))
    return _joined([*shared, _of_new(added, is_first)], terms) if shared else added


@dataclass(frozen=True, slots=True, eq=False)
class _Buckets:
    """The buckets of `terms` `(num_terms,)` over docs `(n,)` that ascend from block to block, the new ones last.

    The rows of a bucket are `rows[ends[block, bucket - 1] : ends[block, bucket]]` of every block, `ends`
    `(num_blocks, num_terms)`, where the bucket before the first ends with the block before; `sizes` `(num_terms,)`
    count them. The last block has the new docs.
    """

    terms: NDArray[np.uint64]
    ends: NDArray[np.int64]
    sizes: NDArray[np.int64]
    rows: NDArray[np.uint32]
    docs: NDArray[np.uint64]
    sketches: NDArray[np.uint64]
    first_new_row: int

    @classmethod
    def of(cls, shared: Sequence[_Shared], terms: NDArray[np.uint64], docs: NDArray[np.uint64]) -> _Buckets:
        rows = np.empty(sum(part.doc_rows.size for part in shared), np.uint32)
        ends = np.empty((len(shared), terms.size), np.int64)
        sizes = np.zeros(terms.size, np.int64)
        first_row = num_rows = 0
        for number, part in enumerate(shared):
            sizes += np.diff(part.ends, prepend=0)
            np.add(part.ends, num_rows, out=ends[number])
            np.add(part.doc_rows, np.uint32(first_row), out=rows[num_rows : num_rows + part.doc_rows.size])
            first_row, num_rows = first_row + part.docs.size, num_rows + part.doc_rows.size
        sketches = np.concatenate([part.sketches for part in shared])
        return cls(terms, ends, sizes, rows, docs, sketches, int(docs.size - shared[-1].docs.size))

    def starts(self, block: int) -> NDArray[np.int64]:
        """Where the buckets of a block start in `rows`."""
        before = int(self.ends[block - 1, -1]) if block else 0
        return np.append(before, self.ends[block, :-1])

    def postings(self, is_wanted: NDArray[np.bool_]) -> TermPostings:
        """All postings of some buckets, by term, then doc."""
        rows = []
        numbers = []
        for block, ends in enumerate(self.ends):
            starts = self.starts(block)[is_wanted]
            counts = ends[is_wanted] - starts
            places = np.repeat(starts - np.append(0, np.cumsum(counts)[:-1]), counts) + np.arange(counts.sum())
            rows.append(self.rows[places])
            numbers.append(np.repeat(np.flatnonzero(is_wanted), counts))
        number = np.concatenate(numbers)
        order = np.argsort(number, kind="stable")
        doc_rows = np.concatenate(rows)[order].astype(np.int64)
        return checked_postings(self.terms[number[order]], doc_rows, self.docs, self.sketches)


def _paired(buckets: _Buckets, params: CandidateParams, *, among_new: bool, spill: Spill | None) -> Candidates:
    ranks = doc_ranks(buckets.docs)
    is_cut = _are_crowded(
        buckets.ends,
        buckets.sizes,
        buckets.rows,
        ranks,
        buckets.sketches,
        params.crowd_distance,
        params.crowd_size,
    )
    is_cut |= buckets.sizes > params.max_bucket_size
    tally = PairTally(buckets.docs, spill)
    for keys in _keys_with_known(buckets, ~is_cut, params):
        tally.add(keys)
    if among_new:
        for keys in _keys_of_new(buckets, ~is_cut, params):
            tally.add(keys)
    cut = buckets.postings(is_cut)
    cut_starts = np.flatnonzero(starts_of_runs(cut.terms))
    bounds = (cut_starts, np.append(cut_starts[1:], cut.terms.size)[: cut_starts.size])
    num_cut_pairs = tally_cut(tally, cut, bounds, ranks=ranks, params=params, first_new_row=buckets.first_new_row)
    return Candidates.of(
        tally,
        num_buckets=buckets.sizes.size,
        largest_bucket=int(buckets.sizes.max(initial=0)),
        num_cut_buckets=int(is_cut.sum()),
        num_cut_pairs=num_cut_pairs,
    )


def _keys_with_known(
    buckets: _Buckets, is_regular: NDArray[np.bool_], params: CandidateParams
) -> Iterator[NDArray[np.uint64]]:
    """Keys of the pairs of a known and a new doc, in chunks; a pair repeats once for each shared term."""
    first_new = buckets.starts(len(buckets.ends) - 1)
    num_new = np.where(is_regular, buckets.ends[-1] - first_new, 0)
    # The sketches of a bucket's new docs lie together: they are looked at for each of its known ones.
    new_rows, new_starts = buckets.rows[first_new[0] :], first_new - first_new[0]
    new_sketches = buckets.sketches[new_rows]
    keys = np.empty(0, np.uint64)
    for block, ends in enumerate(buckets.ends[:-1]):
        starts = buckets.starts(block)
        num_pairs = (ends - starts) * num_new
        num_wanted = max(min(MIN_KEYS_PER_CHUNK, int(num_pairs.sum())), int(num_pairs.max()))
        keys = np.empty(num_wanted, np.uint64) if keys.size < num_wanted else keys
        bucket = 0
        while bucket < ends.size:
            bucket, num_keys = _pair_with_known(
                bucket,
                starts,
                ends,
                new_starts,
                num_new,
                buckets.rows,
                new_rows,
                buckets.sketches,
                new_sketches,
                params.max_sketch_distance,
                keys,
            )
            yield keys[:num_keys]


def _keys_of_new(
    buckets: _Buckets, is_regular: NDArray[np.bool_], params: CandidateParams
) -> Iterator[NDArray[np.uint64]]:
    """Keys of the pairs of two new docs, in chunks; a pair repeats once for each shared term."""
    starts = buckets.starts(len(buckets.ends) - 1)
    sizes = buckets.ends[-1] - starts
    is_walked = is_regular & (sizes > 1)
    yield from regular_keys(
        buckets.rows.astype(np.int64) if is_walked.any() else np.empty(0, np.int64),
        buckets.sketches,
        starts[is_walked],
        sizes[is_walked],
        params=params,
        first_new_row=buckets.first_new_row,
    )


def _shared(
    known: Iterable[FrameBytes], terms: NDArray[np.uint64], removed_docs: NDArray[np.uint64]
) -> Iterator[_Shared]:
    """The postings of `terms` `(m,)`, ascending and distinct, of each block that has any."""
    for block in known:
        docs, block_terms, rows, sketches = term_columns(block)
        is_removed = np.isin(docs, removed_docs, assume_unique=True) if removed_docs.size else np.zeros(0, np.bool_)
        ends, doc_rows = np.empty(terms.size, np.int64), np.empty(block_terms.size, np.uint32)
        num_rows = _rows_of_terms(block_terms, rows, terms, is_removed, ends, doc_rows)
        if num_rows < 0:
            raise FormatError("the postings of a term block are not ascending; the block is damaged")
        if num_rows:
            yield _Shared(ends, doc_rows[:num_rows].copy(), docs, sketches.copy())


def _of_new(added: TermPostings, is_first: NDArray[np.bool_]) -> _Shared:
    ends = np.append(np.flatnonzero(is_first)[1:], added.terms.size)[: int(is_first.sum())]
    return _Shared(ends, added.doc_rows.astype(np.uint32), added.docs, added.sketches)


def _coalesced(parts: Iterable[_Shared]) -> Iterator[_Shared]:
    """The same postings with small blocks that follow one another, as those of nights, put together."""
    pending: list[_Shared] = []
    for part in parts:
        num_docs = sum(one.docs.size for one in pending) + part.docs.size
        if pending and (num_docs > _DOCS_AT_ONCE or pending[-1].docs[-1] >= part.docs[0]):
            yield _as_one(pending)
            pending = []
        pending.append(part)
        if len(pending) == _MAX_PENDING:
            pending = [_as_one(pending)]
    if pending:
        yield _as_one(pending)


def _as_one(parts: Sequence[_Shared]) -> _Shared:
    """The postings of parts whose docs follow one another, put in their places without sorting."""
    if len(parts) == 1:
        return parts[0]
    counts = [np.diff(part.ends, prepend=0) for part in parts]
    ends = np.cumsum(np.sum(counts, axis=0))
    places = np.append(0, ends[:-1])
    doc_rows = np.empty(int(ends[-1]), np.uint32)
    first_row = 0
    for count, part in zip(counts, parts, strict=True):
        _put(count, part.doc_rows, np.uint32(first_row), places, doc_rows)
        first_row += part.docs.size
    docs, sketches, _ = docs_once([part.docs for part in parts], [part.sketches for part in parts])
    return _Shared(ends, doc_rows, docs, sketches)


def _joined(parts: Sequence[_Shared], terms: NDArray[np.uint64]) -> TermPostings:
    """The postings of all parts, sorted only where their docs do not follow one another."""
    _, _, row_of = docs_once([part.docs for part in parts], [part.sketches for part in parts])
    if row_of is None:
        return _postings(_as_one(parts), terms)
    return merged_postings([_postings(part, terms) for part in parts])


def _postings(part: _Shared, terms: NDArray[np.uint64]) -> TermPostings:
    counts = np.diff(part.ends, prepend=0)
    return checked_postings(np.repeat(terms, counts), part.doc_rows.astype(np.int64), part.docs, part.sketches)


@njit(cache=True, nogil=True)
def _rows_of_terms(  # noqa: PLR0917 - numba kernels take their arrays one by one
    terms: NDArray[np.uint64],
    rows: NDArray[np.uint64],
    wanted: NDArray[np.uint64],
    is_removed: NDArray[np.bool_],
    ends: NDArray[np.int64],
    found: NDArray[np.uint32],
) -> int:
    """Fills `found` with the rows of those `terms`, ascending, that are `wanted`, and `ends` with where each one's end.

    `wanted` is ascending and distinct; `is_removed` tells which rows to leave out, none where it is empty.
    Returns how many were found, -1 where the rows of a term do not ascend.
    """
    num_found = i = 0
    for j in range(wanted.size):
        while i < terms.size and terms[i] < wanted[j]:
            i += 1
        first = i
        while i < terms.size and terms[i] == wanted[j]:
            if i > first and rows[i] <= rows[i - 1]:
                return -1
            found[num_found] = np.uint32(rows[i])
            num_found += int(is_removed.size == 0 or not is_removed[rows[i]])
            i += 1
        ends[j] = num_found
    return num_found


@njit(cache=True, nogil=True)
def _put(
    counts: NDArray[np.int64],
    doc_rows: NDArray[np.uint32],
    first_row: np.uint32,
    places: NDArray[np.int64],
    joined: NDArray[np.uint32],
) -> None:
    """Puts the rows of each term, counted from `first_row`, into the next of its `places`, and moves that on."""
    i = 0
    for term in range(counts.size):
        for place in range(places[term], places[term] + counts[term]):
            joined[place] = first_row + doc_rows[i]
            i += 1
        places[term] += counts[term]


@njit(cache=True, nogil=True)
def _are_crowded(  # noqa: PLR0917 - numba kernels take their arrays one by one
    ends: NDArray[np.int64],
    sizes: NDArray[np.int64],
    rows: NDArray[np.uint32],
    ranks: NDArray[np.uint64],
    sketches: NDArray[np.uint64],
    radius: int,
    crowd_size: int,
) -> NDArray[np.bool_]:
    """For each bucket whether it has a head; as `crowds.are_crowded` of buckets that lie in several blocks."""
    are = np.zeros(sizes.size, np.bool_)
    gathered = np.empty(sizes.max(), np.int64)
    for bucket in range(sizes.size):
        if sizes[bucket] <= UNCUT_PER_CROWD * crowd_size:
            continue
        num_rows = 0
        for block in range(len(ends)):
            start = ends[block, bucket - 1] if bucket else (ends[block - 1, -1] if block else 0)
            for i in range(start, ends[block, bucket]):
                gathered[num_rows] = rows[i]
                num_rows += 1
        are[bucket] = is_crowd(gathered[:num_rows], ranks, sketches, radius, crowd_size)
    return are


@njit(cache=True, nogil=True)
def _pair_with_known(  # noqa: PLR0917 - numba kernels take their arrays one by one
    bucket: int,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    new_starts: NDArray[np.int64],
    num_new: NDArray[np.int64],
    rows: NDArray[np.uint32],
    new_rows: NDArray[np.uint32],
    sketches: NDArray[np.uint64],
    new_sketches: NDArray[np.uint64],
    max_distance: int,
    keys: NDArray[np.uint64],
) -> tuple[int, np.int64]:
    """Fills `keys` with the near pairs of known rows `starts` to `ends` and the new ones of the same bucket.

    Begins with `bucket` and goes on while those of a bucket surely fit. Returns the bucket to go on with, and the
    number of keys.
    """
    num_keys, limit = _ZERO, np.uint64(max_distance)
    while bucket < ends.size:
        if np.int64(num_keys) + (ends[bucket] - starts[bucket]) * num_new[bucket] > keys.size:
            break
        first, stop = np.uint64(new_starts[bucket]), np.uint64(new_starts[bucket] + num_new[bucket])
        if first < stop:
            # Unsigned positions spare numba's test for negative ones.
            for i in range(np.uint64(starts[bucket]), np.uint64(ends[bucket])):
                row = np.uint64(rows[i])
                a, b, c, d = sketches[row, 0], sketches[row, 1], sketches[row, 2], sketches[row, 3]
                for j in range(first, stop):
                    distance = count_ones(a ^ new_sketches[j, 0]) + count_ones(b ^ new_sketches[j, 1])
                    distance += count_ones(c ^ new_sketches[j, 2]) + count_ones(d ^ new_sketches[j, 3])
                    # Storing first and counting after keeps the loop free of a branch that nobody can predict.
                    keys[num_keys] = row << _ROW_BITS | np.uint64(new_rows[j])
                    num_keys += np.uint64(distance <= limit)
        bucket += 1
    return bucket, np.int64(num_keys)
