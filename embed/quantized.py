"""The convolutions of an embedder in int8, run by LiteRT on the CPU: several times as fast as in float32.

The file is an `.npz`: `convolutions`, the bytes of a LiteRT flatbuffer from `(1, side, side, 3)` uint8 RGB to
`(1, h, w, c)` float32 features for any side, and, for networks with a projection behind their pooling, its `kernel`
and `bias`. LiteRT checks the flatbuffer before it runs it and knows no operations but its own. It is made by
`embed.training.quantization`.

Source: Jacob et al., arXiv 1712.05877; LiteRT (once TensorFlow Lite), https://ai.google.dev/edge/litert.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embed.chatter import chatter_held_back
from embed.embedder_dir import EmbedderSpec
from embed.errors import EmbedderError
from embed.head import Linear
from embed.whitening import Whitening

_PIXELS: Final = (1.0, 0)
"""Scale and zero point of the input: bytes are taken as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedNetwork:
    """A flatbuffer of convolutions, and the projection behind their pooling."""

    convolutions: bytes
    linear: Linear | None

    def features_of(self, num_threads: int | None = None) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
        """The convolutions as a function of a batch of squares; by default on every core. Raises EmbedderError."""
        num_threads = num_threads or _num_cores()
        interpreters: dict[tuple[int, ...], Any] = {}

        def features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            interpreter = interpreters.get(images.shape)
            if interpreter is None:
                interpreter = interpreters[images.shape] = _interpreter(self.convolutions, images.shape, num_threads)
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
            interpreter.invoke()
            made: NDArray[np.float32] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
            return made

        return features


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _interpreter(convolutions: bytes, shape: tuple[int, ...], num_threads: int) -> Any:
    """An interpreter that is ready for images of one shape."""
    with chatter_held_back():
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - what only describes needs none

        try:
            interpreter = Interpreter(model_content=convolutions, num_threads=num_threads)
            (given,) = interpreter.get_input_details()
            (made,) = interpreter.get_output_details()
            interpreter.resize_tensor_input(given["index"], shape)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise EmbedderError(f"the int8 network does not take images {shape}: {error}; quantize it again") from error
    if given["dtype"] is not np.uint8 or given["quantization"] != _PIXELS or made["dtype"] is not np.float32:
        raise EmbedderError("the int8 network does not turn uint8 pixels into float32 features; quantize it again")
    return interpreter


def quantized_bytes(network: QuantizedNetwork) -> bytes:
    """`network` as an `.npz` file."""
    arrays: dict[str, NDArray[Any]] = {"convolutions": np.frombuffer(network.convolutions, np.uint8)}
    if network.linear is not None:
        arrays |= {"kernel": network.linear.kernel, "bias": network.linear.bias}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def load_quantized(spec: EmbedderSpec, whitening: Whitening | None) -> QuantizedNetwork:
    """The int8 network of an embedder, never unpickled; raises EmbedderError where there is none or it is damaged."""
    if spec.quantized is None:
        raise EmbedderError(
            f"{spec.name} has no int8 network; make one with `neardup quantize`, or choose another --dtype"
        )
    path = spec.directory / spec.quantized
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            convolutions = np.asarray(arrays["convolutions"], np.uint8).tobytes()
            linear = None
            if "kernel" in arrays:
                kernel, bias = (np.asarray(arrays[name], np.float32) for name in ("kernel", "bias"))
                linear = Linear(kernel=kernel, bias=bias)
        interpreter = _interpreter(convolutions, (1, spec.size, spec.size, 3), 1)
        *_, channels = interpreter.get_output_details()[0]["shape"]
        _check_projection(linear, channels, spec.network_dim if whitening is None else len(whitening.mean))
    except Exception as error:
        raise EmbedderError(f"{path} is not the int8 network of {spec.name} ({error}); quantize it again") from error
    return QuantizedNetwork(convolutions=convolutions, linear=linear)


def _check_projection(linear: Linear | None, channels: int, columns: int) -> None:
    """Whether what stands behind the pooled features makes the columns that are asked for."""
    if linear is None:
        fits = channels == columns
    else:
        fits = linear.kernel.shape == (channels, columns) and linear.bias.shape == (columns,)
        fits = fits and bool(np.isfinite(linear.kernel).all() and np.isfinite(linear.bias).all())
    if not fits:
        raise EmbedderError(f"{channels} features do not become {columns} finite columns")
