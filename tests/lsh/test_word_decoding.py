"""Rules of the vectorised step of variable-byte decoding."""

from __future__ import annotations

import numpy as np
import pytest

from lsh.word_decoding import BYTES_PER_WORD, decode_word


def codes_within(word: list[int]) -> list[int]:
    """The slow twin: the values whose codes end within the eight bytes."""
    values, value, shift = [], 0, 0
    for byte in word:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            values.append(value)
            value, shift = 0, 0
    return values


@pytest.mark.parametrize("fill", [0x00, 0x7F, None])
def test_every_pattern_of_ends_equals_the_slow_twin(fill: int | None) -> None:
    """For each of the 256 patterns of high bits, all codes that end within the word are decoded and counted."""
    rng = np.random.default_rng(0)
    for pattern in range(256):
        low_bits = rng.integers(0, 128, BYTES_PER_WORD) if fill is None else np.full(BYTES_PER_WORD, fill)
        word = [int(low) | (pattern >> byte & 1) << 7 for byte, low in enumerate(low_bits)]
        expected = codes_within(word)
        values = np.zeros(BYTES_PER_WORD, dtype=np.uint64)
        num_bytes, num_codes = decode_word(np.array(word, dtype=np.uint8), np.uint64(0), values, np.uint64(0))

        assert values[:num_codes].tolist() == expected
        assert num_bytes == max((byte + 1 for byte in range(BYTES_PER_WORD) if word[byte] < 128), default=0)


def test_only_eight_values_are_written() -> None:
    """A word anywhere in the data touches `values[i : i + 8]` and nothing beside it."""
    data = np.concatenate([np.full(5, 200), np.arange(8), np.full(3, 200)]).astype(np.uint8)
    values = np.full(14, 99, dtype=np.uint64)
    decode_word(data, np.uint64(5), values, np.uint64(3))

    assert values.tolist() == [99, 99, 99, 0, 1, 2, 3, 4, 5, 6, 7, 99, 99, 99]
