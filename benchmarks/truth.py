"""Known groups of images, and how well a clustering reproduces them, counted in pairs.

A pair of images in one cluster is found; a pair with one original is true. Source of the measure: pairwise precision
and recall, Menestrina et al., "Evaluating Entity Resolution Results", VLDB 2010, section 2.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Truth:
    """`original_of` maps every image, originals included, to the original that it was made from.

    Images of two originals that are `unjudged`, a pair of them in their order, count neither as true nor as false.
    """

    original_of: Mapping[str, str]
    unjudged: frozenset[tuple[str, str]] = frozenset()

    def write_csv(self, path: Path) -> None:
        """Columns `image,original`, in the order of the images."""
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["image", "original"])
            rows.writerows(sorted(self.original_of.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairMetrics:
    """Counts of pairs, and the two ratios of them."""

    num_true_pairs: int
    num_found_pairs: int
    num_correct_pairs: int

    @property
    def precision(self) -> float:
        """The share of the found pairs that is true; 1.0 when nothing was found."""
        return self.num_correct_pairs / self.num_found_pairs if self.num_found_pairs else 1.0

    @property
    def recall(self) -> float:
        """The share of the true pairs that was found; 1.0 when there is none."""
        return self.num_correct_pairs / self.num_true_pairs if self.num_true_pairs else 1.0


def score_clusters(clusters: Iterable[Collection[str]], truth: Truth) -> PairMetrics:
    """Pair counts of `clusters` (images that are in none stand alone) against `truth`.

    Raises ValueError for an image that the truth does not know or that is in two clusters.

    >>> truth = Truth({"cat": "cat", "cat-small": "cat", "cat-gray": "cat", "dog": "dog"})
    >>> metrics = score_clusters([["cat", "cat-small", "dog"]], truth)
    >>> (metrics.num_true_pairs, metrics.num_found_pairs, metrics.num_correct_pairs)
    (3, 3, 1)
    """
    num_found = num_correct = 0
    seen: set[str] = set()
    for cluster in clusters:
        for image in cluster:
            if image not in truth.original_of:
                raise ValueError(f"{image} is in a cluster but not in the truth of {len(truth.original_of)} images")
            if image in seen:
                raise ValueError(f"{image} is listed twice; an image belongs to one cluster at most")
            seen.add(image)
        of_original = Counter(truth.original_of[image] for image in cluster)
        num_unjudged = sum(
            of_original[left] * of_original[right]
            for left, right in combinations(sorted(of_original), 2)
            if (left, right) in truth.unjudged
        )
        num_found += _num_pairs(len(cluster)) - num_unjudged
        num_correct += sum(map(_num_pairs, of_original.values()))
    return PairMetrics(
        num_true_pairs=_num_pairs_within(truth.original_of.values()),
        num_found_pairs=num_found,
        num_correct_pairs=num_correct,
    )


def wrong_pairs(clusters: Iterable[Collection[str]], truth: Truth) -> Iterator[tuple[str, str]]:
    """The found pairs that are false, to be looked at."""
    for cluster in clusters:
        for left, right in combinations(cluster, 2):
            first, second = sorted((truth.original_of[left], truth.original_of[right]))
            if first != second and (first, second) not in truth.unjudged:
                yield left, right


def read_clusters(path: Path) -> list[list[str]]:
    """The clusters of a `clusters.csv`, each a list of file names."""
    clusters: dict[str, list[str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            clusters.setdefault(row["canonical_id"], []).append(Path(row["image_id"]).name)
    return list(clusters.values())


def _num_pairs(count: int) -> int:
    return count * (count - 1) // 2


def _num_pairs_within(labels: Iterable[str]) -> int:
    return sum(_num_pairs(count) for count in Counter(labels).values())
