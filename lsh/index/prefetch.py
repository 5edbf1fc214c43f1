"""Asking the processor for memory before it is needed: postings, sketches and codes lie at random places of files.

A lookup knows which rows it will read long before it reads them; without asking it would wait some 100 ns for each.
"""

# ruff: noqa: ARG001 - numba fixes the arguments of an intrinsic and of its code generator
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

_LINE_BYTES = 64
_READ, _KEEP, _DATA = 0, 3, 1


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> tuple[Any, Callable[..., Any]]:
    """Ask for the cache line of `array[index]`, an array of one dimension; an index outside does no harm."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte_pointer = ir.IntType(8).as_pointer()
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), byte_pointer)
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, word, word, word])
        function = builder.module.globals.get("llvm.prefetch.p0i8") or ir.Function(
            builder.module, kind, "llvm.prefetch.p0i8"
        )
        builder.call(function, [address, *(ir.Constant(word, value) for value in (_READ, _KEEP, _DATA))])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@njit(cache=True, nogil=True)
def prefetch_row(rows: NDArray[np.int8], row: int) -> None:
    """Ask for all cache lines of one row of `(n, row_bytes)` int8."""
    whole = rows.reshape(-1)
    first = row * rows.shape[1]
    for offset in range(0, rows.shape[1], _LINE_BYTES):
        prefetch(whole, first + offset)
