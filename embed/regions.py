"""Regions: windows of an image that are embedded by themselves, so that a crop finds what it was cut from.

A crop shows a part of an image, larger. A region is the embedding of such a part as the network sees it in the crop:
the image is zoomed in, one pass makes the features of all of it, and each window of them is pooled like an image.
Windows of one zoom overlap, so a crop anywhere is close to one of them. A region is compared with whole images only.

Source: R-MAC, Tolias et al., arXiv 1511.05879, section 3.2, for windows that one pass serves.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from embed.embedder import inference_network, limit_threads, rows_of_images
from embed.embedder_dir import DEFAULT_EMBEDDER, EmbedderSpec, describe_embedder
from embed.preprocessing import to_square

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, slots=True, kw_only=True)
class Zoom:
    """`grid` x `grid` windows of `share` of each side, in an image that is `factor` times the network's own size."""

    factor: float
    share: float
    grid: int


ZOOMS: Final = (Zoom(factor=4 / 3, share=0.7, grid=2), Zoom(factor=2.0, share=0.53, grid=3))
"""Half and a good quarter of the area, each window about as large as a whole image is to the network."""
NUM_REGIONS: Final = sum(zoom.grid**2 for zoom in ZOOMS)
REGION_MARGIN: Final = 0.0075
"""What a region's cosine counts less than that of whole images, because a pair has so many chances of one that is high.

With it the threshold for whole images keeps its precision: 0.9941 on the photographs of the model card, where whole
images have 0.9938 and regions without a margin 0.9913."""


class RegionEmbedder:
    """The loaded networks, one a zoom. `embed` is for one thread at a time.

    Batches have about as many pixels as `batch_size` images of the network's own size.
    """

    def __init__(self, spec: EmbedderSpec, networks: Sequence[keras.Model], *, batch_size: int) -> None:
        self.spec = spec
        self._networks = networks
        self._batch_size = batch_size

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sides of an image's squares, one a zoom."""
        return region_sizes(self.spec)

    def squares(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """`(h, w, 3)` uint8 RGB as the squares that `embed` takes of an image."""
        return [to_square(pixels, size) for size in self.sizes]

    def embed(self, squares: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """The `(n, size, size, 3)` uint8 squares of each zoom -> `(n, NUM_REGIONS, dim)` float32 unit rows."""
        made = [
            rows_of_images(network, images, batch_size=max(1, round(self._batch_size / zoom.factor**2)))
            for zoom, network, images in zip(ZOOMS, self._networks, squares, strict=True)
        ]
        return np.concatenate(made, axis=1)


def region_sizes(spec: EmbedderSpec) -> tuple[int, ...]:
    """The sides of the squares that an embedder's regions are made of, in pixels."""
    return tuple(round(zoom.factor * spec.size) for zoom in ZOOMS)


def load_region_embedder(
    name_or_dir: str | os.PathLike[str] = DEFAULT_EMBEDDER,
    *,
    dtype: str = "float32",
    batch_size: int = 32,
    num_threads: int | None = None,
) -> RegionEmbedder:
    """The regions' side of an embedder, with the same weights; parameters and errors are those of `load_embedder`."""
    spec = describe_embedder(name_or_dir)
    if num_threads is not None:
        limit_threads(num_threads)
    from embed.architectures import regional  # noqa: PLC0415 - loads Keras

    networks = [
        inference_network(spec, dtype=dtype, size=size, rearrange=partial(regional, share=zoom.share, grid=zoom.grid))
        for zoom, size in zip(ZOOMS, region_sizes(spec), strict=True)
    ]
    return RegionEmbedder(spec, networks, batch_size=batch_size)
