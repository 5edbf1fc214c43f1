"""How right clusters are, not only pairs: planted edits through the clustering that the pipeline uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embed.evaluation.planted import Described
from embed.evaluation.scored_pairs import RowScorer
from lsh.clusters import greedy_cut

MAX_PHOTOS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterShares:
    """Shares with 95 % intervals: of clusters without a stranger, and of their images that belong to their canonical.

    A stranger is an edit of another photo than the canonical is.
    """

    num_clusters: int
    clean_share: float
    clean_interval: tuple[float, float]
    member_share: float
    member_interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusterPrecision:
    """Photos and their edits, ready to be clustered at a threshold; up to `MAX_PHOTOS` of them, all distractors."""

    described: Described
    scorer: RowScorer
    same: Sequence[tuple[int, int]]

    def at(self, threshold: float) -> ClusterShares:
        """Cluster at a raw score and compare with the truth."""
        num_photos, num_edits = self.described.edited.shape[:2]
        used = min(num_photos, MAX_PHOTOS)
        corpus = np.concatenate([self.described.corpus[:used], self.described.corpus[num_photos:]])
        edits = self.described.edited[:used].reshape(used * num_edits, -1)
        rows = np.concatenate([corpus, edits])
        truth = np.concatenate(
            [_pictures(len(corpus), num_photos, used, self.same), np.repeat(np.arange(used), num_edits)]
        )
        truth[len(corpus) :] = truth[truth[len(corpus) :]]
        lefts, rights, scores = self._matches(rows, threshold)
        canonical = greedy_cut(len(rows), lefts, rights, scores, np.arange(len(rows))).canonical
        sizes = np.bincount(canonical, minlength=len(rows))
        members = np.flatnonzero((sizes[canonical] > 1) & (canonical != np.arange(len(rows))))
        is_right = truth[members] == truth[canonical[members]]
        clusters = np.unique(canonical[members])
        num_clean = len(clusters) - len(np.unique(canonical[members[~is_right]]))
        return ClusterShares(
            num_clusters=len(clusters),
            clean_share=num_clean / max(len(clusters), 1),
            clean_interval=wilson_interval(num_clean, len(clusters)),
            member_share=float(is_right.mean()) if len(members) else 1.0,
            member_interval=wilson_interval(int(is_right.sum()), len(members)),
        )

    def _matches(
        self, rows: NDArray[np.float32], threshold: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
        for start in range(0, len(rows), 1024):
            block = self.scorer.matrix(rows[start : start + 1024], rows)
            left, right = np.nonzero(block >= threshold)
            upper = left + start < right
            left, right = left[upper], right[upper]
            found.append((left + start, right, block[left, right]))
        lefts, rights, scores = (np.concatenate(part) for part in zip(*found, strict=True))
        return lefts, rights, scores


def _pictures(num_corpus: int, num_photos: int, used: int, same: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """A number for each picture of the corpus; files of one picture share the smallest of theirs."""
    numbers = np.arange(num_corpus)
    for left, right in same:
        places = [place if place < used else place - num_photos + used for place in (left, right)]
        if all(place < used or place >= num_photos for place in (left, right)):
            numbers[numbers == numbers[max(places)]] = numbers[min(places)]
    return numbers


def wilson_interval(num_right: int, num: int) -> tuple[float, float]:
    """The 95 % score interval of a share; Wilson, JASA 1927.

    >>> [round(bound, 3) for bound in wilson_interval(95, 100)]
    [0.888, 0.978]
    """
    if not num:
        return (0.0, 1.0)
    z, share = 1.959964, num_right / num
    middle = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    return (max(0.0, middle - half), min(1.0, middle + half))
