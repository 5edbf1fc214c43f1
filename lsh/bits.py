"""Words of 64 bits: population count, count of trailing zeros and a mixing function, as numba kernels.

The ground floor of `lsh`: sketches count differing bits, variable-byte decoding finds the ends of integers,
blocks and candidates mix terms. numba has no `bitwise_count`, so two intrinsics reach LLVM's `ctpop` and `cttz`.

Source of `mix64`: the finaliser of SplitMix64, Steele, Lea and Flood, OOPSLA 2014,
https://doi.org/10.1145/2660193.2660195.
"""

# ruff: noqa: ARG001 - numba fixes the arguments of an intrinsic and of its code generator
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)


@intrinsic
def count_ones(typing_context: Any, word: Any) -> tuple[Any, Callable[..., Any]]:
    """Number of one bits of a uint64; only callable inside a kernel."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), codegen


@intrinsic
def count_trailing_zeros(typing_context: Any, word: Any) -> tuple[Any, Callable[..., Any]]:
    """Number of zero bits below the lowest one bit of a uint64, 64 for zero; only callable inside a kernel."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), codegen


@njit(cache=True, nogil=True)
def mix64(word: np.uint64) -> np.uint64:
    """A bijection of the 64-bit words in which every bit of the input moves about half the bits of the output."""
    word = np.uint64(word + _GOLDEN_GAMMA)
    word = (word ^ (word >> np.uint64(30))) * _FIRST_FACTOR
    word = (word ^ (word >> np.uint64(27))) * _SECOND_FACTOR
    return np.uint64(word ^ (word >> np.uint64(31)))
