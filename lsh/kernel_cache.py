"""Where compiled kernels are kept: a folder for exactly these sources.

numba compiles a kernel anew when its own file changes, but not when a function that was inlined into it does, and a
stale kernel may read memory that it must not. So the folder is named after the digest of every source of `lsh`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import platformdirs
from numba.core import config


def use_own_folder() -> None:
    """Keep the kernels of these sources apart, below `NUMBA_CACHE_DIR` or else the user's cache folder.

    Where neither can be written numba keeps its own ways: beside the sources, or not at all.
    """
    parent = Path(config.CACHE_DIR) if config.CACHE_DIR else platformdirs.user_cache_path("neardup", appauthor=False)
    folder = parent / f"kernels-{_sources_digest()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    config.CACHE_DIR = str(folder)


def _sources_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
