"""Compile the kernels of an installation before anybody waits for them.

    python -m cli.compile_kernels

Kernels are compiled when they are first called, and kept: some seventeen seconds of a first `neardup dedup`, seven of a
first `neardup serve`. So a workspace of random embeddings is made, goes through two nights and is opened to be served.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

NUM_IMAGES = 400
DIM = 256
MIN_SCORE = 0.8


def compile_kernels() -> None:
    """Call all kernels of runs, nights and lookups; raises CalledProcessError, or what opening an index raises."""
    rows = np.random.default_rng(0).standard_normal((NUM_IMAGES, DIM)).astype(np.float32)
    rows[1::2] = rows[::2] + 0.1 * rows[1::2]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as scratch:
        source, workspace = Path(scratch, "embeddings.npz"), Path(scratch, "workspace")
        for num_images in (NUM_IMAGES // 2, NUM_IMAGES):
            image_ids = np.char.zfill(np.arange(num_images).astype(np.str_), 9)
            np.savez(source, image_ids=image_ids, embeddings=rows[:num_images], digest=np.array("random"))
            command = [
                "nightly",
                str(source),
                "--workspace",
                str(workspace),
                "--min-score",
                str(MIN_SCORE),
                "--promote",
            ]
            subprocess.run(  # noqa: S603 - our own command
                [sys.executable, "-m", "cli", *command], check=True, capture_output=True, text=True
            )
        _open_to_serve(workspace)


def _open_to_serve(workspace: Path) -> None:
    from lsh.index.publishing import list_generations
    from lsh.index.queries import nothing_found
    from lsh.index.store import FolderStore
    from lsh.index.view_similarity import ViewSimilarity
    from lsh.index.views import Views
    from service.engine import Engine
    from service.upload_log import UploadLog

    index = workspace / "index"
    engine = Engine(
        FolderStore(index),
        list_generations(index)[-1].generation_id,
        partial(UploadLog, workspace / "uploads.sqlite"),
    )
    generation = engine.served.generation
    engine.close()
    # Random embeddings have no views, so none are found.
    with_views = replace(generation.manifest, view_similarity=ViewSimilarity((0.0,)))
    views = Views(with_views, owners=generation.views.owners, codes=generation.views.codes)
    views.best_images(nothing_found(1, 2), np.zeros((1, DIM), np.float32), k=1, min_similarity=0.0, excluded=None)


def main() -> None:
    """Compile, or say why not."""
    try:
        compile_kernels()
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        sys.exit(f"neardup: error: kernels were not compiled, they will be when they are called ({reason})")


if __name__ == "__main__":
    main()
