"""Rules of the vectorised steps of variable-byte decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from lsh.vector_decoding import (
    BYTES_READ,
    LONG_STEP,
    SHORT_STEP,
    SQUEEZES_LANES,
    high_bits,
    store_bytes,
    storing_codes,
    zero_bytes,
)

Kernel = Callable[..., Any]
MAX_BYTES = {SHORT_STEP: 4, LONG_STEP: 8}


def decode_slowly(content: list[int], num_bytes: int) -> tuple[int, list[int]]:
    """The slow twin: where codes begin that a step of `num_bytes` takes, as bits, and the values of these codes."""
    starts, values = 0, []
    for first in range(num_bytes):
        size = next((size for size in range(1, MAX_BYTES[num_bytes] + 1) if content[first + size - 1] < 128), None)
        if size is None or (first and content[first - 1] >= 128):
            continue
        starts |= 1 << first
        values.append(sum((content[first + byte] & 127) << 7 * byte for byte in range(size)))
    return starts, values


def kernel_of(num_bytes: int, *, squeezes_lanes: bool) -> Kernel:
    store_codes = storing_codes(num_bytes, squeezes_lanes=squeezes_lanes)

    @njit  # type: ignore[untyped-decorator]
    def kernel(
        data: NDArray[np.uint8], position: np.uint64, starts: np.uint64, values: NDArray[np.uint64], i: np.uint64
    ) -> None:
        store_codes(data, position, starts, values, i)

    return kernel  # type: ignore[no-any-return]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            True, id="squeezed", marks=pytest.mark.skipif(not SQUEEZES_LANES, reason="this processor has no AVX-512")
        ),
        pytest.param(False, id="picked"),
    ],
)
def steps(request: pytest.FixtureRequest) -> dict[int, Kernel]:
    """By the bytes of a step its kernel, in the two ways of leaving out lanes."""
    return {num_bytes: kernel_of(num_bytes, squeezes_lanes=request.param) for num_bytes in MAX_BYTES}


@pytest.mark.parametrize("num_bytes", MAX_BYTES)
def test_every_pattern_of_high_bits_equals_the_slow_twin(num_bytes: int, steps: dict[int, Kernel]) -> None:
    """For each of the 256 patterns of high bits, the codes that begin within a step are decoded one after the other."""
    rng = np.random.default_rng(0)
    for pattern in range(256):
        low_bits = rng.choice([0, 1, 127, int(rng.integers(0, 128))], BYTES_READ)
        content = [int(low) | (pattern >> byte % 8 & 1) << 7 for byte, low in enumerate(low_bits)]
        starts, expected = decode_slowly(content, num_bytes)
        values = np.zeros(num_bytes, dtype=np.uint64)
        steps[num_bytes](np.array(content, dtype=np.uint8), np.uint64(0), np.uint64(starts), values, np.uint64(0))

        assert values[: len(expected)].tolist() == expected


@pytest.mark.parametrize("num_bytes", MAX_BYTES)
def test_a_step_writes_its_values_and_nothing_beside_them(num_bytes: int, steps: dict[int, Kernel]) -> None:
    """A step anywhere in the data touches as many values as it has bytes, from `values[i]` on."""
    data = np.concatenate([np.full(5, 200), np.arange(BYTES_READ), np.full(3, 200)]).astype(np.uint8)
    values = np.full(num_bytes + 6, 99, dtype=np.uint64)
    steps[num_bytes](data, np.uint64(5), np.uint64((1 << num_bytes) - 1), values, np.uint64(3))

    assert values.tolist() == [99, 99, 99, *range(num_bytes), 99, 99, 99]


def test_bits_of_bytes_are_those_of_the_next_32() -> None:
    """High bits and zero bytes are told of the 32 bytes from the position on, the first in the lowest bit."""

    @njit  # type: ignore[untyped-decorator]
    def kernel(data: NDArray[np.uint8], position: np.uint64) -> tuple[np.uint64, np.uint64]:
        return high_bits(data, position), zero_bytes(data, position)

    data = np.random.default_rng(0).choice([0, 1, 127, 128, 255], 40).astype(np.uint8)
    high, zero = kernel(data, np.uint64(5))

    assert [int(high) >> byte & 1 for byte in range(64)] == [*(data[5:37] >= 128).astype(int).tolist(), *[0] * 32]
    assert [int(zero) >> byte & 1 for byte in range(64)] == [*(data[5:37] == 0).astype(int).tolist(), *[0] * 32]


def test_bytes_are_widened_to_values() -> None:
    """32 bytes become 32 values in their place, and nothing beside them is touched."""

    @njit  # type: ignore[untyped-decorator]
    def kernel(data: NDArray[np.uint8], position: np.uint64, values: NDArray[np.uint64], i: np.uint64) -> None:
        store_bytes(data, position, values, i)

    values = np.full(BYTES_READ + 4, 999, dtype=np.uint64)
    kernel(np.arange(220, 256, dtype=np.uint8), np.uint64(3), values, np.uint64(2))

    assert values.tolist() == [999, 999, *range(223, 255), 999, 999]
