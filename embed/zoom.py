"""A zoom: windows of an enlarged image, which one pass of the network serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Zoom:
    """`grid` x `grid` windows of `share` of each side, in an image that is `factor` times the network's own size."""

    factor: float
    share: float
    grid: int

    def size(self, size: int) -> int:
        """The side of the squares to look at, for a network that takes `size`."""
        return round(self.factor * size)

    def windows(self, squares: NDArray[Any]) -> list[NDArray[Any]]:
        """`(n, side, side, c)` -> the windows, each `(n, window, window, c)`, row by row.

        A window is at least 1 wide; the outer ones end at the borders.
        """
        side = squares.shape[1]
        window = max(1, round(self.share * side))
        starts = [(side - window) * place // max(1, self.grid - 1) for place in range(self.grid)]
        return [squares[:, top : top + window, left : left + window] for top in starts for left in starts]
