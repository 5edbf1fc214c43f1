"""The cost model: from a sample of a corpus to the term parameters that find near pairs most cheaply.

Theory for a uniform sphere says nothing of real embeddings, which crowd in places. So all is counted: the sample is
hashed by each setting that might do, its near pairs say what a setting finds, and all its pairs say what it compares.
A pair of the sample stands for `(num_images / sample) ** 2` pairs of the corpus, which a sample drawn at random makes
true on average, families of copies and crowded places included; crowds of near-identical images, which any setting
finds, are left out. A pair that shares `c` of the `T` tables hashed shares
at least `m` of `t` of them with the hypergeometric probability, so one hashing tells all smaller numbers of tables.

Seconds are core-seconds of the kernels, from unit costs measured on the machine at hand; Spark's own are not in them.

Source of the idea: Gusev and Xu, arXiv 2209.08433, section 4 (a cost model that reads the density of the space);
Dong et al., "Modeling LSH for Performance Tuning", CIKM 2008 (from samples, not from theory).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import comb
from time import thread_time

import numpy as np
from numpy.typing import NDArray

from lsh.blocks import decode_pair_blocks, decode_term_blocks, encode_pair_block, encode_term_blocks
from lsh.buckets import Buckets
from lsh.candidates import CandidateParams, candidate_pairs
from lsh.codes import pair_cosines, quantize
from lsh.crowds import MAX_HEADS, outside_crowds
from lsh.errors import ParameterError
from lsh.near_pairs import NearPairs, near_pairs
from lsh.plans import MAX_TABLES, MIN_TABLES, Plan, Prediction, TuningTarget, UnitCosts
from lsh.rotations import checked_embeddings
from lsh.sketches import BITS_PER_SKETCH, WORDS_PER_SKETCH, hamming_distances, long_sketches
from lsh.terms import TermHasher, TermParams

MIN_SAMPLE = 1000
MAX_WALKED_PER_IMAGE = 20_000
MAX_WALKED_IN_SAMPLE = 60_000_000
TABLES_TRIED = (MIN_TABLES, 6, 8, 10, 12, 14, 16, 18, *range(20, 65, 4), 72, 80, 88, 96)
SKETCH_DISTANCES_TRIED = (*range(40, 90, 2), 96)
SHARED_TERMS_TRIED = (1, 2, 3, 4)
START_S = {"minhash": 0.7}
"""Core-seconds of a run that a family takes before it hashes: datasketch is loaded and ranks every element."""
_ALL_BITS = BITS_PER_SKETCH * WORDS_PER_SKETCH
_UNCUT = CandidateParams(max_bucket_size=16384, crowd_size=16384, max_sketch_distance=_ALL_BITS)
_PAIR_BYTES = 4.3
_MANY_CODES = 1 << 18
_DOCS_PER_BLOCK = 65_536
_POSTINGS_PER_PARTITION = 16_000_000


def default_settings(dim: int) -> tuple[TermParams, ...]:
    """The settings that `plans` tries, each with `MAX_TABLES` tables: coarse to fine, in all families."""
    largest = min(256, 1 << max(4, (dim - 1).bit_length()))
    polytopes = [
        (number, size, last)
        for size in sorted({min(size, largest) for size in (64, 128, 256)})
        for number, lasts in ((2, (16, 32, 64, 128, 256)), (3, (2, 4, 8, 16, 32, 64, 128)))
        for last in lasts
        if last <= size and (size == largest or number == 3)
    ]
    return (
        *(
            TermParams(num_polytopes=number, polytope_dim=size, last_polytope_dim=last, dim=dim, num_tables=MAX_TABLES)
            for number, size, last in polytopes
        ),
        *(
            TermParams(family="hyperplane", num_planes=planes, dim=dim, num_tables=MAX_TABLES)
            for planes in (18, 22, 26)
        ),
        *(
            TermParams(
                family="minhash",
                num_activations=activations,
                num_hashes=hashes,
                dim=dim,
                num_tables=MAX_TABLES,
            )
            for activations, hashes in sorted({(min(12, dim), 3), (min(24, dim), 3), (min(24, dim), 4)})
        ),
    )


def plans(
    sample: NDArray[np.float32],
    target: TuningTarget,
    *,
    settings: Sequence[TermParams] | None = None,
    costs: UnitCosts | None = None,
    seed: int = 0,
) -> list[Plan]:
    """The cheapest plan of each setting that reaches the target, cheapest first.

    `sample` `(n, dim)` float32 unit rows, drawn at random from the corpus. Raises ParameterError for a sample that is
    too small, and when no setting reaches the target.
    """
    rows = checked_embeddings(sample, dim=sample.shape[1])
    if len(rows) < MIN_SAMPLE:
        raise ParameterError(f"a sample of {len(rows)} embeddings is too small to tune on; give {MIN_SAMPLE} or more")
    # All settings find the pairs of a crowd, and none is to be chosen for them.
    limits = CandidateParams()
    is_outside = outside_crowds(_sketches(rows, seed), radius=limits.crowd_distance, crowd_size=limits.crowd_size)
    rows, share = rows[is_outside], float(is_outside.mean())
    if len(rows) < MIN_SAMPLE:
        raise ParameterError(
            f"only {len(rows)} images of the sample are outside crowds of near-identical ones, of {MIN_SAMPLE} needed; "
            f"give a larger sample"
        )
    target = replace(target, num_images=max(2, round(share * target.num_images)))
    near = near_pairs(rows, target.min_similarity, seed=seed)
    costs = costs or measured_costs(rows)
    found = [
        plan
        for params in (default_settings(rows.shape[1]) if settings is None else settings)
        if (plan := _cheapest(rows, near, params, target, costs)) is not None
    ]
    if not found:
        raise ParameterError(
            f"no setting finds {target.target_recall:.0%} of the pairs of similarity {target.min_similarity} "
            f"with up to {target.max_tables} tables; lower the target recall, raise the similarity or allow more tables"
        )
    return sorted(found, key=lambda plan: plan.prediction.core_s)


def measured(embeddings: NDArray[np.float32], plan: Plan, near: NearPairs) -> Prediction:
    """What `plan` really does with the whole corpus `embeddings` `(n, dim)`, to be held against its prediction.

    Runs the kernels of the batch on one core, a partition at a time. `near` are pairs to measure recall with.
    """
    rows = checked_embeddings(embeddings, dim=plan.terms.dim)
    hasher = TermHasher(plan.terms)
    hasher.terms(rows[:1])
    num_partitions = -(-len(rows) * plan.terms.num_tables // _POSTINGS_PER_PARTITION)
    blocks: list[list[bytes]] = []
    hash_s = join_s = 0.0
    for first in range(0, len(rows), _DOCS_PER_BLOCK):
        batch = rows[first : first + _DOCS_PER_BLOCK]
        started = thread_time()
        terms, batch_sketches = hasher.terms(batch), _sketches(batch, plan.terms.seed)
        hashed = thread_time()
        docs = np.arange(first, first + len(batch), dtype=np.uint64)
        blocks.append(encode_term_blocks(terms, docs, batch_sketches, num_partitions=num_partitions))
        hash_s, join_s = hash_s + hashed - started, join_s + thread_time() - hashed
    pair_blocks, num_walked, largest_bucket = [], 0, 0
    for part in zip(*blocks, strict=True):
        started = thread_time()
        buckets = Buckets.of(decode_term_blocks(part))
        found = candidate_pairs(buckets, plan.candidates)
        pair_blocks.append(encode_pair_block(found.pairs, found.shared_terms))
        join_s += thread_time() - started
        sizes = buckets.sizes
        num_walked += int((sizes * (sizes - 1) // 2).sum()) - found.num_cut_pairs
        largest_bucket = max(largest_bucket, found.largest_bucket)
    codes = quantize(rows)
    started = thread_time()
    pairs, shared_terms = decode_pair_blocks(pair_blocks)
    pairs = pairs[shared_terms >= plan.min_shared_terms]
    cosines = pair_cosines(codes, codes, pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64))
    verify_s = thread_time() - started
    return Prediction(
        recall=_recall(near, plan),
        false_ratio=float((cosines < near.min_similarity).mean()) if len(pairs) else 0.0,
        walked=num_walked / len(rows),
        candidates=len(pairs) / len(rows),
        term_block_bytes=sum(len(block) for batch_blocks in blocks for block in batch_blocks) / len(rows),
        pair_block_bytes=sum(map(len, pair_blocks)) / len(rows),
        largest_bucket=largest_bucket,
        hash_s=hash_s / len(rows),
        join_s=join_s / len(rows),
        verify_s=verify_s / len(rows) if plan.verified else 0.0,
    )


def _recall(near: NearPairs, plan: Plan) -> float:
    seed = plan.terms.seed
    no_terms = np.empty(0, dtype=np.uint64)
    shared_terms = _shared_terms(TermHasher(plan.terms), near, lost=no_terms, verified=plan.verified)
    distances = hamming_distances(_sketches(near.left, seed), _sketches(near.right, seed))
    is_found = (shared_terms >= plan.min_shared_terms) & (distances <= plan.candidates.max_sketch_distance)
    return float(is_found.mean())


def measured_costs(sample: NDArray[np.float32]) -> UnitCosts:
    """The unit costs on this machine, on terms so coarse that there are pairs enough to time."""
    rows = sample[: 1 << 14]
    params = TermParams(num_tables=4, dim=rows.shape[1], num_polytopes=2, polytope_dim=16)
    terms, row_sketches, codes = TermHasher(params).terms(rows), _sketches(rows, 0), quantize(rows)
    docs = np.arange(len(rows), dtype=np.uint64)
    # Codes of a corpus are in no cache.
    many_codes = np.resize(codes, (_MANY_CODES, codes.shape[1]))
    ends = np.random.default_rng(0).integers(0, _MANY_CODES, (2, _MANY_CODES))
    lefts, rights = np.sort(ends[0]), ends[1]
    costs = UnitCosts(posting_s=0, walked_s=0, kept_s=0, verified_s=0)
    for _ in range(2):  # the first round compiles
        started = thread_time()
        buckets = Buckets.of(decode_term_blocks(encode_term_blocks(terms, docs, row_sketches, num_partitions=1)))
        decoded = thread_time()
        candidate_pairs(buckets, replace(_UNCUT, max_sketch_distance=0))
        walked = thread_time()
        kept = candidate_pairs(buckets, _UNCUT)
        tallied = thread_time()
        decode_pair_blocks([encode_pair_block(kept.pairs, kept.shared_terms)])
        packed = thread_time()
        pair_cosines(many_codes, many_codes, lefts, rights)
        num_walked = max(1, int(kept.shared_terms.sum()))
        costs = UnitCosts(
            posting_s=(decoded - started) / terms.size,
            walked_s=(walked - decoded) / num_walked,
            kept_s=max(0.0, (tallied - walked) - (walked - decoded)) / num_walked,
            verified_s=(packed - tallied) / max(1, len(kept.pairs)) + (thread_time() - packed) / _MANY_CODES,
        )
    return costs


def shares_at_least(shared: int, *, num_hashed: int, num_tables: int, min_shared_terms: int) -> float:
    """Probability that a pair which shares `shared` of `num_hashed` tables shares enough of `num_tables` drawn of them.

    The upper tail of the hypergeometric distribution.

    >>> shares_at_least(1, num_hashed=4, num_tables=2, min_shared_terms=1)
    0.5
    """
    misses = range(max(0, num_tables - num_hashed + shared), min(min_shared_terms, num_tables + 1))
    ways = sum(comb(shared, hits) * comb(num_hashed - shared, num_tables - hits) for hits in misses)
    return 1.0 - ways / comb(num_hashed, num_tables)


@dataclass(frozen=True, slots=True, eq=False)
class _Counts:
    """What one setting does to the sample, with all its tables.

    `near`, `pairs`, `pairs_below`: `(T + 1, 257)` numbers of near pairs, of all pairs that share a term, and of those
    below the similarity, by shared terms and sketch distance. `hash_s` grows with the tables, `fixed_hash_s` does not.
    """

    near: NDArray[np.float64]
    pairs: NDArray[np.float64]
    pairs_below: NDArray[np.float64]
    walked_share: float
    largest_bucket: int
    hash_s: float
    fixed_hash_s: float
    doc_bytes: float
    posting_bytes: float

    def within(self, distance: int) -> _CountsWithin:
        """The counts of pairs whose sketches are at most `distance` apart, by shared terms."""
        return _CountsWithin(
            self, *(counts[:, : distance + 1].sum(axis=1) for counts in (self.near, self.pairs, self.pairs_below))
        )


@dataclass(frozen=True, slots=True, eq=False)
class _CountsWithin:
    """The pairs of `whole` that a sketch distance keeps: `(T + 1,)` numbers by shared terms."""

    whole: _Counts
    near: NDArray[np.float64]
    pairs: NDArray[np.float64]
    pairs_below: NDArray[np.float64]


def _cheapest(
    rows: NDArray[np.float32], near: NearPairs, params: TermParams, target: TuningTarget, costs: UnitCosts
) -> Plan | None:
    """The cheapest plan of one setting; None when it cannot reach the target."""
    counts = _count(rows, near, params, target)
    if counts is None:
        return None
    best: Plan | None = None
    for plan in _tried(counts, params, target, costs, num_rows=len(rows)):
        if plan.prediction.recall < target.target_recall:
            continue
        if not target.verified and plan.prediction.false_ratio > target.max_false_ratio:
            continue
        if best is None or plan.prediction.core_s < best.prediction.core_s:
            best = plan
    return best


def _tried(
    counts: _Counts, params: TermParams, target: TuningTarget, costs: UnitCosts, *, num_rows: int
) -> Iterator[Plan]:
    """Every number of tables, sketch distance and number of shared terms with the hashing of `counts`."""
    growth = (target.num_images / num_rows) ** 2 / target.num_images * counts.walked_share
    for num_tables in TABLES_TRIED:
        if num_tables > min(target.max_tables, params.num_tables):
            continue
        shares = {
            least: np.array(
                [
                    shares_at_least(c, num_hashed=params.num_tables, num_tables=num_tables, min_shared_terms=least)
                    for c in range(params.num_tables + 1)
                ]
            )
            for least in SHARED_TERMS_TRIED
        }
        for distance in SKETCH_DISTANCES_TRIED:
            for least in SHARED_TERMS_TRIED:
                candidates = CandidateParams(max_sketch_distance=distance)
                yield Plan(
                    terms=replace(params, num_tables=num_tables),
                    candidates=candidates,
                    min_shared_terms=least,
                    verified=target.verified,
                    prediction=_predicted(
                        counts.within(distance),
                        costs,
                        any_share=shares[1],
                        share=shares[least],
                        part=num_tables / params.num_tables,
                        growth=growth,
                        verified=target.verified,
                    ),
                )


def _predicted(
    counts: _CountsWithin,
    costs: UnitCosts,
    *,
    any_share: NDArray[np.float64],
    share: NDArray[np.float64],
    part: float,
    growth: float,
    verified: bool,
) -> Prediction:
    """The prediction for a part of the tables; the shares are those of pairs by the terms they share in all tables.

    `growth` pairs per image of the corpus stand behind each pair of the sample.
    """
    whole = counts.whole
    num_tables = part * (share.size - 1)
    shared_of_tables = part * np.arange(share.size)
    walked = growth * float(shared_of_tables @ whole.pairs.sum(axis=1))
    kept = growth * float(shared_of_tables @ counts.pairs)
    candidates = growth * float(share @ counts.pairs)
    return Prediction(
        recall=float(share @ counts.near / whole.near.sum()),
        false_ratio=float(share @ counts.pairs_below) / max(1e-9, float(share @ counts.pairs)),
        walked=walked,
        candidates=candidates,
        term_block_bytes=whole.doc_bytes + whole.posting_bytes * part,
        pair_block_bytes=_PAIR_BYTES * growth * float(any_share @ counts.pairs),
        largest_bucket=whole.largest_bucket,
        hash_s=whole.fixed_hash_s + whole.hash_s * part,
        join_s=num_tables * costs.posting_s + walked * costs.walked_s + kept * costs.kept_s,
        verify_s=candidates * costs.verified_s if verified else 0.0,
    )


def _count(rows: NDArray[np.float32], near: NearPairs, params: TermParams, target: TuningTarget) -> _Counts | None:
    """Hash the sample and its near pairs; None for a setting that would walk hopelessly many pairs."""
    hasher = TermHasher(params)
    hasher.terms(rows[:1])
    started = thread_time()
    terms = hasher.terms(rows)
    hash_s = (thread_time() - started) / len(rows)
    buckets, sizes = np.unique(terms, return_counts=True)
    pairs_of_size = sizes * (sizes - 1) / 2
    growth = target.num_images / len(rows)
    limits = CandidateParams()
    is_oversized = (sizes > 1) & (sizes * growth > limits.max_bucket_size)
    scaled = np.where(is_oversized, sizes * MAX_HEADS / growth, pairs_of_size)
    num_walked = pairs_of_size.sum()
    if num_walked > MAX_WALKED_IN_SAMPLE or scaled.sum() * growth**2 / target.num_images > MAX_WALKED_PER_IMAGE:
        return None
    started = thread_time()
    row_sketches = _sketches(rows, params.seed)
    sketch_s = (thread_time() - started) / len(rows)
    docs = np.arange(len(rows), dtype=np.uint64)
    blocks = encode_term_blocks(terms, docs, row_sketches, num_partitions=1)
    found = candidate_pairs(Buckets.of(decode_term_blocks(blocks)), _UNCUT)
    lefts, rights = found.pairs.astype(np.int64).T
    below = _cosines(rows, lefts, rights) < target.min_similarity
    shared = found.shared_terms.astype(np.int64)
    doc_bytes = 1.0 + 8 * WORDS_PER_SKETCH  # a gap of neighbouring docs takes one byte
    distances = hamming_distances(row_sketches[lefts], row_sketches[rights])
    return _Counts(
        near=_histogram(
            _shared_terms(hasher, near, lost=buckets[is_oversized], verified=target.verified),
            hamming_distances(_sketches(near.left, params.seed), _sketches(near.right, params.seed)),
            params.num_tables,
        ),
        pairs=_histogram(shared, distances, params.num_tables),
        pairs_below=_histogram(shared[below], distances[below], params.num_tables),
        walked_share=float(scaled.sum() / max(1.0, num_walked)),
        largest_bucket=int(sizes.max() * growth),
        hash_s=hash_s,
        fixed_hash_s=sketch_s + START_S.get(params.family, 0.0) / target.num_images,
        doc_bytes=doc_bytes,
        posting_bytes=len(blocks[0]) / len(rows) - doc_bytes,
    )


def _sketches(rows: NDArray[np.float32], seed: int) -> NDArray[np.uint64]:
    return long_sketches(rows, num_words=WORDS_PER_SKETCH, seed=seed)


def _shared_terms(
    hasher: TermHasher, near: NearPairs, *, lost: NDArray[np.uint64], verified: bool
) -> NDArray[np.int64]:
    """Terms that each near pair shares, but for those of oversized buckets, where few pairs are compared.

    A pair that verification by its codes will drop counts as sharing none.
    """
    terms = hasher.terms(near.left)
    is_shared = (terms == hasher.terms(near.right)) & ~np.isin(terms, lost)
    if verified:
        is_shared &= near.is_kept[:, None]
    shared_terms: NDArray[np.int64] = is_shared.sum(axis=1)
    return shared_terms


def _histogram(shared: NDArray[np.int64], distances: NDArray[np.int64], num_tables: int) -> NDArray[np.float64]:
    width = _ALL_BITS + 1
    counts = np.bincount(shared * width + distances, minlength=(num_tables + 1) * width)
    return counts.reshape(num_tables + 1, width).astype(np.float64)


def _cosines(rows: NDArray[np.float32], lefts: NDArray[np.int64], rights: NDArray[np.int64]) -> NDArray[np.float32]:
    codes = quantize(rows)
    return pair_cosines(codes, codes, lefts, rights)
