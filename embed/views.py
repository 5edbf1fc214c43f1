"""Views: other embeddings of an image, each of what a copy of it may show or hold: a part, the image in gray or turned.

A view is compared with whole images only. Windows: a crop shows a part of an image, larger. The image is zoomed in, one
pass makes the features of all of it, and each window of them is pooled like an image; windows of one zoom overlap, so a
crop anywhere is close to one of them. Versions, each with a pass of its own: the image in gray, turned, without what
may be a caption, and without the frame and the wall around it. Either image of a pair may be seen so, which is why one
turn serves both directions.

Source: R-MAC, Tolias et al., arXiv 1511.05879, section 3.2, for windows that one pass serves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embed.embedder import Network, load_network
from embed.embedder_dir import DEFAULT_EMBEDDER, EmbedderSpec, describe_embedder
from embed.preprocessing import squeezed, to_square
from embed.zoom import Zoom

TURN_DEGREES: Final = 8
"""Copies turned by 10 degrees are found as well with versions turned by 6, 8 or 10; no other turns were measured."""
UPPER_SHARE: Final = 0.85
"""Of an image's height: what most captions leave."""
INNER_SHARE: Final = 0.68
"""Of each side: what is left of most photos of photos whose frame is not found without its surroundings."""


class Picture(NamedTuple):
    """What versions are made of: `(h, w, 3)` uint8 RGB, the same for Pillow, and squeezed to the network's square."""

    pixels: NDArray[np.uint8]
    image: Image.Image
    square: Image.Image

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], size: int) -> Picture:
        """With squares of `size`."""
        image = Image.fromarray(pixels)
        return cls(pixels, image, squeezed(image, size))


def gray(picture: Picture) -> NDArray[np.uint8]:
    """The square without colors, by ITU-R BT.601's luma."""
    return np.asarray(picture.square.convert("L").convert("RGB"))


def turned(picture: Picture) -> NDArray[np.uint8]:
    """The square turned by `TURN_DEGREES` about its center, with black corners."""
    return np.asarray(picture.square.rotate(TURN_DEGREES, Image.Resampling.BILINEAR))


def upper(picture: Picture) -> NDArray[np.uint8]:
    """The square of the upper `UPPER_SHARE`."""
    width, height = picture.image.size
    part = picture.image.crop((0, 0, width, max(1, round(UPPER_SHARE * height))))
    return np.asarray(squeezed(part, picture.square.width))


def unframed(picture: Picture) -> NDArray[np.uint8]:
    """The square of the picture that the image shows, without glare; where none is seen, of the middle."""
    from embed.framed import framed_picture, without_glare  # noqa: PLC0415 - who only counts views needs no OpenCV

    shown = framed_picture(picture.pixels)
    if shown is not None:
        return without_glare(to_square(shown, picture.square.width))
    left, top = (int(side * (1 - INNER_SHARE) / 2) for side in picture.image.size)
    middle = picture.image.crop((left, top, picture.image.width - left, picture.image.height - top))
    return np.asarray(squeezed(middle, picture.square.width))


ZOOMS: Final = {Zoom(factor=4 / 3, share=0.7, grid=2): 0.03, Zoom(factor=2.0, share=0.53, grid=3): 0.0175}
"""Windows of half and of a good quarter of the area, each about as large as a whole image to the network; margins."""
VERSIONS: Final[dict[Callable[[Picture], NDArray[np.uint8]], float]] = {
    gray: 0.035,
    turned: 0.035,
    upper: 0.03,
    unframed: 0.0225,
}
"""From a picture to a square as the network takes it, and the margin of that view."""
VIEW_MARGINS: Final = (*(margin for zoom, margin in ZOOMS.items() for _ in range(zoom.grid**2)), *VERSIONS.values())
"""What each view's cosine counts less than that of whole images, because a pair has so many chances of a high one.

With them matches from 0.8157 on have a precision of 0.990 on the photographs of the model card, from 0.8220 on 0.995;
the threshold for whole images is 0.8179."""
NUM_VIEWS: Final = len(VIEW_MARGINS)
LIFT: Final = 0.2
MAX_LIFT: Final = 0.03
"""Of what a view, less its margin, exceeds the cosine of the wholes the share that it counts more; and the most.

Strangers that a view brings together are mostly alike as wholes, too: two photographs of one scene. Copies that only a
view finds are not, for what was added or cut off is all that their wholes differ by."""


