"""Crowds: many docs of one bucket that are near one another (memes, blank images), and the heads that lead them.

A crowd would ask for a quadratic number of pairs, and any sample of them would leave a cluster in pieces: members must
match their canonical directly. So a crowded bucket is cut as a cluster is. A few of its docs become heads, each of
which covers a crowd of docs within a radius of sketch distance; all docs are compared with the heads, and those that no
head covers with one another. Heads come from the same few docs in every table, so members of a crowd that miss each
other in some tables meet its head in others.

A head covers at least `crowd_size` docs of a sample of `8 * crowd_size`; buckets of up to `4 * crowd_size` have none.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.bits import count_ones, mix64
from lsh.sketches import WORDS_PER_SKETCH

MAX_HEADS = 8
SAMPLE_PER_CROWD = 8
UNCUT_PER_CROWD = 4
DOCS_PER_BASE = 64
_ROW_BITS = np.uint64(32)
_NO_BASE = np.uint64(0xFFFFFFFFFFFFFFFF)
_ZERO = np.uint64(0)
_MAX_RANK = np.uint64(0xFFFFFFFFFFFFFFFF)


def outside_crowds(sketches: NDArray[np.uint64], *, radius: int, crowd_size: int) -> NDArray[np.bool_]:
    """Which of `(n, words_per_sketch)` sketches are left when crowds are taken out of them as out of a bucket."""
    rows = np.arange(len(sketches), dtype=np.uint32)
    docs = rows.astype(np.uint64)
    bases = bases_of(docs)
    while (heads := crowd_heads(rows, docs, bases, sketches, radius, crowd_size)).size:
        is_covered, keys = np.empty(rows.size, np.bool_), np.empty(heads.size * rows.size, np.uint64)
        pair_with_heads(rows, heads, sketches, 0, radius, 0, keys, is_covered)
        rows = rows[~is_covered]
    is_outside = np.zeros(len(sketches), np.bool_)
    is_outside[rows] = True
    return is_outside


def brute_force_heads(docs: list[int], sketch_of: dict[int, int], *, radius: int, crowd_size: int) -> list[int]:
    """The slow twin of `crowd_heads`, for docs with sketches of any number of bits as integers."""
    sample = sorted(docs, key=lambda doc: int(mix64(np.uint64(doc))))[: SAMPLE_PER_CROWD * crowd_size]
    heads: list[int] = []
    remaining = set(sample)
    while len(docs) > UNCUT_PER_CROWD * crowd_size and len(heads) < MAX_HEADS:
        crowds = {
            doc: {other for other in remaining if are_within(radius, doc, other, sketch_of)}
            for doc in sample[:crowd_size]
            if doc in remaining
        }
        largest = max(map(len, crowds.values()), default=0)
        if largest < crowd_size:
            break
        heads.append(next(doc for doc, crowd in crowds.items() if 10 * len(crowd) >= 9 * largest))
        remaining -= crowds[heads[-1]]
    return heads


def are_within(radius: int, left: int, right: int, sketch_of: dict[int, int]) -> bool:
    """Whether two docs' sketches differ in at most `radius` bits."""
    return (sketch_of[left] ^ sketch_of[right]).bit_count() <= radius


