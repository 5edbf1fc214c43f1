"""Imports without what the imported module could use and never does here: a third of a short command went there.

numba looks for scipy's linear algebra, which no kernel calls, and pyarrow for pandas, whose objects it is never given.
"""

from __future__ import annotations

import importlib
import sys


class _Hidden:
    """A finder to which one module is missing."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, *_: object) -> None:
        if name == self._name:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)


def import_without(module: str, *, missing: str) -> None:
    """Import `module` as if `missing` were not installed, unless that is loaded already; it can be imported after."""
    hidden = _Hidden(missing)
    sys.meta_path.insert(0, hidden)
    try:
        importlib.import_module(module)
    finally:
        sys.meta_path.remove(hidden)
