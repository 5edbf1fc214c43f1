"""Variable-byte codes: integers of up to 64 bits in 1 to 10 bytes, small ones in one.

Seven bits a byte, the lowest group first; the high bit says that more bytes follow. Each integer has exactly one code:
a code whose last group is zero, longer than it need be, is refused. Worked example: 300 = 0b10_0101100 is `AC 02`.
The bytes of posting lists and shuffle blocks; `FORMAT.md` shows them in place.

Decoding first counts and checks the ends of all integers in one vectorised pass, so that the decoding loop can trust
them; `word_decoding` is its inner step.

Source: Thiel and Heaps, 1972, by way of Manning, Raghavan and Schuetze, "Introduction to Information Retrieval",
section 5.3.1; the layout is that of Protocol Buffers, https://protobuf.dev/programming-guides/encoding/#varints.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.errors import FormatError, ParameterError
from lsh.word_decoding import decode_word

MAX_BYTES_PER_VALUE = 10

_MORE = np.uint64(0x80)
_GROUP = np.uint64(0x7F)
_ONE = np.uint64(1)
_SEVEN = np.uint64(7)
_EIGHT = np.uint64(8)


def encode(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """`(count,)` uint64 -> the uint8 array of their codes, one after the other."""
    values = _checked_values(values)
    sizes = encoded_sizes(values)
    data = np.empty(int(sizes.sum()), dtype=np.uint8)
    _encode(values, data)
    return data


def decode(data: NDArray[np.uint8], count: int) -> NDArray[np.uint64]:
    """The `(count,)` uint64 values whose codes fill `data` exactly.

    Raises FormatError for truncated, overlong or trailing bytes; never reads outside `data`.
    """
    data = _checked_data(data, count)
    values = np.empty(count, dtype=np.uint64)
    if data.size == count:
        values[:] = data
        return values
    position = int(_decode(data, values))
    if position >= 0:
        raise FormatError(f"variable-byte value {position} of {count} does not fit in 64 bits; the bytes are damaged")
    return values


def encode_sorted(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Codes of the first value and of each difference to the value before; raises ParameterError if not ascending."""
    values = _checked_values(values)
    if np.any(values[1:] < values[:-1]):
        position = int(np.argmax(values[1:] < values[:-1])) + 1
        raise ParameterError(
            f"value {values[position]} at position {position} is below the one before, {values[position - 1]}; "
            f"sort the values first"
        )
    return encode(gaps(values))


def decode_sorted(data: NDArray[np.uint8], count: int) -> NDArray[np.uint64]:
    """The ascending `(count,)` uint64 values that `encode_sorted` wrote; raises FormatError as `decode` does."""
    values = decode(data, count)
    position = int(_accumulate(values))
    if position >= 0:
        raise FormatError(f"the sum of gaps overflows 64 bits at value {position} of {count}; the bytes are damaged")
    return values


