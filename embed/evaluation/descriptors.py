"""The descriptors that are compared: our embedder and two perceptual hashes, behind one small interface.

Every descriptor becomes `(n, d)` float32 rows and a way to score two of them. A 256-bit hash becomes +-1/16, so
its dot product is exactly `1 - hamming / 128`.

Peers: PDQ, ThreatExchange (https://github.com/facebook/ThreatExchange/tree/main/pdq) through `pdqhash`;
pHash through `imagehash`, 16 x 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import imagehash
import numpy as np
import pdqhash
from numpy.typing import NDArray
from PIL import Image

from embed.decoding import decode_image
from embed.embedder import load_embedder
from embed.evaluation.scored_pairs import DotProduct, RowScorer
from embed.evaluation.views import ViewDescriptor
from embed.pair_scoring import PairScorer, load_pair_scorer
from embed.preprocessing import to_square
from embed.views import load_view_embedder


class Descriptor(Protocol):
    """A descriptor under test."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    @property
    def scorer(self) -> RowScorer:
        """What makes a score of two rows."""

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """An encoded file to `(h, w, 3)` uint8 RGB, as far as this descriptor needs it."""

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """The work of one image; runs in a pool of threads."""

    def rows(self, prepared: NDArray[Any]) -> NDArray[np.float32]:
        """`(n, ...)` prepared images to `(n, d)` float32 rows."""


class SupportsEmbed(Protocol):
    """What a descriptor needs of an embedder: `(n, size, size, 3)` uint8 -> `(n, dim)` float32 unit rows."""

    def embed(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """One row for each image, in order."""


@dataclass(frozen=True, slots=True)
class EmbedderDescriptor:
    """A network of ours."""

    name: str
    embedder: SupportsEmbed
    size: int
    scorer: PairScorer = PairScorer()  # noqa: RUF009 - it is frozen

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """RGB pixels; a JPEG may be decoded at a reduced scale."""
        return decode_image(content, min_side=self.size)

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The network's square."""
        return to_square(pixels, self.size)

    def rows(self, prepared: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One embedding for each square."""
        return self.embedder.embed(prepared)


@dataclass(frozen=True, slots=True)
class HashDescriptor:
    """A 256-bit perceptual hash; `bits_of` gives the 256 bits of one `(h, w, 3)` uint8 image."""

    name: str
    bits_of: Callable[[NDArray[np.uint8]], NDArray[Any]]
    scorer: RowScorer = DotProduct()  # noqa: RUF009 - it has no state

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """RGB pixels at full size."""
        return decode_image(content)

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The hash as `(256,)` float32 of +-1/16."""
        bits = self.bits_of(pixels).astype(bool).ravel()
        return np.where(bits, np.float32(1 / 16), np.float32(-1 / 16))

    def rows(self, prepared: NDArray[np.float32]) -> NDArray[np.float32]:
        """Nothing is left to do."""
        return prepared


def _pdq_bits(pixels: NDArray[np.uint8]) -> NDArray[Any]:
    bits, _quality = pdqhash.compute(np.ascontiguousarray(pixels))
    return np.asarray(bits)


def _phash_bits(pixels: NDArray[np.uint8]) -> NDArray[Any]:
    return np.asarray(imagehash.phash(Image.fromarray(pixels), hash_size=16).hash)


def load_descriptors(
    names: Sequence[str], *, embedder: str, dtype: str | None = None, thorough: bool = False
) -> list[Descriptor]:
    """The descriptors by name, ours first; `embedder` and `dtype` are what `load_embedder` takes.

    With `thorough` the embedder has its views.
    """
    descriptors: list[Descriptor] = []
    for name in names:
        if name == "pdq":
            descriptors.append(HashDescriptor("PDQ", _pdq_bits))
        elif name == "phash":
            descriptors.append(HashDescriptor("pHash 256", _phash_bits))
        else:
            ours = load_embedder(embedder, dtype=dtype)
            scorer = load_pair_scorer(ours.spec)
            if name == "embedder" and scorer.classifier is not None:
                whole = EmbedderDescriptor(f"{ours.spec.architecture} + classifier", ours, ours.spec.size, scorer)
            else:
                whole = EmbedderDescriptor(ours.spec.architecture, ours, ours.spec.size)
            descriptors.append(ViewDescriptor(whole, load_view_embedder(embedder, dtype=dtype)) if thorough else whole)
    return descriptors
