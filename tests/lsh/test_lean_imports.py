"""Rules of imports without what is never used: short commands do not wait for it; whoever needs it still gets it."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("program", "missing"),
    [
        (
            "import numpy as np; from lsh.bits import mix64; from lsh.crowds import doc_ranks;"
            "doc_ranks(np.arange(3, dtype=np.uint64))",
            "scipy.linalg",
        ),
        ("import batch_jobs.nightly, pyarrow as pa; pa.table({'a': [1, 2]}).to_pylist()", "pandas"),
    ],
)
def test_what_is_never_used_is_not_loaded(program: str, missing: str) -> None:
    """Neither by importing nor by the first use, and it can be imported after."""
    check = f"import sys; assert {missing!r} not in sys.modules; import {missing}"
    subprocess.run([sys.executable, "-c", f"{program}\n{check}"], check=True)
