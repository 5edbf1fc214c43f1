"""Rules of the benchmarks' command line."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from benchmarks.__main__ import SUMMARIES, main


def test_the_help_lists_every_benchmark_and_loads_none() -> None:
    """`python -m benchmarks --help` imports neither TensorFlow, Spark nor a peer's package."""
    code = (
        "import sys\n"
        "from benchmarks.__main__ import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print(sorted({'keras', 'tensorflow', 'pyspark', 'numba', 'pdqhash'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"
    assert all(f"  {name} " in printed for name in SUMMARIES)


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_listed_benchmark_is_a_command_with_help(name: str) -> None:
    """Each name leads to a command whose help says what it measures."""
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.help


def test_an_unknown_benchmark_is_a_usage_error() -> None:
    """A wrong name is refused by name."""
    with pytest.raises(click.UsageError, match="No such command 'nothing'"):
        main(["nothing"], standalone_mode=False)