def lifted(by_view: NDArray[np.float32], wholes: NDArray[np.float32]) -> NDArray[np.float32]:
    """What views count, their margins taken off, in pairs whose wholes have these cosines; float32 of any shape.

    >>> lifted(np.array([0.75, 0.75, 0.75], np.float32), np.array([0.875, 0.625, 0.125], np.float32)).tolist()
    [0.75, 0.7749999761581421, 0.7799999713897705]
    """
    lifts = np.float32(LIFT) * (by_view - wholes)
    counted: NDArray[np.float32] = by_view + np.clip(lifts, np.float32(0.0), np.float32(MAX_LIFT))
    return counted


def view_similarity() -> dict[str, Any]:
    """What decides how similar a view makes a pair, as a run and an index keep it."""
    return {"margins": VIEW_MARGINS, "lift": LIFT, "max_lift": MAX_LIFT}


class ViewEmbedder:
    """The loaded networks: one a zoom, and that of whole images. `embed` is for one thread at a time.

    Batches have about as many pixels as `batch_size` images of the network's own size.
    """

    def __init__(self, spec: EmbedderSpec, networks: Sequence[Network], *, batch_size: int) -> None:
        self.spec = spec
        self._networks = networks
        self._batch_size = batch_size

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sides of the squares that `squares` makes of an image."""
        return view_sizes(self.spec.size)

    def squares(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """`(h, w, 3)` uint8 RGB as the squares that `embed` takes of an image."""
        return view_squares(pixels, self.spec.size)

    def embed(self, squares: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """The `(n, size, size, 3)` uint8 squares of each of `sizes` -> `(n, NUM_VIEWS, dim)` float32 unit rows."""
        made = []
        for network, images, size in zip(self._networks, squares, self.sizes, strict=True):
            batch_size = max(1, round(self._batch_size * (self.spec.size / size) ** 2))
            rows = network.rows(images, batch_size=batch_size)
            made.append(rows.reshape(len(images), -1, self.spec.dim))
        return np.concatenate(made, axis=1)


def view_sizes(size: int) -> tuple[int, ...]:
    """The sides of the squares that views are made of, in pixels, for a network that takes `size`."""
    return (*(zoom.size(size) for zoom in ZOOMS), *(size for _ in VERSIONS))


def view_squares(pixels: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    """`(h, w, 3)` uint8 RGB as the squares of `view_sizes`: one a zoom, one a version."""
    picture = Picture.of(pixels, size)
    zoomed = [np.asarray(squeezed(picture.image, zoom.size(size))) for zoom in ZOOMS]
    return [*zoomed, *(version(picture) for version in VERSIONS)]


def load_view_embedder(
    name_or_dir: str | os.PathLike[str] = DEFAULT_EMBEDDER,
    *,
    dtype: str | None = None,
    batch_size: int = 32,
    num_threads: int | None = None,
) -> ViewEmbedder:
    """The views' side of an embedder, with the same weights; parameters and errors are those of `load_embedder`."""
    spec = describe_embedder(name_or_dir)
    zoomed = [load_network(spec, dtype=dtype, zoom=zoom, num_threads=num_threads) for zoom in ZOOMS]
    whole = load_network(spec, dtype=dtype, num_threads=num_threads)
    return ViewEmbedder(spec, [*zoomed, *(whole for _ in VERSIONS)], batch_size=batch_size)


def describe_views() -> list[str]:
    """What decides an image's views beside its embedder."""
    parameters = {"turned by": TURN_DEGREES, "upper": UPPER_SHARE, "middle": INNER_SHARE}
    return [*map(repr, ZOOMS), *(version.__name__ for version in VERSIONS), repr(parameters)]
