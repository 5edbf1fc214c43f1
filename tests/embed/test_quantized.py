"""The int8 network at run time: close to float32, exact in itself, refused by name when damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embed.embedder import load_embedder, stored_whitening
from embed.embedder_dir import describe_embedder
from embed.errors import EmbedderError
from embed.head import Linear
from embed.quantized import QuantizedNetwork, load_quantized, quantized_bytes
from tests.photos import synthetic_squares


@pytest.fixture(scope="module")
def squares() -> NDArray[np.uint8]:
    return synthetic_squares(9, size=describe_embedder().size)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the shipped embedder, to be damaged."""
    return Path(shutil.copytree(describe_embedder().directory, tmp_path / "mine"))


def shipped_network() -> QuantizedNetwork:
    spec = describe_embedder()
    return load_quantized(spec, stored_whitening(spec))


def test_the_shipped_embedder_runs_in_int8_unless_told_otherwise() -> None:
    """An embedder with an int8 network has that as its default, others float32."""
    assert describe_embedder().default_dtype == "int8"


@pytest.mark.tensorflow
def test_int8_stays_close_to_float32(squares: NDArray[np.uint8]) -> None:
    """With the shipped weights every embedding keeps a cosine above 0.99 to its float32 self."""
    exact, rounded = (load_embedder(dtype=dtype).embed(squares) for dtype in ("float32", "int8"))

    assert (exact * rounded).sum(axis=1).min() > 0.99


def test_a_row_depends_on_its_own_image_alone(squares: NDArray[np.uint8]) -> None:
    """Alone or among others, on one thread or two, an image has bit for bit the same features, and so the same row."""
    embedder, single = load_embedder(batch_size=4, num_threads=2), load_embedder(batch_size=4, num_threads=1)
    rows = embedder.embed(squares)

    np.testing.assert_array_equal(np.concatenate([embedder.embed(square[None]) for square in squares]), rows)
    np.testing.assert_array_equal(single.embed(squares[::-1])[::-1], rows)
    np.testing.assert_allclose(embedder.embed_few(squares), rows, atol=1e-6)


def test_int8_needs_no_tensorflow() -> None:
    """Nothing of it is imported, and nothing is printed."""
    code = (
        "import sys, numpy, embed.embedder as e\n"
        "e.load_embedder().embed(numpy.zeros((3, 120, 120, 3), numpy.uint8))\n"
        "assert not {'tensorflow', 'keras', 'torch', 'jax'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_embedder_without_an_int8_network_says_how_to_make_one(copied: Path) -> None:
    """Asking for it names the command."""
    spec = json.loads((copied / "embedder.json").read_text())
    (copied / "embedder.json").write_text(json.dumps(spec | {"quantized": None}))

    with pytest.raises(EmbedderError, match="mine has no int8 network; make one with `neardup quantize`"):
        load_embedder(copied, dtype="int8")


def test_the_int8_network_is_part_of_the_digest(copied: Path) -> None:
    """Another network makes other embeddings."""
    before = describe_embedder(copied).digest
    network = shipped_network()
    assert network.linear is not None
    turned = Linear(kernel=-network.linear.kernel, bias=network.linear.bias)
    (copied / "int8.npz").write_bytes(
        quantized_bytes(QuantizedNetwork(convolutions=network.convolutions, linear=turned))
    )

    assert before == describe_embedder().digest
    assert describe_embedder(copied).digest != before


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _text(_: bytes) -> bytes:
    return b"not an npz file"


def _no_arrays(_: bytes) -> bytes:
    return quantized_bytes(QuantizedNetwork(convolutions=b"", linear=None))


def _cut_flatbuffer(_: bytes) -> bytes:
    network = shipped_network()
    return quantized_bytes(QuantizedNetwork(convolutions=network.convolutions[:100_000], linear=network.linear))


def _other_projection(_: bytes) -> bytes:
    network = shipped_network()
    other = Linear(kernel=np.zeros((8, 8), np.float32), bias=np.zeros(8, np.float32))
    return quantized_bytes(QuantizedNetwork(convolutions=network.convolutions, linear=other))


@pytest.mark.parametrize("damaged", [_cut, _text, _no_arrays, _cut_flatbuffer, _other_projection])
def test_a_damaged_network_is_refused_by_name(copied: Path, damaged: Callable[[bytes], bytes]) -> None:
    """Cut, no `.npz`, without a flatbuffer, with half of one, with a projection that does not fit."""
    path = copied / "int8.npz"
    path.write_bytes(damaged(path.read_bytes()))

    with pytest.raises(EmbedderError, match=r"int8\.npz is not the int8 network of mine"):
        load_embedder(copied)
