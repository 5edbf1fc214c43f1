"""Scored pairs of images: the true ones, the highest false ones, and the worst of both to look at. Pure numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from embed.errors import EvaluationError

ROWS_PER_BLOCK: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """A pair to look at: two positions in the list of images, what was done to the left one, and the score."""

    kind: str
    left: int
    right: int
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPairs:
    """The scores of all true pairs and of the highest false ones, at least as many false as true where there are.

    `true_kind` is a position in `kinds`; pairs with equal `true_photo` or `false_photo` are resampled together.
    `worst_misses` are the true pairs that score lowest, `worst_false` the false ones that score highest.
    """

    kinds: tuple[str, ...]
    true_scores: NDArray[np.float32]
    true_kind: NDArray[np.int64]
    true_photo: NDArray[np.int64]
    false_scores: NDArray[np.float32]
    false_photo: NDArray[np.int64]
    worst_misses: tuple[JudgedPair, ...] = ()
    worst_false: tuple[JudgedPair, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.true_scores):
            raise EvaluationError("there is no true pair to find; recall needs at least one")
        for name in ("true_scores", "false_scores"):
            if not np.isfinite(getattr(self, name)).all():
                raise EvaluationError(f"{name} holds values that are no numbers; the descriptor is damaged")


class RowScorer(Protocol):
    """Scores pairs of rows; higher is more similar. The two methods agree."""

    def matrix(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        """All pairs: `(a, d)` and `(b, d)` -> `(a, b)` float32."""

    def pairs(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        """Row by row: `(m, d)` and `(m, d)` -> `(m,)` float32."""


class DotProduct:
    """The score of unit rows without any network behind."""

    def matrix(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        """The cosines."""
        return left @ right.T

    def pairs(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        """The cosines."""
        cosines: NDArray[np.float32] = np.einsum("nd,nd->n", left, right)
        return cosines


@dataclass(frozen=True, slots=True, kw_only=True)
class FalsePairs:
    """`(m,)` arrays, the highest score first."""

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]
    others: NDArray[np.int64]


def highest_false_pairs(
    rows: NDArray[np.float32],
    corpus: NDArray[np.float32],
    *,
    scorer: RowScorer,
    hide: Callable[[NDArray[np.float32], int], None],
    num_kept: int,
) -> FalsePairs:
    """The `num_kept` highest scores between `rows` `(n, d)` and `corpus` `(m, d)`, in blocks of rows.

    `hide(scores, first_row)` sets what is no false pair in a block of scores to minus infinity.
    """
    kept = FalsePairs(scores=np.empty(0, np.float32), rows=np.empty(0, np.int64), others=np.empty(0, np.int64))
    for start in range(0, len(rows), ROWS_PER_BLOCK):
        block = scorer.matrix(rows[start : start + ROWS_PER_BLOCK], corpus)
        hide(block, start)
        flat = block.ravel()
        top = highest(flat, num_kept)
        top = top[flat[top] > -np.inf]
        scores = np.concatenate([kept.scores, flat[top]])
        best = highest(scores, num_kept)
        kept = FalsePairs(
            scores=scores[best],
            rows=np.concatenate([kept.rows, start + top // len(corpus)])[best],
            others=np.concatenate([kept.others, top % len(corpus)])[best],
        )
    return kept


def highest(scores: NDArray[np.float32], num: int) -> NDArray[np.int64]:
    """Positions of the `num` highest of `scores` `(n,)`, highest first, ties in order."""
    num = min(num, len(scores))
    if not num:
        return np.empty(0, np.int64)
    top = np.sort(np.argpartition(scores, len(scores) - num)[len(scores) - num :])
    return top[np.argsort(-scores[top], kind="stable")]
