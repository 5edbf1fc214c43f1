"""Makes the int8 network of an embedder: photos give the range of each layer, weights are rounded channel by channel.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv 1712.05877; TensorFlow's post-training quantization.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.chatter import chatter_held_back
from embed.embedder import load_embedder, stored_whitening
from embed.embedder_dir import EmbedderSpec, describe_embedder, extend_embedder_dir
from embed.errors import TrainingError
from embed.keras_backend import keras
from embed.keras_network import convolutions
from embed.lineage import Lineage, ModelKind, read_lineages, record
from embed.quantized import QuantizedNetwork, quantized_bytes
from embed.training.photos import load_photos, photos_sha256

NUM_PHOTOS: Final = 512
"""As many decide the ranges; 256 others gave rows as close."""


def quantize_embedder(
    photos: Path, *, embedder: str, output: Path, tracking_uri: str | None = None
) -> tuple[EmbedderSpec, float]:
    """Write the embedder directory `output`: `embedder` with an int8 network, its ranges those of some of the photos.

    Also gives the mean cosine of their embeddings to those in float32. Raises TrainingError and EmbedderError.
    """
    if keras.backend.backend() != "tensorflow":
        raise TrainingError(f"KERAS_BACKEND={keras.backend.backend()} cannot quantize; set it to tensorflow")
    if output.exists():
        raise TrainingError(f"{output} already exists; choose another output directory or remove it first")
    spec = describe_embedder(embedder)
    sample = load_photos(photos, size=spec.size, batch_size=1, most=NUM_PHOTOS)
    trunk, linear = convolutions(spec, stored_whitening(spec), dtype="float32", size=spec.size)
    network = QuantizedNetwork(convolutions=_flatbuffer(trunk, sample), linear=linear)
    made = extend_embedder_dir(spec, output, quantized=quantized_bytes(network))
    exact, rounded = (load_embedder(output, dtype=dtype).embed(sample) for dtype in ("float32", "int8"))
    similarity = float((exact * rounded).sum(axis=1).mean())
    origin = read_lineages(spec.directory).get(ModelKind.EMBEDDER, Lineage(kind=ModelKind.EMBEDDER, digest=spec.digest))
    record(
        made.directory,
        kind=ModelKind.EMBEDDER,
        digest=made.digest,
        tracking_uri=tracking_uri,
        seed=origin.seed,
        parents={**origin.parents, "quantized_from": spec.digest},
        data={**origin.data, "quantized_with": photos_sha256(sample)},
        parameters={**origin.parameters, "quantized_with": len(sample)},
        metrics={**origin.metrics, "int8_cosine": similarity},
    )
    return made, similarity


def _flatbuffer(trunk: keras.Model, sample: NDArray[np.uint8]) -> bytes:
    """A LiteRT flatbuffer of `trunk` in int8, from uint8 squares to float32 features."""
    tensorflow = sys.modules["tensorflow"]
    # The first square has every byte's ends, so that the range of the input is that of a byte, whatever the photos.
    ends = np.zeros_like(sample[:1])
    ends[:, ::2] = 255

    def examples() -> Iterator[list[NDArray[np.float32]]]:
        for square in [*ends, *sample]:
            yield [square[None].astype(np.float32)]

    # Keras prints what it exports, and stdout belongs to the caller's results.
    with warnings.catch_warnings(), chatter_held_back(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        converter: Any = tensorflow.lite.TFLiteConverter.from_keras_model(trunk)
        converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
        converter.representative_dataset = examples
        converter.target_spec.supported_ops = [tensorflow.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tensorflow.uint8
        return bytes(converter.convert())
