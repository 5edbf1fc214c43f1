"""The inner step of variable-byte decoding: all codes that end within eight bytes, at once and without a branch.

The high bits of eight bytes say where codes end. A table gives, for each of their 256 patterns, how many codes there
are and where each begins; then eight lanes of a vector shift their code down, cut off what follows, and close the gaps
that the high bits leave. numba has no vectors, so an intrinsic writes these few instructions; LLVM turns them into
whatever the processor has.

Source of the idea: Plaisance, Kurz and Lemire, "Vectorized VByte Decoding", arXiv 1503.07387, with variable shifts in
place of byte shuffles.
"""

# ruff: noqa: ARG001, PLR0917 - numba fixes the arguments of an intrinsic and of its code generator
from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

BYTES_PER_WORD = 8

_BYTE = ir.IntType(8)
_WORD = ir.IntType(64)
_BYTE_LANES = ir.VectorType(_BYTE, BYTES_PER_WORD)
_WORD_LANES = ir.VectorType(_WORD, BYTES_PER_WORD)

_HIGH_BITS = np.uint64(0x8080808080808080)
# Moves bit 8 j to bit 56 + j, for all j at once: the pattern of high bits ends up in the top byte.
_GATHER = np.uint64(0x0102040810204080)
_SEVEN = np.uint64(7)
_EIGHT = np.uint64(8)
_TOP_BYTE = np.uint64(56)


def _pattern_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint64]]:
    """For each pattern of high bits: per lane the first bit of its code and the bits above it, and one step.

    A step is `256 * bytes + codes` of the codes that end within the word; it is 0 if none does.
    """
    first_bits, bits_above = np.zeros((256, BYTES_PER_WORD), np.uint8), np.zeros((256, BYTES_PER_WORD), np.uint8)
    steps = np.zeros(256, np.uint64)
    for pattern in range(256):
        ends = [byte for byte in range(BYTES_PER_WORD) if not pattern >> byte & 1]
        first_byte = 0
        for lane, end in enumerate(ends):
            first_bits[pattern, lane] = 8 * first_byte
            bits_above[pattern, lane] = 64 - 8 * (end + 1 - first_byte)
            first_byte = end + 1
        steps[pattern] = 256 * first_byte + len(ends)
    return first_bits.ravel(), bits_above.ravel(), steps


_FIRST_BITS, _BITS_ABOVE, _STEPS = _pattern_tables()


@njit(cache=True, nogil=True)
def decode_word(
    data: NDArray[np.uint8], position: np.uint64, values: NDArray[np.uint64], i: np.uint64
) -> tuple[np.uint64, np.uint64]:
    """Writes the codes that end within `data[position : position + 8]` to `values[i:]`; returns bytes and codes read.

    Both are 0 if no code ends there. All of `values[i : i + 8]` is overwritten; the caller sees to it that both slices
    lie within their arrays.
    """
    word = _load_word(data, position)
    pattern = (((word & _HIGH_BITS) >> _SEVEN) * _GATHER) >> _TOP_BYTE
    _store_codes(word, pattern * _EIGHT, _FIRST_BITS, _BITS_ABOVE, values, i)
    step = _STEPS[pattern]
    return step >> _EIGHT, step & np.uint64(255)


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, target: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), target.as_pointer())


def _lanes(constant: int) -> Any:
    return ir.Constant(_WORD_LANES, [constant] * BYTES_PER_WORD)


@intrinsic
def _load_word(typing_context: Any, data: Any, position: Any) -> tuple[Any, Callable[..., Any]]:
    """Eight bytes from anywhere in a uint8 array as one uint64, the first byte lowest."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.load(_address(context, builder, signature.args[0], args[0], args[1], _WORD), align=1)
        return word if sys.byteorder == "little" else builder.bswap(word)

    return types.uint64(data, types.uint64), codegen


@intrinsic
def _store_codes(
    typing_context: Any, word: Any, row: Any, first_bits: Any, bits_above: Any, values: Any, i: Any
) -> tuple[Any, Callable[..., Any]]:
    """Eight codes of `word`, cut out as the tables say from `row` on, decoded and stored to `values[i : i + 8]`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word, row, first_bits, bits_above, values, i = args
        undefined = ir.Constant(_WORD_LANES, ir.Undefined)
        first_lane = builder.insert_element(undefined, word, ir.Constant(ir.IntType(32), 0))
        all_first = ir.Constant(ir.VectorType(ir.IntType(32), BYTES_PER_WORD), [0] * BYTES_PER_WORD)
        lanes = builder.shuffle_vector(first_lane, undefined, all_first)

        def table_row(number: int, table: Any) -> Any:
            address = _address(context, builder, signature.args[number], table, row, _BYTE_LANES)
            return builder.zext(builder.load(address, align=1), _WORD_LANES)

        above = table_row(3, bits_above)
        lanes = builder.lshr(builder.shl(builder.lshr(lanes, table_row(2, first_bits)), above), above)
        # Groups of 7 bits in 8, then of 14 in 16, then of 28 in 32 move together; the masks drop the high bits.
        for shift, low, high in (
            (1, 0x007F007F007F007F, 0x3F803F803F803F80),
            (2, 0x00003FFF00003FFF, 0x0FFFC0000FFFC000),
            (4, 0x000000000FFFFFFF, 0x00FFFFFFF0000000),
        ):
            moved = builder.and_(builder.lshr(lanes, _lanes(shift)), _lanes(high))
            lanes = builder.or_(builder.and_(lanes, _lanes(low)), moved)
        builder.store(lanes, _address(context, builder, signature.args[4], values, i, _WORD_LANES), align=1)
        return context.get_dummy_value()

    return types.void(word, types.uint64, first_bits, bits_above, values, types.uint64), codegen