@njit(cache=True, nogil=True)
def doc_ranks(docs: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Distinct ranks that shuffle the docs, in the same way in every table."""
    ranks = np.empty(docs.size, np.uint64)
    for i in range(docs.size):
        ranks[i] = mix64(docs[i])
    return ranks


def bases_of(docs: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The first of each `DOCS_PER_BASE` of `docs`, ascending, where these have no gaps, and the largest word elsewhere.

    Most docs have no gaps: then this is all that need be looked at, a few words that stay in a cache.
    """
    firsts = docs[::DOCS_PER_BASE]
    lasts = docs[np.minimum(np.arange(firsts.size) * DOCS_PER_BASE + DOCS_PER_BASE - 1, docs.size - 1)]
    sizes = np.minimum(DOCS_PER_BASE, docs.size - np.arange(firsts.size) * DOCS_PER_BASE)
    return np.where(lasts - firsts == sizes.astype(np.uint64) - np.uint64(1), firsts, _NO_BASE)


@njit(cache=True, nogil=True)
def is_crowd(  # noqa: PLR0917 - numba kernels take their arrays one by one
    rows: NDArray[np.uint32],
    docs: NDArray[np.uint64],
    bases: NDArray[np.uint64],
    sketches: NDArray[np.uint64],
    words: NDArray[np.uint64],
    radius: int,
    crowd_size: int,
) -> bool:
    """Whether a bucket of more than `UNCUT_PER_CROWD * crowd_size` rows has a head; `words` are those of its rows."""
    sample = sample_of(rows, docs, bases, SAMPLE_PER_CROWD * crowd_size, crowd_size)
    if sample.size < rows.size:
        words = np.empty((sketches.shape[1], sample.size), np.uint64)
        gather_words(sample, sketches, words)
    return bool(_has_head(sample[:crowd_size], sketches, words, sample.size, radius, crowd_size))


@njit(cache=True, nogil=True)
def crowd_heads(  # noqa: PLR0917 - numba kernels take their arrays one by one
    rows: NDArray[np.uint32],
    docs: NDArray[np.uint64],
    bases: NDArray[np.uint64],
    sketches: NDArray[np.uint64],
    radius: int,
    crowd_size: int,
) -> NDArray[np.uint32]:
    """The heads of a bucket, ascending: each the first of a sample to cover nine tenths of what the best one would."""
    heads = np.empty(MAX_HEADS, rows.dtype)
    num_heads = 0
    if rows.size <= UNCUT_PER_CROWD * crowd_size:
        return heads[:0]
    sample = sample_of(rows, docs, bases, SAMPLE_PER_CROWD * crowd_size, crowd_size)
    is_near, covered = _near_candidates(sample, sketches, radius, crowd_size)
    while num_heads < MAX_HEADS and covered.max() >= crowd_size:
        head = np.argmax(10 * covered >= 9 * covered.max())
        heads[num_heads] = sample[head]
        num_heads += 1
        for j in np.flatnonzero(is_near[head]):
            is_near[:, j] = False
            if j < crowd_size:
                is_near[j] = False
        for candidate in range(crowd_size):
            covered[candidate] = is_near[candidate].sum()
    return np.sort(heads[:num_heads])


@njit(cache=True, nogil=True)
def sample_of(
    rows: NDArray[np.uint32], docs: NDArray[np.uint64], bases: NDArray[np.uint64], num_sampled: int, num_ordered: int
) -> NDArray[np.uint32]:
    """The `num_sampled` rows whose `docs`, of these `bases`, have the lowest ranks, the first `num_ordered` by rank.

    Ranks are uniform: few rows too many lie below a limit, and a rank tells almost where its row goes.
    """
    limit = _MAX_RANK
    if rows.size > 2 * num_sampled:
        limit = _MAX_RANK // np.uint64(rows.size) * np.uint64(num_sampled + num_sampled // 2)
    lowest, their_ranks = np.empty(rows.size, rows.dtype), np.empty(rows.size, np.uint64)
    num_lowest = _ZERO
    for i in range(np.uint64(rows.size)):
        row = np.uint64(rows[i])
        base = bases[row // np.uint64(DOCS_PER_BASE)]
        rank = mix64(docs[row] if base == _NO_BASE else base + row % np.uint64(DOCS_PER_BASE))
        lowest[num_lowest], their_ranks[num_lowest] = rows[i], rank
        num_lowest += np.uint64(rank <= limit)
    if num_lowest < np.uint64(min(num_sampled, rows.size)):
        return rows[np.argsort(doc_ranks(docs[rows]))[:num_sampled]]
    lowest, their_ranks = lowest[:num_lowest], their_ranks[:num_lowest]
    bins, scale = np.empty(num_lowest, np.uint64), np.float64(num_lowest) / (np.float64(limit) + 1.0)
    places = np.zeros(num_lowest + np.uint64(1), np.uint64)
    for i in range(num_lowest):
        bins[i] = min(np.uint64(np.float64(their_ranks[i]) * scale), num_lowest - np.uint64(1))
        places[bins[i] + np.uint64(1)] += np.uint64(1)
    for i in range(num_lowest):
        places[i + np.uint64(1)] += places[i]
    order = np.empty(num_lowest, np.uint64)
    for i in range(num_lowest):
        order[places[bins[i]]] = i
        places[bins[i]] += np.uint64(1)
    # Within a bin the order matters where the ordered ones end, and at the end of the sample.
    _order_bins(order, bins, their_ranks, 0, min(num_ordered, lowest.size))
    _order_bins(order, bins, their_ranks, min(num_sampled, lowest.size) - 1, min(num_sampled, lowest.size))
    return lowest[order[:num_sampled]]


@njit(cache=True, nogil=True)
def _order_bins(
    order: NDArray[np.uint64], bins: NDArray[np.uint64], ranks: NDArray[np.uint64], start: int, stop: int
) -> None:
    """Sorts all bins that `order[start:stop]`, ascending by bin, belongs to by rank."""
    while start > 0 and bins[order[start - 1]] == bins[order[start]]:
        start -= 1
    while stop < order.size and bins[order[stop]] == bins[order[stop - 1]]:
        stop += 1
    for i in range(start + 1, stop):
        moved, j = order[i], i
        while j > start and ranks[order[j - 1]] > ranks[moved]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = moved


@njit(cache=True, nogil=True)
def gather_words(rows: NDArray[np.uint32], sketches: NDArray[np.uint64], words: NDArray[np.uint64]) -> None:
    """Fills `words` `(words_per_sketch, n)`: a word of all rows lies together, for loops over many docs at once."""
    if len(words) != WORDS_PER_SKETCH:
        for i in range(np.uint64(rows.size)):
            for word in range(np.uint64(len(words))):
                words[word, i] = sketches[rows[i], word]
        return
    # Without an inner loop the processor waits for many rows at a time.
    first, second, third, fourth = words[0], words[1], words[2], words[3]
    for i in range(np.uint64(rows.size)):
        row = np.uint64(rows[i])
        first[i], second[i] = sketches[row, 0], sketches[row, 1]
        third[i], fourth[i] = sketches[row, 2], sketches[row, 3]


@njit(cache=True, nogil=True)
def _has_head(  # noqa: PLR0917 - numba kernels take their arrays one by one
    candidates: NDArray[np.uint32],
    sketches: NDArray[np.uint64],
    words: NDArray[np.uint64],
    num_docs: int,
    radius: int,
    crowd_size: int,
) -> bool:
    """Whether one of the candidates covers `crowd_size` of the docs whose sketches are the first of `words`."""
    limit = np.uint64(radius)
    for candidate in candidates:
        own = sketches[candidate]
        num_near = _ZERO
        # Positions are unsigned for the compiler, too.
        if len(words) == WORDS_PER_SKETCH:
            first, second, third, fourth = words[0], words[1], words[2], words[3]
            a, b, c, d = own[0], own[1], own[2], own[3]
            for j in range(np.uint64(num_docs)):
                distance = (
                    count_ones(a ^ first[j])
                    + count_ones(b ^ second[j])
                    + count_ones(c ^ third[j])
                    + count_ones(d ^ fourth[j])
                )
                num_near += np.uint64(distance <= limit)
        else:
            for j in range(np.uint64(num_docs)):
                distance = _ZERO
                for word in range(np.uint64(len(words))):
                    distance += count_ones(own[word] ^ words[word, j])
                num_near += np.uint64(distance <= limit)
        if num_near >= np.uint64(crowd_size):
            return True
    return False


@njit(cache=True, nogil=True)
def _near_candidates(
    sample: NDArray[np.uint32], sketches: NDArray[np.uint64], radius: int, num_candidates: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which of `sample` each of its first docs covers, `(num_candidates, sample)`, and how many that are."""
    num_sampled, limit = np.uint64(sample.size), np.uint64(radius)
    words = np.empty((sketches.shape[1], sample.size), np.uint64)
    gather_words(sample, sketches, words)
    is_near = np.empty((num_candidates, sample.size), np.bool_)
    covered = np.zeros(num_candidates, np.int64)
    distances = np.empty(sample.size, np.uint64)
    for i in range(np.uint64(num_candidates)):
        for j in range(num_sampled):
            distances[j] = np.uint64(0)
        for word in range(np.uint64(len(words))):
            of_candidate = words[word, i]
            for j in range(num_sampled):
                distances[j] += count_ones(of_candidate ^ words[word, j])
        num_near = np.uint64(0)
        for j in range(num_sampled):
            is_near[i, j] = distances[j] <= limit
            num_near += np.uint64(distances[j] <= limit)
        covered[i] = np.int64(num_near)
    return is_near, covered


@njit(cache=True, nogil=True)
def sketch_distance(sketches: NDArray[np.uint64], left: int, right: int) -> np.uint64:
    """How many bits the sketches of two rows differ in."""
    distance = np.uint64(0)
    for word in range(sketches.shape[1]):
        distance += count_ones(sketches[left, word] ^ sketches[right, word])
    return distance


@njit(cache=True, nogil=True)
def pair_with_heads(  # noqa: PLR0917 - numba kernels take their arrays one by one
    rows: NDArray[np.uint32],
    heads: NDArray[np.uint32],
    sketches: NDArray[np.uint64],
    max_distance: int,
    radius: int,
    first_new_row: int,
    keys: NDArray[np.uint64],
    is_covered: NDArray[np.bool_],
) -> int:
    """Fills `keys` with the pairs of `rows` and `heads` that have a new row, and says which rows the heads cover.

    A pair of two heads is filled in once.
    """
    num_keys = 0
    for i in range(rows.size):
        is_covered[i] = False
        for head in heads:
            distance = sketch_distance(sketches, rows[i], head)
            is_covered[i] |= distance <= np.uint64(radius)
            if rows[i] == head or (rows[i] > head and rows[i] in heads) or max(rows[i], head) < first_new_row:
                continue
            keys[num_keys] = (np.uint64(min(rows[i], head)) << _ROW_BITS) | np.uint64(max(rows[i], head))
            num_keys += distance <= np.uint64(max_distance)
    return num_keys
