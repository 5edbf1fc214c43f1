"""Candidates of new docs: those with one another and with known ones, whose lists are read for the new terms alone.

A night has few new docs. The lists that they share with known docs are put together in their places without sorting,
and paired like any other postings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.blocks import docs_once, merged_postings
from lsh.buckets import Buckets
from lsh.candidates import CandidateParams, Candidates, candidate_pairs
from lsh.pair_tally import Spill
from lsh.posting_lists import PostingLists

_BEHIND_ALL = np.uint64(1 << 62)
"""Added to new docs, it brings them behind all known ones."""


def new_candidates(
    known: Iterable[PostingLists],
    new: PostingLists,
    params: CandidateParams,
    *,
    removed_docs: NDArray[np.uint64],
    among_new: bool = True,
    spill: Spill | None = None,
) -> Candidates:
    """What `candidate_pairs` finds in `joined_buckets`, where the docs of `new` are the new ones.

    Without `among_new` the pairs of two new docs, all of them behind the known ones, are left out. Raises FormatError
    for damaged lists.
    """
    joined = joined_buckets(known, new, removed_docs=removed_docs)
    first_new_doc = int(new.docs.min(initial=np.uint64((1 << 64) - 1)))
    if among_new:
        return candidate_pairs(joined, params, first_new_doc=first_new_doc, spill=spill)

    def with_known(pairs: NDArray[np.uint64], shared_terms: NDArray[np.uint32]) -> tuple[NDArray[Any], NDArray[Any]]:
        # Heads of cut buckets are compared with all.
        has_known = pairs[:, 0] < np.uint64(first_new_doc)
        return pairs[has_known], shared_terms[has_known]

    found = candidate_pairs(
        joined,
        params,
        first_new_doc=first_new_doc,
        among_new=False,
        spill=None if spill is None else lambda *found: spill(*with_known(*found)),
    )
    pairs, shared_terms = with_known(found.pairs, found.shared_terms)
    return replace(found, pairs=pairs, shared_terms=shared_terms)


def candidates_with_later(
    known: Iterable[PostingLists],
    new: PostingLists,
    params: CandidateParams,
    *,
    removed_docs: NDArray[np.uint64],
    spill: Spill | None = None,
) -> Candidates:
    """What `new_candidates` finds without `among_new`, where the known docs lie behind the new ones, as views do."""

    def turned(pairs: NDArray[np.uint64], shared_terms: NDArray[np.uint32]) -> tuple[NDArray[Any], NDArray[Any]]:
        order = np.lexsort((pairs[:, 0], pairs[:, 1]))
        return np.column_stack([pairs[order, 1] - _BEHIND_ALL, pairs[order, 0]]), shared_terms[order]

    found = new_candidates(
        known,
        replace(new, docs=new.docs + _BEHIND_ALL),
        params,
        removed_docs=removed_docs,
        among_new=False,
        spill=None if spill is None else lambda *found: spill(*turned(*found)),
    )
    pairs, shared_terms = turned(found.pairs, found.shared_terms)
    return replace(found, pairs=pairs, shared_terms=shared_terms)


def joined_buckets(known: Iterable[PostingLists], new: PostingLists, *, removed_docs: NDArray[np.uint64]) -> Buckets:
    """The buckets of `new` with the docs that `known` have in them, without `removed_docs`, ascending.

    Raises FormatError for damaged lists, and for a doc with different sketches.
    """
    parts = [lists.buckets_of(new.terms, removed_docs=removed_docs) for lists in known]
    parts = [part for part in parts if part.doc_rows.size]
    parts.append(new.buckets())
    docs, sketches, row_of = docs_once([part.docs for part in parts], [part.sketches for part in parts])
    if row_of is not None:
        return Buckets.of(merged_postings([part.postings() for part in parts]))
    return Buckets(new.terms, *_put_together(parts), docs, sketches)


def _put_together(parts: Sequence[Buckets]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """The ends and rows of parts whose docs follow one another, put in their places without sorting."""
    counts = [part.sizes for part in parts]
    ends = np.cumsum(np.sum(counts, axis=0))
    places = np.append(0, ends)[: ends.size]
    doc_rows = np.empty(sum(part.doc_rows.size for part in parts), np.uint32)
    first_row = 0
    for count, part in zip(counts, parts, strict=True):
        _put(count, part.doc_rows, np.uint32(first_row), places, doc_rows)
        first_row += part.docs.size
    return ends, doc_rows


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
