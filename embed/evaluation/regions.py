"""The embedder with its regions under test: two images score as high as the best of wholes and regions.

The wholes are compared as always, and the regions of either image with the whole of the other, because either may be
the crop. Regions are not compared with regions: two photos that share a patch of sky are no near-duplicates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embed.decoding import decode_image
from embed.evaluation.scored_pairs import RowScorer
from embed.regions import REGION_MARGIN, RegionEmbedder

if TYPE_CHECKING:
    from embed.evaluation.descriptors import EmbedderDescriptor


@dataclass(frozen=True, slots=True)
class BestRegion:
    """The highest score of whole with whole and, less a margin, of any region of one image with the whole other one.

    A row is the embedding of the whole, then those of the regions, `dim` columns each.
    """

    scorer: RowScorer
    dim: int

    def matrix(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        """`(a, k * dim)` and `(b, k * dim)` -> `(a, b)` float32."""
        best = self.scorer.matrix(left[:, : self.dim], right[:, : self.dim])
        for one, other in self._compared(left, right):
            np.maximum(best, self.scorer.matrix(one, other) - np.float32(REGION_MARGIN), out=best)
        return best

    def pairs(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
        """`(m, k * dim)` and `(m, k * dim)` -> `(m,)` float32."""
        best = self.scorer.pairs(left[:, : self.dim], right[:, : self.dim])
        for one, other in self._compared(left, right):
            np.maximum(best, self.scorer.pairs(one, other) - np.float32(REGION_MARGIN), out=best)
        return best

    def _compared(
        self, left: NDArray[np.float32], right: NDArray[np.float32]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Each region with the whole it is compared with, `(a, dim)` of the left and `(b, dim)` of the right."""
        whole_left, *regions_left = self._embeddings(left)
        whole_right, *regions_right = self._embeddings(right)
        for region in regions_left:
            yield region, whole_right
        for region in regions_right:
            yield whole_left, region

    def _embeddings(self, rows: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return [rows[:, start : start + self.dim] for start in range(0, rows.shape[1], self.dim)]


@dataclass(frozen=True, slots=True)
class RegionDescriptor:
    """A network's descriptor whose rows hold the whole image and its regions."""

    descriptor: EmbedderDescriptor
    regions: RegionEmbedder

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.descriptor.name} + regions"

    @property
    def scorer(self) -> RowScorer:
        """The best of the wholes and the regions."""
        return BestRegion(self.descriptor.scorer, self.regions.spec.dim)

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """RGB pixels; a JPEG may be decoded at a reduced scale that still fills the largest square."""
        return decode_image(content, min_side=max(self._sizes))

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The squares of the networks one after the other, the whole image's first: `(num_bytes,)`."""
        squares = [self.descriptor.prepare(pixels), *self.regions.squares(pixels)]
        return np.concatenate([square.ravel() for square in squares])

    def rows(self, prepared: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`(n, num_bytes)` -> `(n, (1 + NUM_REGIONS) * dim)`, the whole image's embedding first."""
        ends = np.cumsum([size * size * 3 for size in self._sizes])
        whole, *zoomed = (
            squares.reshape(-1, size, size, 3)
            for squares, size in zip(np.split(prepared, ends[:-1], axis=1), self._sizes, strict=True)
        )
        regions = self.regions.embed(zoomed)
        return np.concatenate([self.descriptor.rows(whole), regions.reshape(len(prepared), -1)], axis=1)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (self.descriptor.size, *self.regions.sizes)
