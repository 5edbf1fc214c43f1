"""Buckets: postings by their term, as posting lists are decoded, and as they are walked for candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lsh.blocks import TermPostings
from lsh.errors import ParameterError
from lsh.sorting import starts_of_runs


@dataclass(frozen=True, slots=True, eq=False)
class Buckets:
    """The bucket of `terms[i]` holds the docs of `doc_rows[ends[i - 1] : ends[i]]`, ascending and distinct.

    `terms` `(t,)` uint64 ascend and are distinct, `ends` are `(t,)` int64, `doc_rows` `(m,)` uint32; `docs` `(n,)`
    uint64 ascend, and `sketches` are `(n, words_per_sketch)` uint64. A bucket may be empty.
    """

    terms: NDArray[np.uint64]
    ends: NDArray[np.int64]
    doc_rows: NDArray[np.uint32]
    docs: NDArray[np.uint64]
    sketches: NDArray[np.uint64]

    def __post_init__(self) -> None:
        if self.terms.shape != self.ends.shape or (self.ends.size and self.ends[-1] != self.doc_rows.size):
            raise ParameterError(
                f"terms {self.terms.shape} and ends {self.ends.shape} must be equal (t,), and the last end the number "
                f"of doc_rows {self.doc_rows.shape}"
            )

    @classmethod
    def of(cls, postings: TermPostings) -> Buckets:
        """Those of some postings; none is empty."""
        starts = np.flatnonzero(starts_of_runs(postings.terms))
        ends = np.append(starts[1:], postings.terms.size)[: starts.size]
        doc_rows = postings.doc_rows.astype(np.uint32)
        return cls(postings.terms[starts], ends, doc_rows, postings.docs, postings.sketches)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many docs each has, `(t,)`."""
        return np.diff(self.ends, prepend=0)

    def rows(self, number: int) -> NDArray[np.uint32]:
        """The rows of one bucket."""
        return self.doc_rows[self.ends[number - 1] if number else 0 : self.ends[number]]

    def postings(self) -> TermPostings:
        """The postings, one by one; raises ParameterError where they are none."""
        terms = np.repeat(self.terms, self.sizes)
        return TermPostings(terms, self.doc_rows.astype(np.int64), self.docs, self.sketches)

    def only(self, is_kept: NDArray[np.bool_]) -> Buckets:
        """The buckets with those doc rows alone that are kept, `(m,)`."""
        ends = np.append(0, np.cumsum(is_kept))[self.ends]
        return Buckets(self.terms, ends, self.doc_rows[is_kept], self.docs, self.sketches)
