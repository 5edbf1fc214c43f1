"""What `neardup` says with its exit status."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """0 is success; every failure that an operator can mend has a number of its own."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    SOURCE = 3
    WORKSPACE = 4
    REJECTED = 5
    SPARK = 6
    EMBEDDER = 7
    TRAINING = 8
    EVALUATION = 9
    MODEL = 10
    SERVICE = 11
    STORE = 12
    INTERRUPTED = 130
