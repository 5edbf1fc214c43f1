"""The embedder with its views under test: two images score as high as the best of wholes and views.

The wholes are compared as always, and the views of either image with the whole of the other, because either may be
the copy; a view counts more for exceeding the wholes. Views are not compared with views: two photos that share a patch
of sky are no near-duplicates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embed.decoding import decode_image
from embed.evaluation.scored_pairs import RowScorer
from embed.pair_scoring import PairScorer
from embed.views import VIEW_MARGINS, ViewEmbedder, lifted

if TYPE_CHECKING:
    from embed.evaluation.descriptors import EmbedderDescriptor


@dataclass(frozen=True, slots=True)
class BestView:
    """The score of two wholes, as similar as they are or, if that is more, as the best view of one counts.

    A row is the embedding of the whole, then those of the views, `dim` columns each.
    """

    scorer: PairScorer
    dim: int
    margins: tuple[float, ...] = VIEW_MARGINS

    def matrix(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        """`(a, k * dim)` and `(b, k * dim)` -> `(a, b)` float32."""
        whole_left, whole_right = left[:, : self.dim], right[:, : self.dim]
        wholes = whole_left @ whole_right.T
        best = wholes.copy()
        for one, other, margin in self._compared(left, right):
            np.maximum(best, one @ other.T - margin, out=best)
        return self.scorer.matrix_of(lifted(best, wholes), whole_left, whole_right)

    def pairs(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        """`(m, k * dim)` and `(m, k * dim)` -> `(m,)` float32."""
        whole_left, whole_right = left[:, : self.dim], right[:, : self.dim]
        wholes = np.einsum("nd,nd->n", whole_left, whole_right)
        best = wholes.copy()
        for one, other, margin in self._compared(left, right):
            np.maximum(best, np.einsum("nd,nd->n", one, other) - margin, out=best)
        return self.scorer.pairs_of(lifted(best, wholes), whole_left, whole_right)

    def _compared(
        self, left: NDArray[np.float32], right: NDArray[np.float32]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32], np.float32]]:
        """Each view with the whole it is compared with, `(a, dim)` of the left, `(b, dim)` of the right; its margin."""
        whole_left, *views_left = self._embeddings(left)
        whole_right, *views_right = self._embeddings(right)
        margins = np.array(self.margins, np.float32)
        for view, margin in zip(views_left, margins, strict=True):
            yield view, whole_right, margin
        for view, margin in zip(views_right, margins, strict=True):
            yield whole_left, view, margin

    def _embeddings(self, rows: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return [rows[:, start : start + self.dim] for start in range(0, rows.shape[1], self.dim)]


@dataclass(frozen=True, slots=True)
class ViewDescriptor:
    """A network's descriptor whose rows hold the whole image and its views."""

    descriptor: EmbedderDescriptor
    views: ViewEmbedder

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.descriptor.name} + views"

    @property
    def scorer(self) -> RowScorer:
        """The best of the wholes and the views."""
        return BestView(self.descriptor.scorer, self.views.spec.dim)

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """RGB pixels; a JPEG may be decoded at a reduced scale that still fills the largest square."""
        return decode_image(content, min_side=max(self._sizes))

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The squares of the networks one after the other, the whole image's first: `(num_bytes,)`."""
        squares = [self.descriptor.prepare(pixels), *self.views.squares(pixels)]
        return np.concatenate([square.ravel() for square in squares])

    def rows(self, prepared: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`(n, num_bytes)` -> `(n, (1 + NUM_VIEWS) * dim)`, the whole image's embedding first."""
        ends = np.cumsum([size * size * 3 for size in self._sizes])
        whole, *of_views = (
            squares.reshape(-1, size, size, 3)
            for squares, size in zip(np.split(prepared, ends[:-1], axis=1), self._sizes, strict=True)
        )
        views = self.views.embed(of_views)
        return np.concatenate([self.descriptor.rows(whole), views.reshape(len(prepared), -1)], axis=1)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (self.descriptor.size, *self.views.sizes)
