"""What native libraries write to standard error when they start, held back: it is no news to an operator."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_CHATTER: Final = re.compile(
    rb"^(WARNING: All log messages before absl::InitializeLog|[IWE]\d{4} \d|\d{4}-\d\d-\d\d .*: [IWE] "
    rb"|To enable the following instructions|.*oneDNN custom operations are on"
    rb"|INFO: Created TensorFlow Lite XNNPACK delegate|fully_quantize: )"
)


@contextmanager
def chatter_held_back() -> Iterator[None]:
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
