"""The inner steps of variable-byte decoding: all codes that begin within sixteen bytes, at once and without a branch.

A code of up to four bytes lies within the 32-bit word from its first byte on. So sixteen lanes of a vector take the
words from sixteen bytes on, each cuts off what follows the first byte without a high bit and closes the gaps that the
high bits leave; then the lanes where no code begins are left out. The next step is sixteen bytes on, not where the last
code ended, so no step waits for the one before. Codes of up to eight bytes take eight lanes of 64 bits. Where 32 bytes
in a row are codes of their own, they are only widened.

numba has no vectors, so intrinsics write these few instructions, and LLVM turns them into whatever the processor has.
Only leaving out lanes is chosen here: one instruction of AVX-512, or else a table of the lanes that stay.

Source of the idea: Plaisance, Kurz and Lemire, "Vectorized VByte Decoding", arXiv 1503.07387, which shuffles bytes by
tables before it decodes them.
"""

# ruff: noqa: ARG001, PLR0917 - numba fixes the arguments of an intrinsic and of its code generator
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

BYTES_READ = 32
"""What every step reads, and the values that the widest one writes."""
SHORT_STEP = 16
"""Bytes whose codes of up to four bytes are decoded at once."""
LONG_STEP = 8
"""Bytes whose codes of up to eight bytes are decoded at once."""

# A constant of compiled kernels: numba keeps those of processors with other features apart.
SQUEEZES_LANES = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")

_LANES_PER_ROW = 8
_BITS_PER_VECTOR = 512
_BYTE, _INDEX, _VALUE = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_BYTES = ir.VectorType(_BYTE, BYTES_READ)


def _lanes_that_stay() -> bytearray:
    """For each pattern of eight bits a row of the numbers of those set, filled up with zeros."""
    rows = bytearray(_LANES_PER_ROW << _LANES_PER_ROW)
    for pattern in range(1 << _LANES_PER_ROW):
        lanes = [lane for lane in range(_LANES_PER_ROW) if pattern >> lane & 1]
        rows[_LANES_PER_ROW * pattern : _LANES_PER_ROW * pattern + len(lanes)] = bytes(lanes)
    return rows


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, target: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), target.as_pointer())


