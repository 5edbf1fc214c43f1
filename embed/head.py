"""The head of an embedder: what its convolutions see, pooled, projected and joined with the layout, in numpy.

It is the same whatever computed the features, Keras in float32 or bfloat16 or LiteRT in int8, and a few hundredths of
their work.

Sources: GeM pooling, Radenovic et al., arXiv 1711.02512, eq. 3; the linear projection and normalisation follow SSCD,
Pizzi et al., arXiv 2202.10261, section 4; windows of one pass, R-MAC, Tolias et al., arXiv 1511.05879, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embed.layout import layout, with_layout
from embed.whitening import Whitening
from embed.zoom import Zoom

CUBE: Final = 3.0
Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """`x @ kernel + bias`: `kernel` is `(features, dim)`, `bias` `(dim,)`, both float32."""

    kernel: Rows
    bias: Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Everything behind the convolutions. Features are `(n, h, w, c)` float32, pictures `(n, side, side, 3)` uint8."""

    gem_p: float
    linear: Linear | None
    whitening: Whitening | None
    layout_weight: float

    def rows(self, features: Rows, pictures: NDArray[np.uint8]) -> Rows:
        """The embeddings of whole pictures, `(n, dim)` unit rows."""
        return self._joined(self._pooled(self._raised(features)), pictures, blank=1.0)

    def window_rows(self, features: Rows, pictures: NDArray[np.uint8], zoom: Zoom) -> Rows:
        """The embeddings of the windows of a zoom, `(n, grid**2, dim)` unit rows."""
        of_features, of_pictures = zoom.windows(self._raised(features)), zoom.windows(pictures)
        rows = [
            self._joined(self._pooled(raised), window, blank=-1.0)
            for raised, window in zip(of_features, of_pictures, strict=True)
        ]
        return np.stack(rows, axis=1)

    def _raised(self, features: Rows) -> Rows:
        seen: Rows = np.maximum(features, np.float32(1e-6))
        # numpy's power takes eight times as long, where it may not use AVX-512.
        return seen * seen * seen if self.gem_p == CUBE else np.power(seen, np.float32(self.gem_p))

    def _pooled(self, raised: Rows) -> Rows:
        pooled: Rows = np.power(raised.mean(axis=(1, 2)), np.float32(1 / self.gem_p))
        return pooled

    def _joined(self, rows: Rows, pictures: NDArray[np.uint8], *, blank: float) -> Rows:
        if self.linear is not None:
            rows = rows @ self.linear.kernel + self.linear.bias
        rows = unit(rows)
        if self.whitening is not None:
            rows = unit(np.matmul(rows - self.whitening.mean, self.whitening.projection))
        if self.layout_weight:
            rows = with_layout(rows, layout(pictures, dim=rows.shape[1], blank=blank), weight=self.layout_weight)
        return rows


def unit(rows: Rows) -> Rows:
    """`(..., c)` rows at unit length; those of zeros stay zeros."""
    lengths = np.sqrt(np.square(rows).sum(axis=-1, keepdims=True))
    scaled: Rows = rows / np.maximum(lengths, np.float32(1e-12))
    return scaled
