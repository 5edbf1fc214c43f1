"""Words of 64 bits: population count and a mixing function, and the bits of a float, as numba kernels.

The ground floor of `lsh`: sketches and candidates count differing bits, blocks and candidates mix terms, probes order
floats as words. numba has no `bitwise_count`, so an intrinsic reaches LLVM's `ctpop`.

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
def bits_of(typing_context: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
    """The bits of a float32 as uint32, in the order of the floats where none is negative; only in a kernel."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@njit(cache=True, nogil=True)
def mix64(word: np.uint64) -> np.uint64:
    """A bijection of the 64-bit words in which every bit of the input moves about half the bits of the output."""
    word = np.uint64(word + _GOLDEN_GAMMA)
    word = (word ^ (word >> np.uint64(30))) * _FIRST_FACTOR
    word = (word ^ (word >> np.uint64(27))) * _SECOND_FACTOR
    return np.uint64(word ^ (word >> np.uint64(31)))
