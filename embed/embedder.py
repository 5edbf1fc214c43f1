"""The embedder: images in, `(n, dim)` float32 unit rows out.

`load_embedder` builds the network of an embedder directory from code and only ever reads numbers from disk.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.embedder_dir import (
    DEFAULT_EMBEDDER,
    IMAGENET,
    IMAGENET_FILE,
    IMAGENET_MD5,
    IMAGENET_URL,
    SEEDED,
    SPEC_FILE,
    VGG16_FEATURES,
    EmbedderSpec,
    describe_embedder,
)
from embed.errors import EmbedderError
from embed.whitening import Whitening, read_whitening

if TYPE_CHECKING:
    import keras

KERAS_POLICIES: Final = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


class Embedder:
    """A loaded network. `embed` is for one thread at a time; load one per process and keep it."""

    def __init__(self, spec: EmbedderSpec, network: keras.Model, *, batch_size: int) -> None:
        self.spec = spec
        self.batch_size = batch_size
        self._network = network

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`(n, size, size, 3)` uint8 RGB -> `(n, dim)` float32 unit rows.

        Every batch has the same compiled shape, the last one padded, so a row depends on its own image alone.
        """
        self._check(images)
        return rows_of_images(self._network, images, batch_size=self.batch_size)

    def embed_few(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `embed`, without padding: in batches of 1, 2, 4, ... images, so that fewer take less time.

        Each of these shapes is compiled when it first comes. Rows are those of `embed` but for rounding, some 1e-7.
        """
        self._check(images)
        rows = np.empty((len(images), self.spec.dim), dtype=np.float32)
        start = 0
        while start < len(images):
            num_images = min(self.batch_size, 1 << (len(images) - start).bit_length() - 1)
            batch = images[start : start + num_images]
            rows[start : start + num_images] = rows_of_images(self._network, batch, batch_size=num_images)
            start += num_images
        return rows

    def _check(self, images: NDArray[np.uint8]) -> None:
        size = self.spec.size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise EmbedderError(
                f"images are {images.dtype} {images.shape}; {self.spec.name} takes uint8 (n, {size}, {size}, 3), "
                f"which `embed.preprocessing.to_square` makes"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Zoom:
    """`grid` x `grid` windows of `share` of each side, in an image that is `factor` times the network's own size."""

    factor: float
    share: float
    grid: int

    def size(self, size: int) -> int:
        """The side of the squares to look at, for a network that takes `size`."""
        return round(self.factor * size)

    def windows(self, squares: Any) -> list[Any]:
        """`(n, side, side, c)` -> the windows, each `(n, window, window, c)`, row by row.

        A window is at least 1 wide; the outer ones end at the borders.
        """
        side = squares.shape[1]
        window = max(1, round(self.share * side))
        starts = [(side - window) * place // max(1, self.grid - 1) for place in range(self.grid)]
        return [squares[:, top : top + window, left : left + window] for top in starts for left in starts]


def rows_of_images(network: keras.Model, images: NDArray[np.uint8], *, batch_size: int) -> NDArray[np.float32]:
    """What a network makes of each image, in batches of one size, the last one padded."""
    rows = np.empty((len(images), *network.output_shape[1:]), dtype=np.float32)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        num_images = len(batch)
        if num_images < batch_size:
            batch = np.concatenate([batch, np.zeros((batch_size - num_images, *images.shape[1:]), dtype=np.uint8)])
        rows[start : start + num_images] = network.predict_on_batch(batch)[:num_images]
    return rows


def load_embedder(
    name_or_dir: str | os.PathLike[str] = DEFAULT_EMBEDDER,
    *,
    dtype: str = "float32",
    batch_size: int = 32,
    num_threads: int | None = None,
) -> Embedder:
    """Build, load and compile an embedder, ready for its first image; raises EmbedderError.

    `dtype` `bfloat16` is up to twice as fast on CPUs and GPUs that have it and moves cosines by about 0.001.
    `num_threads` bounds the CPU threads of the whole process, so it must be set by the first load in it.
    """
    if not 1 <= batch_size <= 4096:
        raise EmbedderError(f"batch_size={batch_size} is out of range 1..4096")
    spec = describe_embedder(name_or_dir)
    if num_threads is not None:
        limit_threads(num_threads)
    network = inference_network(spec, dtype=dtype)
    embedder = Embedder(spec, network, batch_size=batch_size)
    _check_rows(spec, embedder.embed(np.full((1, spec.size, spec.size, 3), 128, dtype=np.uint8)))
    return embedder


def limit_threads(num_threads: int) -> None:
    """Bound the CPU threads of the network's library; raises EmbedderError where it runs already with others."""
    if not 1 <= num_threads <= 1024:
        raise EmbedderError(f"num_threads={num_threads} is out of range 1..1024")
    from embed.keras_backend import keras  # noqa: PLC0415 - takes seconds, and describing must not pay for it

    backend = keras.backend.backend()
    if backend == "torch":
        sys.modules["torch"].set_num_threads(num_threads)
    if backend != "tensorflow":
        return
    threading = sys.modules["tensorflow"].config.threading
    if threading.get_intra_op_parallelism_threads() == num_threads:
        return
    try:
        threading.set_intra_op_parallelism_threads(num_threads)
        threading.set_inter_op_parallelism_threads(1)
    except RuntimeError as error:
        raise EmbedderError(
            f"num_threads={num_threads} comes too late: TensorFlow already runs in this process with "
            f"{threading.get_intra_op_parallelism_threads() or 'as many threads as cores'}; "
            f"give num_threads to the first load_embedder of the process"
        ) from error


def inference_network(
    spec: EmbedderSpec,
    *,
    dtype: str,
    zoom: Zoom | None = None,
) -> keras.Model:
    """The compiled network `(n, size, size, 3)` uint8 -> `(n, dim)`, whitening and layout included.

    With a `zoom` it takes larger squares and gives the rows of their windows, `(n, grid**2, dim)`. Raises
    EmbedderError.
    """
    if dtype not in KERAS_POLICIES:
        raise EmbedderError(f"dtype={dtype!r} is unknown; choose {' or '.join(KERAS_POLICIES)}")
    from embed import architectures  # noqa: PLC0415
    from embed.keras_backend import keras, layers, ops  # noqa: PLC0415
    from embed.layout import layout, with_layout  # noqa: PLC0415

    whitening = stored_whitening(spec)
    features = spec.network_dim if whitening is None else len(whitening.mean)
    if spec.architecture == "vgg16" and features != VGG16_FEATURES:
        fix = "give the whitening for it" if whitening is None else "fit the whitening on its embeddings"
        raise EmbedderError(f"vgg16 makes {VGG16_FEATURES} features, not {features}; {fix}")

    policy = KERAS_POLICIES[dtype]
    size = spec.size if zoom is None else zoom.size(spec.size)
    if spec.architecture == "vgg16":
        trained = architectures.vgg16_backbone(size=size, dtype=policy)
    else:
        trained = architectures.vgg_copy(size=size, dim=features, gem_p=spec.gem_p)
    if spec.weights == SEEDED:
        architectures.seed_weights(trained, spec.seed)
    else:
        load_weights(trained, spec)
    if spec.architecture == "vgg16":
        network = architectures.vgg16(trained, gem_p=spec.gem_p)
    else:
        network = architectures.fold_batch_norm(trained, dtype=policy)
    if zoom is not None:
        network = architectures.regional(network, zoom.windows)

    images = layers.Input((size, size, 3), dtype="uint8", name="images")
    pictures = ops.cast(images, "float32")
    rows = network(pictures)
    if whitening is not None:
        bias = -whitening.mean @ whitening.projection
        dense = layers.Dense(whitening.dim, dtype="float32", name="whitening")
        rows = dense(rows)
        dense.set_weights([whitening.projection, bias])
        rows = layers.UnitNormalization(dtype="float32")(rows)
    if spec.layout_weight:
        layouts = (
            layout(pictures, dim=spec.network_dim)
            if zoom is None
            else ops.stack(
                [layout(window, dim=spec.network_dim, blank=-1.0) for window in zoom.windows(pictures)], axis=1
            )
        )
        rows = with_layout(rows, layouts, weight=spec.layout_weight)
    whole = keras.Model(images, rows, name=spec.architecture)
    whole.compile(jit_compile=keras.backend.backend() == "jax")
    return whole


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


def load_weights(network: keras.Model, spec: EmbedderSpec) -> None:
    """Load the trained weights of `spec` into a network of its architecture, all of them, or raise EmbedderError."""
    path = _imagenet_file() if spec.weights == IMAGENET else spec.directory / spec.weights
    # Keras only warns when a file lacks some weights, so they start as NaN and must not stay so.
    for weight in network.weights:
        weight.assign(np.full(tuple(weight.shape), np.nan, dtype=np.float32))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network.load_weights(path)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise EmbedderError(
            f"{path} does not hold weights of {spec.architecture} at size {spec.size} and dim {spec.dim} ({reason}); "
            f"give a file written by `save_weights` of exactly this network"
        ) from error
    for weight in network.weights:
        if not np.isfinite(weight.numpy()).all():
            raise EmbedderError(
                f"{path} lacks {weight.path} or holds values there that are not finite; restore or retrain it"
            )


def _imagenet_file() -> Path:
    """Keras' own cached copy of the ImageNet weights, downloaded on first use."""
    from embed.keras_backend import keras  # noqa: PLC0415

    try:
        with redirect_stdout(sys.stderr):  # Keras prints its progress, and stdout belongs to the caller's results.
            path = keras.utils.get_file(IMAGENET_FILE, IMAGENET_URL, cache_subdir="models", file_hash=IMAGENET_MD5)
        return Path(path)
    except Exception as error:
        raise EmbedderError(
            f"the ImageNet weights of VGG16 cannot be downloaded here ({error}). On a machine with a network fetch "
            f"{IMAGENET_URL}, then make a directory from it with "
            f"`create_embedder_dir('vgg16', architecture='vgg16', weights='{IMAGENET_FILE}')` and pass that: "
            f"`--embedder vgg16`"
        ) from error


def _check_rows(spec: EmbedderSpec, rows: NDArray[np.float32]) -> None:
    length = float(np.linalg.norm(rows[0]))
    if not math.isclose(length, 1.0, abs_tol=1e-3):
        raise EmbedderError(
            f"{spec.directory} gives an embedding of length {length} for a gray image instead of 1; "
            f"its weights are damaged, restore or retrain them"
        )
