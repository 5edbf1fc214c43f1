"""The one door to Keras: importing it imports the backend, without the chatter of TensorFlow's start-up.

Every module of `embed` that builds or runs a network takes `keras`, `layers`, `ops` and `random` from here, and only
when it needs them: the import takes seconds. An operator's terminal is no place for oneDNN's greetings.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_CHATTER: Final = re.compile(
    rb"^(WARNING: All log messages before absl::InitializeLog|[IWE]\d{4} \d|\d{4}-\d\d-\d\d .*: [IWE] "
    rb"|To enable the following instructions|.*oneDNN custom operations are on)"
)


@contextmanager
def _chatter_held_back() -> Iterator[None]:
    """Hold back what native code writes to file descriptor 2, then pass on every line that is not start-up chatter."""
    try:
        stderr = os.dup(2)
    except OSError:  # No stderr at all, as under some daemons.
        yield
        return
    with tempfile.TemporaryFile() as held:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not _CHATTER.match(line):
                    with suppress(OSError):
                        os.write(2, line)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
logging.getLogger("tensorflow").setLevel(logging.ERROR)
with _chatter_held_back():
    import keras
    from keras import layers, ops, random

__all__ = ["keras", "layers", "ops", "random"]
