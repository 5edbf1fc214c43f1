"""Rules of the package as a whole."""

from __future__ import annotations

import doctest
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

import lsh

MODULES = [module.name for module in pkgutil.walk_packages(lsh.__path__, "lsh.")]


def test_importing_lsh_loads_nothing_heavy() -> None:
    """Importing every module of `lsh` loads neither TensorFlow, nor Spark, nor gRPC."""
    heavy = "{'tensorflow', 'keras', 'pyspark', 'grpc', 'pyarrow'}"
    program = f"import sys, {', '.join(MODULES)}; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert result.stdout == "set()\n"


@pytest.mark.parametrize("name", MODULES)
def test_worked_numbers_in_docstrings_hold(name: str) -> None:
    """The examples in a module's docstrings give what they say."""
    assert doctest.testmod(import_module(name)).failed == 0
