"""Rules of the nightly benchmark's sources and shares; its runs are the real command."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from batch_jobs.sources import read_embeddings
from benchmarks.nightly import Turn, write_sources


def test_known_and_new_make_the_whole(tmp_path: Path) -> None:
    """Every image is known or new, with the row that the whole has for it; the new ones lie anywhere."""
    sources = write_sources(tmp_path, num_known=180, num_new=20, seed=0)
    known, whole, new = (read_embeddings(sources[name]) for name in ("known", "whole", "new"))
    assert (len(known.image_ids), len(new.image_ids)) == (180, 20)
    order = np.argsort(np.concatenate([known.image_ids, new.image_ids]))
    np.testing.assert_array_equal(np.concatenate([known.embeddings, new.embeddings])[order], whole.embeddings)
    assert known.digest == whole.digest == new.digest
    assert int(new.image_ids.astype(np.int64).min()) < 100


def test_a_share_is_of_the_full_run() -> None:
    """Seconds and computed seconds are divided by the full run's."""
    turn = Turn(
        wall_s={"full": 50.0, "whole": 10.0},
        cpu_s={"full": 100.0, "whole": 5.0},
        stage_s={},
        peak_mb={},
        num_matches=0,
        num_different={},
        num_cut_pairs=0,
    )
    assert turn.share("whole") == 0.2
    assert turn.cpu_share("whole") == 0.05
