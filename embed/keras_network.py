"""The convolutions of an embedder in Keras, float32 or bfloat16, on whatever its backend finds.

The network is built from code; from disk come only numbers.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embed import architectures
from embed.embedder_dir import IMAGENET, IMAGENET_FILE, IMAGENET_MD5, IMAGENET_URL, SEEDED, VGG16_FEATURES, EmbedderSpec
from embed.errors import EmbedderError
from embed.head import Linear
from embed.keras_backend import keras, layers, ops
from embed.whitening import Whitening

KERAS_POLICIES: Final = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def convolutions(
    spec: EmbedderSpec, whitening: Whitening | None, *, dtype: str, size: int
) -> tuple[keras.Model, Linear | None]:
    """What turns `(n, size, size, 3)` RGB in 0..255 into features `(n, h, w, c)`, and the projection behind them.

    Raises EmbedderError.
    """
    features = spec.network_dim if whitening is None else len(whitening.mean)
    if spec.architecture == "vgg16" and features != VGG16_FEATURES:
        fix = "give the whitening for it" if whitening is None else "fit the whitening on its embeddings"
        raise EmbedderError(f"vgg16 makes {VGG16_FEATURES} features, not {features}; {fix}")
    policy = KERAS_POLICIES[dtype]
    if spec.architecture == "vgg16":
        trained = architectures.vgg16_backbone(size=size, dtype=policy)
    else:
        trained = architectures.vgg_copy(size=size, dim=features, gem_p=spec.gem_p)
    if spec.weights == SEEDED:
        architectures.seed_weights(trained, spec.seed)
    else:
        load_weights(trained, spec)
    if spec.architecture == "vgg16":
        return architectures.vgg16(trained), None
    folded = architectures.fold_batch_norm(trained, dtype=policy)
    pooling = next(layer for layer in folded.layers if isinstance(layer, architectures.GeneralizedMeanPooling))
    dense = next(layer for layer in folded.layers if isinstance(layer, layers.Dense))
    kernel, bias = dense.get_weights()
    return keras.Model(folded.input, pooling.input, name=spec.architecture), Linear(kernel=kernel, bias=bias)


def features_of(trunk: keras.Model) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """`trunk`, compiled, as a function of a batch of squares."""
    images = layers.Input(trunk.input_shape[1:], dtype="uint8", name="images")
    features = ops.cast(trunk(ops.cast(images, "float32")), "float32")
    compiled = keras.Model(images, features, name=trunk.name)
    compiled.compile(jit_compile=keras.backend.backend() == "jax")
    return lambda batch: np.asarray(compiled.predict_on_batch(batch))


def limit_threads(num_threads: int) -> None:
    """Bound the CPU threads of the network's library; raises EmbedderError where it runs already with others."""
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
