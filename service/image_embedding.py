"""Image files to embeddings: decoded in processes of their own, embedded in batches across requests."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embed.decoding import ImageRejected
from embed.embedder import Embedder, load_embedder
from embed.embedder_dir import describe_embedder
from embed.views import ViewEmbedder, load_view_embedder
from service.batching import Batcher, BatchLimits
from service.decoding_pool import DecodingPool
from service.errors import SettingsError
from service.metrics import Metrics
from service.settings import ServeSettings

Squares = Sequence[NDArray[np.uint8]]


class EmbeddedImage(NamedTuple):
    """An image's `embedding` `(dim,)` float32, a unit row, and those of its `views` `(NUM_VIEWS, dim)` where made."""

    embedding: NDArray[np.float32]
    views: NDArray[np.float32] | None = None


class ImageEmbedding:
    """The decoders and the networks of one server. Make it with `load_image_embedding`."""

    def __init__(
        self, embedder: Embedder, view_embedder: ViewEmbedder | None, settings: ServeSettings, metrics: Metrics
    ) -> None:
        self._embedder = embedder
        self._view_embedder = view_embedder
        self._metrics = metrics
        self._decoders = DecodingPool(
            size=embedder.spec.size, limits=settings.decoding, with_views=view_embedder is not None
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")
        limits = settings.limits
        self._network: Batcher[Squares, EmbeddedImage] = Batcher(
            "the network",
            self._embed_batch,
            self._thread,
            BatchLimits(limits.embed_batch, limits.max_embed_wait_s, limits.max_embed_queue),
        )
        metrics.watch_queue("decode", self._decoders)
        metrics.watch_queue("embed", self._network)

    @property
    def makes_views(self) -> bool:
        return self._view_embedder is not None

    async def start(self) -> None:
        await self._decoders.start()

    async def embed(self, content: bytes) -> EmbeddedImage:
        """The embedding of an image file; raises ImageRejected, or Overloaded when too many wait."""
        try:
            with self._metrics.stage("decode"):
                squares = await self._decoders.decode(content)
        except ImageRejected as rejected:
            self._metrics.rejected_images.labels(rejected.reason.value).inc()
            raise
        with self._metrics.stage("embed"):
            return await self._network(squares)

    async def close(self) -> None:
        self._thread.shutdown(wait=True)
        await self._decoders.close()

    def _embed_batch(self, images: Sequence[Squares]) -> Sequence[EmbeddedImage | Exception]:
        whole, *views = (np.stack(squares) for squares in zip(*images, strict=True))
        rows = self._embedder.embed_few(whole)
        if self._view_embedder is None:
            return list(map(EmbeddedImage, rows))
        return list(map(EmbeddedImage, rows, self._view_embedder.embed(views)))


def load_image_embedding(settings: ServeSettings, metrics: Metrics, *, embedder_digest: str) -> ImageEmbedding:
    """Load the embedder of a server; raises SettingsError unless it is the one of the generation, EmbedderError."""
    assert settings.embedder is not None  # noqa: S101 - the caller serves images
    spec = describe_embedder(settings.embedder)
    if spec.digest != embedder_digest:
        raise SettingsError(
            f"embedder {spec.name} has the digest {spec.digest[:16]}, the generation was made with "
            f"{embedder_digest[:16]}; give the --embedder of the generation, or --embedding-only"
        )
    embedder = load_embedder(settings.embedder, dtype=settings.dtype, batch_size=settings.limits.embed_batch)
    # No upload is to wait while a shape is compiled.
    embedder.embed_few(np.zeros((2 * embedder.batch_size - 1, spec.size, spec.size, 3), np.uint8))
    if not settings.thorough:
        return ImageEmbedding(embedder, None, settings, metrics)
    # Batches are padded, and an upload that comes alone is not to take as long as eight.
    view_embedder = load_view_embedder(settings.embedder, dtype=settings.dtype, batch_size=1)
    view_embedder.embed([np.zeros((1, size, size, 3), np.uint8) for size in view_embedder.sizes])
    return ImageEmbedding(embedder, view_embedder, settings, metrics)
