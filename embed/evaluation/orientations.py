"""Queries in several orientations: the best score over quarter turns and mirror images of the query.

The alternative to a descriptor that does not mind being turned. It costs as many embeddings and lookups a query as it
has orientations, and lets as many more look-alikes through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.evaluation.descriptors import Descriptor
from embed.evaluation.scored_pairs import RowScorer

ORIENTATIONS = (1, 4, 8)


def oriented(square: NDArray[Any], num_orientations: int) -> NDArray[Any]:
    """The quarter turns of a `(size, size, ...)` square, then those of its mirror image: `(num, size, size, ...)`."""
    turned = [np.rot90(square, turns) for turns in range(min(num_orientations, 4))]
    if num_orientations == 8:
        turned += [np.rot90(square[:, ::-1], turns) for turns in range(4)]
    return np.stack(turned)


@dataclass(frozen=True, slots=True)
class BestOrientation:
    """The highest score of any orientation of the left image with the upright right one."""

    scorer: RowScorer
    dim: int

    def matrix(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        """`(a, k * dim)` and `(b, k * dim)` -> `(a, b)` float32."""
        upright = right[:, : self.dim]
        best: NDArray[np.float32] = np.max([self.scorer.matrix(rows, upright) for rows in self._turns(left)], axis=0)
        return best

    def pairs(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        """`(m, k * dim)` and `(m, k * dim)` -> `(m,)` float32."""
        upright = right[:, : self.dim]
        best: NDArray[np.float32] = np.max([self.scorer.pairs(rows, upright) for rows in self._turns(left)], axis=0)
        return best

    def _turns(self, rows: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return [rows[:, start : start + self.dim] for start in range(0, rows.shape[1], self.dim)]


@dataclass(frozen=True, slots=True)
class OrientedDescriptor:
    """A network's descriptor whose rows hold every orientation, upright first."""

    descriptor: Descriptor
    num_orientations: int
    dim: int

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.descriptor.name}, {self.num_orientations} orientations"

    @property
    def scorer(self) -> RowScorer:
        """The best of all orientations of the query."""
        return BestOrientation(self.descriptor.scorer, self.dim)

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """As the descriptor does."""
        return self.descriptor.decode(content)

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """The network's squares, `(k, size, size, 3)`."""
        return oriented(self.descriptor.prepare(pixels), self.num_orientations)

    def rows(self, prepared: NDArray[Any]) -> NDArray[np.float32]:
        """`(n, k, size, size, 3)` -> `(n, k * dim)`."""
        rows = self.descriptor.rows(prepared.reshape(-1, *prepared.shape[2:]))
        return rows.reshape(len(prepared), -1)
