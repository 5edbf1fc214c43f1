"""Rules of the command line as a whole."""

from __future__ import annotations

import subprocess
import sys

from cli.exit_codes import ExitCode

INTERRUPTED_IN_A_CALLBACK = """
import signal, time, weakref
from cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # the child of a background job would ignore it

class Thing:
    pass

def work(**_):
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    time.sleep(30)

main.neardup.main = work
main.main()
"""


def test_ctrl_c_counts_wherever_it_strikes() -> None:
    """In a callback of the interpreter's, too, where Python prints an interrupt and goes on."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IN_A_CALLBACK], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == ExitCode.INTERRUPTED
    assert done.stderr == "neardup: interrupted; run the same command again to go on where it stopped\n"