def _load_bytes(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.load(_address(context, builder, signature.args[0], args[0], args[1], _BYTES), align=1)


def _bits_of_bytes(relation: str) -> Callable[..., Any]:
    """A code generator: bit `j` says whether byte `position + j`, as a signed number, has the `relation` to zero."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        held = builder.icmp_signed(relation, _load_bytes(context, builder, signature, args), ir.Constant(_BYTES, None))
        return builder.zext(builder.bitcast(held, ir.IntType(BYTES_READ)), _VALUE)

    return codegen


@intrinsic
def high_bits(typing_context: Any, data: Any, position: Any) -> tuple[Any, Callable[..., Any]]:
    """The high bits of `data[position : position + 32]` as a uint64, that of the first byte lowest."""
    return types.uint64(data, types.uint64), _bits_of_bytes("<")


@intrinsic
def zero_bytes(typing_context: Any, data: Any, position: Any) -> tuple[Any, Callable[..., Any]]:
    """Which of `data[position : position + 32]` are zero, as bits of a uint64, that of the first byte lowest."""
    return types.uint64(data, types.uint64), _bits_of_bytes("==")


@intrinsic
def store_bytes(typing_context: Any, data: Any, position: Any, values: Any, i: Any) -> tuple[Any, Callable[..., Any]]:
    """`values[i : i + 32] = data[position : position + 32]`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values_type = ir.VectorType(_VALUE, BYTES_READ)
        widened = builder.zext(_load_bytes(context, builder, signature, args), values_type)
        builder.store(widened, _address(context, builder, signature.args[2], args[2], args[3], values_type), align=1)
        return context.get_dummy_value()

    return types.void(data, types.uint64, values, types.uint64), codegen


def storing_codes(num_lanes: int, *, squeezes_lanes: bool) -> Callable[..., Any]:
    """An intrinsic that decodes the codes that begin within `num_lanes` bytes: `SHORT_STEP` or `LONG_STEP`."""
    bits_per_lane = _BITS_PER_VECTOR // num_lanes
    lanes_type = ir.VectorType(ir.IntType(bits_per_lane), num_lanes)

    def all_lanes(pattern: int, bits: int) -> Any:
        """A constant: `pattern` repeated every so many `bits`, in all lanes."""
        return ir.Constant(lanes_type, [sum(pattern << bit for bit in range(0, bits_per_lane, bits))] * num_lanes)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        content = _load_bytes(context, builder, signature, args)
        places = [lane + byte for lane in range(num_lanes) for byte in range(bits_per_lane // 8)]
        chosen = ir.Constant(ir.VectorType(_INDEX, len(places)), places)
        words = builder.shuffle_vector(content, ir.Constant(_BYTES, ir.Undefined), chosen)
        lanes = builder.bitcast(words, lanes_type)
        ends = builder.and_(builder.not_(lanes), all_lanes(0x80, 8))
        to_first_end = builder.xor(ends, builder.sub(ends, all_lanes(1, bits_per_lane)))
        lanes = builder.and_(builder.and_(lanes, to_first_end), all_lanes(0x7F, 8))
        # Groups of 7 bits in 8, then of 14 in 16, then of 28 in 32 move together.
        group = 1
        while 8 * group < bits_per_lane:
            low = (1 << 7 * group) - 1
            moved = builder.lshr(lanes, all_lanes(group, bits_per_lane))
            moved = builder.and_(moved, all_lanes(low << 7 * group, 16 * group))
            lanes = builder.or_(builder.and_(lanes, all_lanes(low, 16 * group)), moved)
            group *= 2
        address = _address(context, builder, signature.args[3], args[3], args[4], _VALUE)
        (_store_squeezed if squeezes_lanes else _store_picked)(builder, lanes, args[2], address)
        return context.get_dummy_value()

    @intrinsic
    def store_codes(
        typing_context: Any, data: Any, position: Any, starts: Any, values: Any, i: Any
    ) -> tuple[Any, Callable[..., Any]]:
        return types.void(data, types.uint64, types.uint64, values, types.uint64), codegen

    return store_codes  # type: ignore[no-any-return]


def _store_squeezed(builder: Any, lanes: Any, starts: Any, address: Any) -> None:
    """Stores the `lanes` that `starts` has bits for, one after the other, by AVX-512."""
    num_lanes, bits_per_lane = lanes.type.count, lanes.type.element.width
    chosen_type = ir.VectorType(ir.IntType(1), num_lanes)
    squeeze = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(lanes.type, [lanes.type, lanes.type, chosen_type]),
        f"llvm.x86.avx512.mask.compress.v{num_lanes}i{bits_per_lane}",
    )
    chosen = builder.bitcast(builder.trunc(starts, ir.IntType(num_lanes)), chosen_type)
    lanes = builder.call(squeeze, [lanes, ir.Constant(lanes.type, None), chosen])
    values_type = ir.VectorType(_VALUE, num_lanes)
    values = builder.zext(lanes, values_type) if bits_per_lane < _VALUE.width else lanes
    builder.store(values, builder.bitcast(address, values_type.as_pointer()), align=1)


def _store_picked(builder: Any, lanes: Any, starts: Any, address: Any) -> None:
    """As `_store_squeezed`, on any processor: the lanes go to memory, and a table picks from each eight of them."""
    table_type = ir.ArrayType(_BYTE, _LANES_PER_ROW << _LANES_PER_ROW)
    rows = cgutils.global_constant(builder, "lanes_that_stay", ir.Constant(table_type, _lanes_that_stay()))
    rows = builder.bitcast(rows, _BYTE.as_pointer())
    memory = cgutils.alloca_once(builder, lanes.type)
    builder.store(lanes, memory)
    lane_address = builder.bitcast(memory, lanes.type.element.as_pointer())
    for first in range(0, lanes.type.count, _LANES_PER_ROW):
        pattern = builder.and_(builder.lshr(starts, ir.Constant(_VALUE, first)), ir.Constant(_VALUE, 0xFF))
        row = builder.gep(rows, [builder.mul(pattern, ir.Constant(_VALUE, _LANES_PER_ROW))])
        for place in range(_LANES_PER_ROW):
            lane = builder.zext(builder.load(builder.gep(row, [ir.Constant(_VALUE, place)])), _VALUE)
            lane = builder.add(lane, ir.Constant(_VALUE, first))
            value = builder.zext(builder.load(builder.gep(lane_address, [lane])), _VALUE)
            builder.store(value, builder.gep(address, [ir.Constant(_VALUE, place)]))
        address = builder.gep(address, [builder.ctpop(pattern)])


store_short_codes = storing_codes(SHORT_STEP, squeezes_lanes=SQUEEZES_LANES)
"""`store_short_codes(data, position, starts, values, i)` decodes codes of up to four bytes to `values[i:]`.

`starts` has bits, among its lowest 16, where codes begin from `position` on. All of `values[i : i + 16]` may be
overwritten, and `data[position : position + 32]` is read. Only callable inside a kernel, as all of these.
"""

store_long_codes = storing_codes(LONG_STEP, squeezes_lanes=SQUEEZES_LANES)
"""As `store_short_codes`, for codes of up to eight bytes, the lowest 8 bits of `starts`, and `values[i : i + 8]`."""
