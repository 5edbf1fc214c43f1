"""Image files to embeddings: decoded in processes of their own, embedded in batches across requests."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from embed.decoding import ImageRejected
from embed.embedder import Embedder, load_embedder
from embed.embedder_dir import describe_embedder
from service.batching import Batcher, BatchLimits
from service.decoding_pool import DecodingPool
from service.errors import SettingsError
from service.metrics import Metrics
from service.settings import ServeSettings


class ImageEmbedding:
    """The decoders and the network of one server. Make it with `load_image_embedding`."""

    def __init__(self, embedder: Embedder, settings: ServeSettings, metrics: Metrics) -> None:
        self._embedder = embedder
        self._metrics = metrics
        self._decoders = DecodingPool(size=embedder.spec.size, limits=settings.decoding)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")
        limits = settings.limits
        self._network: Batcher[NDArray[np.uint8], NDArray[np.float32]] = Batcher(
            "the network",
            self._embed_batch,
            self._thread,
            BatchLimits(limits.embed_batch, limits.max_embed_wait_s, limits.max_embed_queue),
        )
        metrics.watch_queue("decode", self._decoders)
        metrics.watch_queue("embed", self._network)

    async def start(self) -> None:
        await self._decoders.start()

    async def embed(self, content: bytes) -> NDArray[np.float32]:
        """The `(dim,)` float32 unit row of an image file; raises ImageRejected, or Overloaded when too many wait."""
        try:
            with self._metrics.stage("decode"):
                square = await self._decoders.decode(content)
        except ImageRejected as rejected:
            self._metrics.rejected_images.labels(rejected.reason.value).inc()
            raise
        with self._metrics.stage("embed"):
            return await self._network(square)

    async def close(self) -> None:
        self._thread.shutdown(wait=True)
        await self._decoders.close()

    def _embed_batch(self, squares: Sequence[NDArray[np.uint8]]) -> Sequence[NDArray[np.float32] | Exception]:
        return list(self._embedder.embed(np.stack(squares)))


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
    return ImageEmbedding(embedder, settings, metrics)
