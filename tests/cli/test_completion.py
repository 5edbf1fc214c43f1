"""Rules of `neardup completion`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script(shell: str) -> None:
    """The script asks `neardup` itself what fits."""
    run = [sys.executable, "-m", "cli", "completion", shell]
    result = subprocess.run(run, capture_output=True, text=True, check=True)
    assert "_NEARDUP_COMPLETE" in result.stdout


def test_commands_and_options_are_completed() -> None:
    """What bash asks for on the way to `neardup index rollback --workspace`."""
    program = "import sys; sys.argv[0] = 'neardup'; from cli.main import main; main()"
    for words, expected in (("neardup ind", "index"), ("neardup index roll", "rollback")):
        answered = subprocess.run(
            [sys.executable, "-c", program],
            env={
                **os.environ,
                "_NEARDUP_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(words.count(" ")),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert expected in answered.stdout
