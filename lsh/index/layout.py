"""The arrays of a generation: one file each, raw little-endian, with the name, type and shape in one place.

`docs/index-format.md` explains them to readers. A part is a range of buckets of one table; within it a bucket's
postings are found by an offset of 32 bits, so offsets stay small while a corpus may grow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lsh.errors import ParameterError
from lsh.terms import TermParams

MAX_DOCS = (1 << 32) - 2
MAX_BITS_PER_TERM = 32
MAX_BITS_PER_PART = 16
WORDS_PER_SKETCH = 4
_FEWEST_PROBES, _MOST_PROBES = 12, 256
_DOCS_OF_FEWEST_PROBES = 1_000_000
_PROBES_EXPONENT = 0.426

CODES = "codes.bin"
SKETCHES = "sketches.bin"
POSTINGS = "postings.bin"
POSTING_OFFSETS = "posting_offsets.bin"
PART_STARTS = "part_starts.bin"
IMAGE_IDS = "image_ids.bin"
IMAGE_ID_STARTS = "image_id_starts.bin"
DOCS_BY_IMAGE_ID = "docs_by_image_id.bin"
CANONICALS = "canonicals.bin"
CLUSTER_CANONICALS = "cluster_canonicals.bin"
CLUSTER_STARTS = "cluster_starts.bin"
CLUSTER_MEMBERS = "cluster_members.bin"
CENTROIDS = "centroids.bin"
VIEW_OWNERS = "view_owners.bin"

SCORER_FILES = ("pair_classifier.npz", "calibration.json")
"""What makes scores of cosines, in the embedder's own formats; a generation whose score is the cosine has none."""

DTYPES: dict[str, np.dtype] = {
    CODES: np.dtype("i1"),
    SKETCHES: np.dtype("<u8"),
    POSTINGS: np.dtype("u1"),
    POSTING_OFFSETS: np.dtype("<u4"),
    PART_STARTS: np.dtype("<u8"),
    IMAGE_IDS: np.dtype("u1"),
    IMAGE_ID_STARTS: np.dtype("<u8"),
    DOCS_BY_IMAGE_ID: np.dtype("<u4"),
    CANONICALS: np.dtype("<u4"),
    CLUSTER_CANONICALS: np.dtype("<u4"),
    CLUSTER_STARTS: np.dtype("<u8"),
    CLUSTER_MEMBERS: np.dtype("<u4"),
    CENTROIDS: np.dtype("<f4"),
}

VIEW_DTYPES: dict[str, np.dtype] = {VIEW_OWNERS: np.dtype("<u4")}
"""Of the array that only a generation with views has."""


@dataclass(frozen=True, slots=True)
class Parts:
    """How the buckets of `num_tables` tables of `2 ** bits_per_term` each fall into parts."""

    num_tables: int
    bits_per_term: int

    def __post_init__(self) -> None:
        if self.bits_per_term > MAX_BITS_PER_TERM:
            raise ParameterError(
                f"{self.bits_per_term} bits per term are more than the {MAX_BITS_PER_TERM} of an index; "
                f"lower num_polytopes or polytope_dim"
            )

    @classmethod
    def of(cls, params: TermParams) -> Parts:
        return cls(params.num_tables, params.bits_per_term)

    @property
    def bits_per_part(self) -> int:
        return min(self.bits_per_term, MAX_BITS_PER_PART)

    @property
    def buckets_per_part(self) -> int:
        return 1 << self.bits_per_part

    @property
    def parts_per_table(self) -> int:
        return 1 << (self.bits_per_term - self.bits_per_part)

    @property
    def num_parts(self) -> int:
        return self.num_tables * self.parts_per_table


def probes_for(num_docs: int, *, num_tables: int = 16) -> int:
    """How many buckets a lookup visits by default, so that it finds the most similar doc for 98 of 100 queries.

    The finer buckets of a larger corpus part near images more often: 12 a table suffice for a million docs, 32 for ten
    million (`benchmarks lookup`), and from there on the same power is assumed.

    >>> probes_for(1_000_000), probes_for(10_000_000), probes_for(1000)
    (192, 512, 192)
    """
    growth: float = max(1.0, num_docs / _DOCS_OF_FEWEST_PROBES) ** _PROBES_EXPONENT
    return num_tables * min(round(_FEWEST_PROBES * growth), _MOST_PROBES)


def params_for(num_docs: int, *, dim: int, num_tables: int = 16, seed: int = 0) -> TermParams:
    """Term parameters whose number of buckets a table is about half the number of docs, at least 2 ** 15.

    Polytopes of 64 dimensions give 7 bits each, the last one what is left: one more bit when a corpus doubles.

    >>> params_for(1_000_000, dim=256).bits_per_term, params_for(10_000_000, dim=256).bits_per_term
    (19, 22)
    """
    rounded_log2 = (num_docs * num_docs).bit_length() // 2
    bits = min(max(15, rounded_log2 - 1), MAX_BITS_PER_TERM - 4)
    num_polytopes = -(-bits // 7)
    return TermParams(
        num_tables=num_tables,
        dim=dim,
        num_polytopes=num_polytopes,
        polytope_dim=64,
        last_polytope_dim=1 << (bits - 7 * (num_polytopes - 1) - 1),
        seed=seed,
    )
