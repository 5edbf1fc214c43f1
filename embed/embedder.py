"""The embedder: images in, `(n, dim)` float32 unit rows out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from embed.embedder_dir import DEFAULT_EMBEDDER, DTYPES, SPEC_FILE, EmbedderSpec, describe_embedder
from embed.errors import EmbedderError
from embed.head import Head
from embed.whitening import Whitening, read_whitening
from embed.zoom import Zoom

_BLAS = ThreadpoolController()
"""Threads of BLAS keep their cores for a while after a product, waiting for the next; the network needs them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Convolutions and the head behind them: images -> rows, `(n, dim)`, of a zoom's windows `(n, grid**2, dim)`."""

    features: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    head: Head
    zoom: Zoom | None = None

    def rows(self, images: NDArray[np.uint8], *, batch_size: int) -> NDArray[np.float32]:
        """Of each image; in batches of one size, the last one padded, so that a row depends on its own image alone."""
        made = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            missing = batch_size - len(batch)
            if missing:
                batch = np.concatenate([batch, np.zeros((missing, *images.shape[1:]), np.uint8)])
            features = self.features(batch)
            with _BLAS.limit(limits=1, user_api="blas"):
                if self.zoom is None:
                    rows = self.head.rows(features, batch)
                else:
                    rows = self.head.window_rows(features, batch, self.zoom)
            made.append(rows[: batch_size - missing])
        return np.concatenate(made)


class Embedder:
    """A loaded network. `embed` is for one thread at a time; load one per process and keep it."""

    def __init__(self, spec: EmbedderSpec, network: Network, *, batch_size: int) -> None:
        self.spec = spec
        self.batch_size = batch_size
        self._network = network

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`(n, size, size, 3)` uint8 RGB -> `(n, dim)` float32 unit rows, each of its own image alone."""
        self._check(images)
        if not len(images):
            return np.empty((0, self.spec.dim), np.float32)
        return self._network.rows(images, batch_size=self.batch_size)

    def embed_few(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `embed`, without padding: in batches of 1, 2, 4, ... images, so that fewer take less time.

        Each of these shapes is prepared when it first comes. Rows are those of `embed` but for rounding, some 1e-7.
        """
        self._check(images)
        rows = np.empty((len(images), self.spec.dim), dtype=np.float32)
        start = 0
        while start < len(images):
            num_images = min(self.batch_size, 1 << (len(images) - start).bit_length() - 1)
            batch = images[start : start + num_images]
            rows[start : start + num_images] = self._network.rows(batch, batch_size=num_images)
            start += num_images
        return rows

    def _check(self, images: NDArray[np.uint8]) -> None:
        size = self.spec.size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise EmbedderError(
                f"images are {images.dtype} {images.shape}; {self.spec.name} takes uint8 (n, {size}, {size}, 3), "
                f"which `embed.preprocessing.to_square` makes"
            )


def load_embedder(
    name_or_dir: str | os.PathLike[str] = DEFAULT_EMBEDDER,
    *,
    dtype: str | None = None,
    batch_size: int = 32,
    num_threads: int | None = None,
) -> Embedder:
    """Load an embedder, ready for its first image; raises EmbedderError.

    `dtype` None is `EmbedderSpec.default_dtype`. `int8` runs on CPUs alone, without TensorFlow, and moves cosines by
    some 0.0003; `bfloat16` is up to twice as fast as `float32` on CPUs and GPUs that have it and moves them by 0.001.
    `num_threads` bounds the CPU threads, in float32 and bfloat16 those of the whole process, so it must be set by the
    first load in it.
    """
    if not 1 <= batch_size <= 4096:
        raise EmbedderError(f"batch_size={batch_size} is out of range 1..4096")
    spec = describe_embedder(name_or_dir)
    embedder = Embedder(spec, load_network(spec, dtype=dtype, num_threads=num_threads), batch_size=batch_size)
    _check_rows(spec, embedder.embed(np.full((1, spec.size, spec.size, 3), 128, dtype=np.uint8)))
    return embedder


def load_network(
    spec: EmbedderSpec, *, dtype: str | None = None, zoom: Zoom | None = None, num_threads: int | None = None
) -> Network:
    """The network of an embedder, or of the windows of a zoom, whose squares are larger; raises EmbedderError."""
    dtype = dtype or spec.default_dtype
    if dtype not in DTYPES:
        raise EmbedderError(f"dtype={dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    if num_threads is not None and not 1 <= num_threads <= 1024:
        raise EmbedderError(f"num_threads={num_threads} is out of range 1..1024")
    whitening = stored_whitening(spec)
    features: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    if dtype == "int8":
        from embed.quantized import load_quantized  # noqa: PLC0415 - only who runs it needs LiteRT

        quantized = load_quantized(spec, whitening)
        features, linear = quantized.features_of(num_threads), quantized.linear
    else:
        from embed import keras_network  # noqa: PLC0415 - takes seconds, and int8 must not pay for it

        if num_threads is not None:
            keras_network.limit_threads(num_threads)
        size = spec.size if zoom is None else zoom.size(spec.size)
        trunk, linear = keras_network.convolutions(spec, whitening, dtype=dtype, size=size)
        features = keras_network.features_of(trunk)
    head = Head(gem_p=spec.gem_p, linear=linear, whitening=whitening, layout_weight=spec.layout_weight)
    return Network(features=features, head=head, zoom=zoom)


def stored_whitening(spec: EmbedderSpec) -> Whitening | None:
    """The whitening of an embedder that has one; raises EmbedderError."""
    if spec.whitening is None:
        return None
    path = spec.directory / spec.whitening
    whitening = read_whitening(path)
    if whitening.dim != spec.network_dim:
        raise EmbedderError(
            f"{path} makes {whitening.dim} columns, {SPEC_FILE} says dim={spec.dim}"
            + (f", of which {spec.network_dim} are the network's" if spec.layout_weight else "")
        )
    return whitening


def _check_rows(spec: EmbedderSpec, rows: NDArray[np.float32]) -> None:
    length = float(np.linalg.norm(rows[0]))
    if rows.shape[1] != spec.dim or not math.isclose(length, 1.0, abs_tol=1e-3):
        raise EmbedderError(
            f"{spec.directory} gives an embedding of {rows.shape[1]} numbers and length {length} for a gray image "
            f"instead of {spec.dim} and 1; its weights are damaged, restore or retrain them"
        )
