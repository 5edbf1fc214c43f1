"""Variable-byte codes: integers of up to 64 bits in 1 to 10 bytes, small ones in one.

Seven bits a byte, the lowest group first; the high bit says that more bytes follow. Each integer has exactly one code:
a code whose last group is zero, longer than it need be, is refused. Worked example: 300 = 0b10_0101100 is `AC 02`.
The bytes of posting lists and shuffle blocks; `FORMAT.md` shows them in place.

Decoding checks as it goes, in one pass; `vector_decoding` holds its inner steps. Only bytes that fail are read again,
to say what is wrong with them.

Source: Thiel and Heaps, 1972, by way of Manning, Raghavan and Schuetze, "Introduction to Information Retrieval",
section 5.3.1; the layout is that of Protocol Buffers, https://protobuf.dev/programming-guides/encoding/#varints.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.bits import count_ones
from lsh.errors import FormatError, ParameterError
from lsh.vector_decoding import (
    BYTES_READ,
    LONG_STEP,
    SHORT_STEP,
    high_bits,
    store_bytes,
    store_long_codes,
    store_short_codes,
    zero_bytes,
)

MAX_BYTES_PER_VALUE = 10

_MORE = np.uint64(0x80)
_GROUP = np.uint64(0x7F)
_ONE = np.uint64(1)
_SEVEN = np.uint64(7)
_READ = np.uint64(BYTES_READ)
_SHORT_STEP, _LONG_STEP = np.uint64(SHORT_STEP), np.uint64(LONG_STEP)
_BITS_OF_SHORT_STEP, _BITS_OF_LONG_STEP = np.uint64((1 << SHORT_STEP) - 1), np.uint64((1 << LONG_STEP) - 1)
_SOUND = -1
_DAMAGED = -2


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
    data, values = _checked_data(data, count)
    if _decode(data, values) != _SOUND:
        raise _damage(data, count)
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
    data, values = _checked_data(data, count)
    position = _decode_sorted(data, values)
    if position == _DAMAGED:
        raise _damage(data, count)
    if position != _SOUND:
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


def _checked_data(data: NDArray[np.uint8], count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """The data, contiguous, and room for its values; no more than there can be, whatever a damaged count asks for."""
    if data.ndim != 1 or data.dtype != np.uint8:
        raise ParameterError(f"data of shape {data.shape} and dtype {data.dtype} given; pass (size_bytes,) uint8")
    if count < 0:
        raise ParameterError(f"count={count} is out of range; pass the number of values encoded, 0 or more")
    if count > data.size:
        raise _damage(data, count)
    return np.ascontiguousarray(data), np.empty(count, dtype=np.uint64)


def _damage(data: NDArray[np.uint8], count: int) -> FormatError:
    """What is wrong with bytes that do not decode to `count` values."""
    is_end = data < _MORE
    num_ends = int(np.count_nonzero(is_end))
    if data.size and not is_end[-1]:
        return FormatError(f"{data.size} variable bytes stop in the middle of a value; they are truncated")
    if num_ends != count:
        return FormatError(f"{data.size} variable bytes hold {num_ends} values, expected {count}")
    if np.any(~is_end[:-1] & (data[1:] == 0)):
        return FormatError("a variable-byte value is longer than it need be; the bytes are damaged")
    sizes = np.diff(np.flatnonzero(is_end), prepend=-1)
    is_over = (sizes > MAX_BYTES_PER_VALUE) | ((sizes == MAX_BYTES_PER_VALUE) & (data[is_end] > 1))
    position = int(np.argmax(is_over))
    return FormatError(f"variable-byte value {position} of {count} does not fit in 64 bits; the bytes are damaged")


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
    """Fills `values` from `data`; whether these are the canonical codes of as many values: `_SOUND`, or `_DAMAGED`.

    Unsigned positions spare numba's test for negative ones.
    """
    size, count = np.uint64(data.size), np.uint64(values.size)
    if size and data[size - _ONE] >= 0x80:
        return _DAMAGED
    position, i, is_sound = np.uint64(0), np.uint64(0), True
    while is_sound and i < count and position < size:
        position, i, is_sound = _decode_by_vectors(data, position, values, i)
        if is_sound:
            # A code that is too long for a vector and some that follow it, or all those near the end.
            stop = i + _READ if position + _READ <= size and i + _READ <= count else count
            position, i, is_sound = _decode_one_by_one(data, position, values, i, stop)
    return _SOUND if is_sound and i == count and position == size else _DAMAGED


@njit(cache=True, nogil=True)
def _decode_one_by_one(
    data: NDArray[np.uint8], position: np.uint64, values: NDArray[np.uint64], i: np.uint64, stop: np.uint64
) -> tuple[np.uint64, np.uint64, bool]:
    """Fills `values[i:stop]` from `data[position:]`, whose last byte ends a code, as far as there are codes.

    Returns where the next code begins, how many values there are then, and whether all codes were sound.
    """
    size = np.uint64(data.size)
    while i < stop and position < size:
        byte = np.uint64(data[position])
        position += _ONE
        value, shift = byte & _GROUP, _SEVEN
        while byte >= _MORE:
            byte = np.uint64(data[position])
            if byte == 0 or shift > 63 or (shift == 63 and byte > 1):
                return position, i, False
            position += _ONE
            value |= (byte & _GROUP) << shift
            shift += _SEVEN
        values[i] = value
        i += _ONE
    return position, i, True


@njit(cache=True, nogil=True)
def _decode_by_vectors(
    data: NDArray[np.uint8], position: np.uint64, values: NDArray[np.uint64], i: np.uint64
) -> tuple[np.uint64, np.uint64, bool]:
    """As `_decode_one_by_one`, up to near the end or near a code of more than eight bytes.

    `is_inside` is 1 where a step's first byte goes on with a code of the step before, which has decoded all of it.
    """
    size, count = np.uint64(data.size), np.uint64(values.size)
    is_inside, overlong = np.uint64(0), np.uint64(0)
    while position + _READ <= size and i + _READ <= count:
        high = high_bits(data, position)
        if high | is_inside == 0:
            store_bytes(data, position, values, i)
            position, i = position + _READ, i + _READ
            continue
        inside = high << _ONE | is_inside
        overlong |= inside & zero_bytes(data, position)
        beyond_four = high & high >> np.uint64(1) & high >> np.uint64(2) & high >> np.uint64(3)
        starts = ~inside & _BITS_OF_SHORT_STEP
        if starts & beyond_four == 0:
            store_short_codes(data, position, starts, values, i)
            step = _SHORT_STEP
        else:
            starts &= _BITS_OF_LONG_STEP
            if starts & beyond_four & beyond_four >> np.uint64(4):
                break
            store_long_codes(data, position, starts, values, i)
            step = _LONG_STEP
        is_inside = inside >> step & _ONE
        position, i = position + step, i + count_ones(starts)
    while is_inside:
        overlong |= np.uint64(data[position] == 0)
        is_inside = np.uint64(data[position] >= 0x80)
        position += _ONE
    return position, i, overlong == 0


@njit(cache=True, nogil=True)
def _decode_sorted(data: NDArray[np.uint8], values: NDArray[np.uint64]) -> int:
    """Fills `values` with the running sums of the values in `data`; `_DAMAGED`, or as `_accumulate` returns."""
    is_sound = _decode(data, values) == _SOUND
    return _accumulate(values) if is_sound else _DAMAGED


@njit(cache=True, nogil=True)
def _accumulate(values: NDArray[np.uint64]) -> int:
    """Replaces gaps by their running sum; returns the first position that overflows, or `_SOUND`."""
    total = np.uint64(0)
    for i in range(values.size):
        total += values[i]
        if total < values[i]:
            return i
        values[i] = total
    return _SOUND
