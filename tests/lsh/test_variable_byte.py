"""Rules of the variable-byte codes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lsh.errors import FormatError, ParameterError
from lsh.variable_byte import MAX_BYTES_PER_VALUE, decode, decode_sorted, encode, encode_sorted, encoded_sizes

MAX_VALUE = 2**64 - 1
BOUNDARIES = sorted(
    {min(max(2 ** (7 * k) + offset, 0), MAX_VALUE) for k in range(11) for offset in range(-2, 3)} | {MAX_VALUE}
)
values_near_boundaries = st.lists(st.sampled_from(BOUNDARIES) | st.integers(0, MAX_VALUE), max_size=80)
mostly_short_values = st.lists(st.integers(0, 127) | st.integers(0, 140), max_size=300)


def words(values: list[int]) -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def data(*values: int) -> NDArray[np.uint8]:
    return np.array(values, dtype=np.uint8)


def encode_slowly(values: list[int]) -> bytes:
    """The slow twin: one value, one group at a time, in Python integers."""
    code = bytearray()
    for value in values:
        rest = value
        while rest >= 128:
            code.append(rest % 128 + 128)
            rest //= 128
        code.append(rest)
    return bytes(code)


def decode_slowly(code: bytes) -> list[int] | None:
    """The slow twin: the values whose codes fill `code`, None if it is not canonical."""
    values, value, num_bytes = [], 0, 0
    for byte in code:
        value += (byte & 127) << (7 * num_bytes)
        num_bytes += 1
        if byte >= 128:
            continue
        if (byte == 0 and num_bytes > 1) or value > MAX_VALUE:
            return None
        values.append(value)
        value, num_bytes = 0, 0
    return None if num_bytes else values


@pytest.mark.parametrize("value", BOUNDARIES)
def test_a_value_at_a_byte_boundary_survives(value: int) -> None:
    """Every value within 2 of a power of 128 decodes to itself and has the code of the slow twin."""
    code = encode(words([value]))

    assert code.tobytes() == encode_slowly([value])
    assert decode(code, 1).tolist() == [value]


def test_no_values_have_no_bytes() -> None:
    """The code of the empty list is empty, and decodes to the empty list."""
    assert encode(words([])).size == 0
    assert decode(data(), 0).tolist() == []
    assert decode_sorted(data(), 0).tolist() == []


def test_the_largest_value_takes_ten_bytes() -> None:
    """No 64-bit value takes more than MAX_BYTES_PER_VALUE bytes, and the largest takes all of them."""
    assert encoded_sizes(words(BOUNDARIES)).max() == encode(words([MAX_VALUE])).size == MAX_BYTES_PER_VALUE


@given(values_near_boundaries | mostly_short_values)
def test_encode_and_decode_equal_their_slow_twins(values: list[int]) -> None:
    """Codes are byte for byte those of the slow twin, and decode to the values they came from."""
    code = encode(words(values))

    assert code.tobytes() == encode_slowly(values)
    assert decode(code, len(values)).tolist() == values


@given(
    st.lists(st.integers(0, 127), max_size=40), st.integers(0, MAX_VALUE), st.lists(st.integers(0, 127), max_size=40)
)
def test_a_long_code_between_runs_of_short_ones_survives(before: list[int], value: int, after: list[int]) -> None:
    """A value of any length decodes right at any distance from the start and end of runs of one-byte values."""
    values = [1] * 200 + before + [value] + after + [2] * 200

    assert decode(encode(words(values)), len(values)).tolist() == values


@given(values_near_boundaries)
def test_sorted_values_survive(values: list[int]) -> None:
    """Ascending values, repeated ones included, decode to themselves from the codes of their gaps."""
    values = sorted(values)
    code = encode_sorted(words(values))

    assert code.tobytes() == encode_slowly([high - low for low, high in pairwise([0, *values])])
    assert decode_sorted(code, len(values)).tolist() == values


@given(st.binary(max_size=60), st.integers(0, 60))
def test_any_bytes_decode_as_the_slow_twin_says_or_raise(code: bytes, count: int) -> None:
    """Arbitrary bytes either are the canonical codes of `count` values or raise FormatError."""
    expected = decode_slowly(code)
    if expected is not None and len(expected) == count:
        assert decode(np.frombuffer(code, dtype=np.uint8), count).tolist() == expected
        return
    with pytest.raises(FormatError):
        decode(np.frombuffer(code, dtype=np.uint8), count)


@given(
    st.lists(st.integers(0, 127) | st.sampled_from(BOUNDARIES), min_size=40, max_size=120),
    st.integers(0),
    st.integers(0, 255),
)
def test_many_codes_with_a_changed_byte_decode_as_the_slow_twin_says_or_raise(
    values: list[int], position: int, byte: int
) -> None:
    """Codes enough for vectors, one byte changed, are those of the slow twin or raise, whichever count is asked for."""
    code = encode(words(values))
    code[position % code.size] = byte
    expected = decode_slowly(code.tobytes())
    for count in {len(values), int((code < 128).sum())}:
        if expected is not None and len(expected) == count:
            assert decode(code, count).tolist() == expected
            continue
        with pytest.raises(FormatError):
            decode(code, count)


@given(st.lists(st.integers(0, 2**21), min_size=1, max_size=20), st.integers(0, 9), st.integers(100, 300))
def test_a_pattern_of_lengths_over_and_over_survives(pattern: list[int], num_groups: int, count: int) -> None:
    """Values of two and three bytes with now and then one of any length decode right, however vectors meet them."""
    values = ([*pattern, 2 ** (7 * num_groups)] * count)[:count]

    assert decode(encode(words(values)), count).tolist() == values


@given(st.lists(st.integers(0, MAX_VALUE), min_size=1, max_size=20), st.data())
def test_truncated_codes_raise(values: list[int], draw: st.DataObject) -> None:
    """Codes cut anywhere before their end raise FormatError."""
    code = encode(words(values))
    size = draw.draw(st.integers(0, code.size - 1))

    with pytest.raises(FormatError):
        decode(code[:size], len(values))


@given(st.lists(st.integers(0, MAX_VALUE), max_size=20), st.binary(min_size=1, max_size=9))
def test_trailing_bytes_raise(values: list[int], trailing: bytes) -> None:
    """Bytes after the last value raise FormatError."""
    code = np.concatenate([encode(words(values)), np.frombuffer(trailing, dtype=np.uint8)])

    with pytest.raises(FormatError):
        decode(code, len(values))


@pytest.mark.parametrize("code", [data(0x80, 0x00), data(0xFF, 0x80, 0x00), data(*[0x80] * 9, 0x00)])
def test_codes_longer_than_need_be_raise(code: NDArray[np.uint8]) -> None:
    """A code of several bytes that ends in a zero group raises FormatError."""
    with pytest.raises(FormatError, match="longer than it need be"):
        decode(code, 1)


@pytest.mark.parametrize("num_short", [0, 1000])
@pytest.mark.parametrize("code", [[0xFF] * 9 + [0x02], [0xFF] * 10 + [0x01], [0xFF] * 63 + [0x7F]])
def test_codes_of_more_than_64_bits_raise(code: list[int], num_short: int) -> None:
    """A code whose value needs more than 64 bits raises FormatError, whichever kernel meets it."""
    with pytest.raises(FormatError, match=rf"value {num_short} of {num_short + 1} does not fit in 64 bits"):
        decode(data(*[1] * num_short, *code), num_short + 1)


def test_a_sum_of_gaps_over_64_bits_raises() -> None:
    """Gaps that add up to more than 64 bits raise FormatError instead of wrapping around."""
    code = encode(words([MAX_VALUE, 0, 1]))

    with pytest.raises(FormatError, match="overflows 64 bits at value 2 of 3"):
        decode_sorted(code, 3)


def test_a_wrong_count_raises_with_both_counts() -> None:
    """A count that is not the number of values in the data raises FormatError that names both."""
    with pytest.raises(FormatError, match="hold 3 values, expected 2"):
        decode(encode(words([1, 200, 3])), 2)


@pytest.mark.parametrize("decoder", [decode, decode_sorted])
def test_a_count_beyond_memory_raises_as_any_wrong_count(
    decoder: Callable[[NDArray[np.uint8], int], NDArray[np.uint64]],
) -> None:
    """A damaged count asks for no more memory than the data can fill."""
    with pytest.raises(FormatError, match="hold 3 values, expected"):
        decoder(encode(words([1, 200, 3])), 2**60)


def test_unsorted_values_raise_with_their_position() -> None:
    """Encoding values that fall raises ParameterError that names the position."""
    with pytest.raises(ParameterError, match="value 4 at position 2 is below the one before, 9"):
        encode_sorted(words([3, 9, 4]))


@pytest.mark.parametrize(
    "values", [np.zeros(3, dtype=np.int64), np.zeros((2, 2), dtype=np.uint64), np.zeros(3, dtype=np.float64)]
)
def test_values_of_another_type_or_shape_raise(values: NDArray[np.uint64]) -> None:
    """Only one-dimensional uint64 arrays are encoded; anything else raises ParameterError."""
    with pytest.raises(ParameterError, match="pass \\(count,\\) uint64"):
        encode(values)


def test_data_of_another_type_and_negative_counts_raise() -> None:
    """Decoding takes uint8 data and a count of 0 or more; anything else raises ParameterError."""
    with pytest.raises(ParameterError, match="uint8"):
        decode(np.zeros(3, dtype=np.int8), 3)
    with pytest.raises(ParameterError, match="count=-1"):
        decode(data(), -1)


def test_strided_data_decodes() -> None:
    """Data that is not contiguous in memory decodes as its bytes in order."""
    code = encode(words([300, 5, 2**40]))

    assert decode(np.repeat(code, 2)[::2], 3).tolist() == [300, 5, 2**40]