def gaps(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The first value, then each value less the one before it.

    >>> gaps(np.array([3, 10, 10, 200], dtype=np.uint64)).tolist()
    [3, 7, 0, 190]
    """
    return np.diff(values, prepend=np.uint64(0))


def encoded_sizes(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Bytes of the code of each value.

    >>> encoded_sizes(np.array([0, 127, 128, 2**64 - 1], dtype=np.uint64)).tolist()
    [1, 1, 2, 10]
    """
    return _encoded_sizes(values)  # type: ignore[no-any-return]


def _checked_values(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    if values.ndim != 1 or values.dtype != np.uint64:
        raise ParameterError(f"values of shape {values.shape} and dtype {values.dtype} given; pass (count,) uint64")
    return np.ascontiguousarray(values)


def _checked_data(data: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    if data.ndim != 1 or data.dtype != np.uint8:
        raise ParameterError(f"data of shape {data.shape} and dtype {data.dtype} given; pass (size_bytes,) uint8")
    if count < 0:
        raise ParameterError(f"count={count} is out of range; pass the number of values encoded, 0 or more")
    data = np.ascontiguousarray(data)
    num_ends, is_overlong = _scan(data)
    if data.size and data[-1] >= _MORE:
        raise FormatError(f"{data.size} variable bytes stop in the middle of a value; they are truncated")
    if num_ends != count:
        raise FormatError(f"{data.size} variable bytes hold {num_ends} values, expected {count}")
    if is_overlong:
        raise FormatError("a variable-byte value is longer than it need be; the bytes are damaged")
    return data


@njit(cache=True, nogil=True)
def _scan(data: NDArray[np.uint8]) -> tuple[int, bool]:
    """How many values end in `data`, and whether any code ends in a zero group it does not need."""
    num_ends = 0
    for i in range(data.size):
        num_ends += data[i] < 0x80
    is_overlong = False
    for i in range(data.size - 1):
        is_overlong |= (data[i] >= 0x80) & (data[i + 1] == 0)
    return num_ends, is_overlong


@njit(cache=True, nogil=True)
def _encoded_sizes(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    sizes = np.empty(values.size, np.uint8)
    for i in range(values.size):
        size, rest = 1, values[i] >> _SEVEN
        while rest:
            size += 1
            rest >>= _SEVEN
        sizes[i] = size
    return sizes


@njit(cache=True, nogil=True)
def _encode(values: NDArray[np.uint64], data: NDArray[np.uint8]) -> None:
    position = 0
    for i in range(values.size):
        rest = values[i]
        while rest >= _MORE:
            data[position] = np.uint8(rest & _GROUP | _MORE)
            rest >>= _SEVEN
            position += 1
        data[position] = np.uint8(rest)
        position += 1


@njit(cache=True, nogil=True)
def _decode(data: NDArray[np.uint8], values: NDArray[np.uint64]) -> int:
    """Fills `values` from `data`, known to hold as many ends; returns the first value over 64 bits, or -1.

    Where a word's codes begin depends on the word before it, so a processor mostly waits. Decoding both halves of the
    data in turns gives it twice as much to do meanwhile.
    """
    middle = data.size // 2
    while 0 < middle < data.size and data[middle - 1] >= 0x80:
        middle += 1
    num_ends, _ = _scan(data[:middle])
    position, end, other_position, other_end = np.uint64(0), np.uint64(middle), np.uint64(middle), np.uint64(data.size)
    i, stop, other_i, other_stop = np.uint64(0), np.uint64(num_ends), np.uint64(num_ends), np.uint64(values.size)
    while (
        i + _EIGHT <= stop
        and other_i + _EIGHT <= other_stop
        and position + _EIGHT <= end
        and other_position + _EIGHT <= other_end
    ):
        size, count = decode_word(data, position, values, i)
        other_size, other_count = decode_word(data, other_position, values, other_i)
        if count == 0 or other_count == 0:
            break  # A code of nine or ten bytes.
        position, i = position + size, i + count
        other_position, other_i = other_position + other_size, other_i + other_count
    failed = int(_decode_one_by_one(data, position, values, i, stop))
    return failed if failed >= 0 else int(_decode_one_by_one(data, other_position, values, other_i, other_stop))


@njit(cache=True, nogil=True)
def _decode_one_by_one(
    data: NDArray[np.uint8], position: np.uint64, values: NDArray[np.uint64], first: np.uint64, stop: np.uint64
) -> int:
    """Fills `values[first:stop]` from `data[position:]`; returns the first value over 64 bits, or -1.

    Unsigned positions spare numba's test for negative ones.
    """
    for i in range(first, stop):
        byte = np.uint64(data[position])
        position += _ONE
        value, shift = byte & _GROUP, _SEVEN
        while byte >= _MORE:
            byte = np.uint64(data[position])
            if shift > 63 or (shift == 63 and byte > 1):
                return int(i)
            position += _ONE
            value |= (byte & _GROUP) << shift
            shift += _SEVEN
        values[i] = value
    return -1


@njit(cache=True, nogil=True)
def _accumulate(values: NDArray[np.uint64]) -> int:
    """Replaces gaps by their running sum; returns the first position that overflows, or -1."""
    total = np.uint64(0)
    for i in range(values.size):
        total += values[i]
        if total < values[i]:
            return i
        values[i] = total
    return -1
