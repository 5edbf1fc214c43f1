"""What lookups have in common wherever the hash tables lie: checked queries, the answer, scratch for each thread."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lsh.errors import ParameterError
from lsh.index import layout
from lsh.index.kernels import Scratch, query_scratch
from lsh.index.manifest import Manifest
from lsh.probes import ProbeScratch, probe_plan, probe_scratch
from lsh.rotations import checked_embeddings
from lsh.sketches import BITS_PER_SKETCH, sketch_signs

MAX_K = 1024
MAX_POSTINGS = 1 << 15
MAX_POSTINGS_LIMIT = 1 << 26
_SKETCH_SIGMAS = 2.5


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The best docs of each of `n` queries.

    `docs` `(n, k)` int64, -1 where there are fewer; `similarities` `(n, k)` float32 descending, on a tie the lower doc
    first; `shared_terms` `(n, k)` int32, how many of the probes hold the doc, or its view where `are_by_view` `(n, k)`
    bool: then the similarity is what the view counts; `num_candidates` `(n,)` int64, distinct docs and views
    that the probes hold.
    """

    docs: NDArray[np.int64]
    similarities: NDArray[np.float32]
    shared_terms: NDArray[np.int32]
    num_candidates: NDArray[np.int64]
    are_by_view: NDArray[np.bool_]


class QueryPlan:
    """How queries of one generation are hashed, and scratch for them: a set for each lookup that is under way."""

    def __init__(self, manifest: Manifest, *, max_postings: int) -> None:
        if not manifest.num_probes <= max_postings <= MAX_POSTINGS_LIMIT:
            raise ParameterError(
                f"max_postings={max_postings} is out of range {manifest.num_probes}..{MAX_POSTINGS_LIMIT}; "
                f"every probe reads at least one posting"
            )
        self.probes = probe_plan(manifest.term_params, manifest.num_probes)
        self.sketch_signs = sketch_signs(
            dim=manifest.dim, num_words=layout.WORDS_PER_SKETCH, seed=manifest.term_params.seed
        )
        self.max_postings = max_postings
        self._dim = manifest.dim
        self._idle: list[tuple[ProbeScratch, Scratch]] = []

    @contextmanager
    def scratch(self) -> Iterator[tuple[ProbeScratch, Scratch]]:
        """A set that no other thread uses: one that is idle (`list.pop` is atomic), or a new one."""
        try:
            taken = self._idle.pop()
        except IndexError:
            taken = (
                probe_scratch(self.probes),
                query_scratch(num_probes=self.probes.num_probes, max_postings=self.max_postings, dim=self._dim),
            )
        try:
            yield taken
        finally:
            self._idle.append(taken)


def checked_queries(
    manifest: Manifest,
    embeddings: NDArray[np.float32],
    k: int,
    min_similarity: float,
    excluded: NDArray[np.bool_] | None,
) -> NDArray[np.float32]:
    """The rows of a lookup; raises ParameterError for what no lookup can answer."""
    if not 1 <= k <= MAX_K:
        raise ParameterError(f"k={k} is out of range 1..{MAX_K}")
    if not -1.0 <= min_similarity <= 1.0:
        raise ParameterError(f"min_similarity={min_similarity} is out of range -1..1")
    if excluded is not None and (excluded.shape != (manifest.num_docs,) or excluded.dtype != np.bool_):
        raise ParameterError(
            f"excluded of shape {excluded.shape} and dtype {excluded.dtype} given; pass ({manifest.num_docs},) bool"
        )
    return checked_embeddings(embeddings, dim=manifest.dim)


@lru_cache(maxsize=1024)
def max_sketch_distance(min_similarity: float) -> int:
    """The largest Hamming distance of two 256-bit sketches at which a cosine of `min_similarity` is still likely.

    Bits differ with probability `p = acos(similarity) / pi`; 2.5 standard deviations above the mean of a binomial keep
    99.4 % of the pairs at the very threshold.

    >>> max_sketch_distance(0.79), max_sketch_distance(-1.0)
    (70, 256)
    """
    num_bits = layout.WORDS_PER_SKETCH * BITS_PER_SKETCH
    share = math.acos(min_similarity) / math.pi
    return min(num_bits, int(num_bits * share + _SKETCH_SIGMAS * math.sqrt(num_bits * share * (1 - share))))


def nothing_found(num_queries: int, k: int) -> Found:
    return Found(
        docs=np.full((num_queries, k), -1, dtype=np.int64),
        similarities=np.zeros((num_queries, k), dtype=np.float32),
        shared_terms=np.zeros((num_queries, k), dtype=np.int32),
        num_candidates=np.zeros(num_queries, dtype=np.int64),
        are_by_view=np.zeros((num_queries, k), dtype=np.bool_),
    )
