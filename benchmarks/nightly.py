"""`python -m benchmarks nightly`: one night over a corpus that is known but for a few images, beside the full run.

Both are the real command over the same embeddings: the full run is the first night of an empty workspace, the night
goes on from a workspace that knows all but the new. They run in turns, so that a busy machine slows both; the share of
the full run's seconds is what counts, and the share of what it computed, which other work on the machine disturbs less.
Both must find the same matches, unless a bucket was over its bound: what is compared there depends on who is in it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.batch_peers import pair_keys
from benchmarks.lookup import corpus_batches
from benchmarks.neardup_run import NeardupRun, run_measured, run_neardup
from benchmarks.results import versions, write_json
from cli.tables import show_table

MIN_SCORE = 0.79
FULL = "full"
NIGHTS = {"whole": "night, whole source", "new": "night, new images alone"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one full run and the nights beside it cost, by name: seconds, seconds computed, of stages, and memory.

    `num_different` matches are only the night's or only the full run's; `num_cut_pairs` the full run never compared.
    """

    wall_s: dict[str, float]
    cpu_s: dict[str, float]
    stage_s: dict[str, dict[str, float]]
    peak_mb: dict[str, float]
    num_matches: int
    num_different: dict[str, int]
    num_cut_pairs: int

    def share(self, name: str) -> float:
        """The night's share of the full run's seconds."""
        return self.wall_s[name] / self.wall_s[FULL]

    def cpu_share(self, name: str) -> float:
        """The night's share of what the full run computed."""
        return self.cpu_s[name] / self.cpu_s[FULL]


def plant_corpus(num_images: int, *, seed: int) -> NDArray[np.float32]:
    """`(num_images, dim)` embeddings, made in batches that share their topics."""
    rows: NDArray[np.float32] | None = None
    first = 0
    for batch, _ in corpus_batches(num_images, 0, seed=seed):
        if rows is None:
            rows = np.empty((num_images, batch.shape[1]), np.float32)
        rows[first : first + len(batch)] = batch
        first += len(batch)
    assert rows is not None  # noqa: S101 - there is a batch for every image
    return rows


def write_sources(folder: Path, *, num_known: int, num_new: int, seed: int) -> dict[str, Path]:
    """The known images, all of them, and the new ones alone; families are spread over the known and the new."""
    rows = plant_corpus(num_known + num_new, seed=seed)
    image_ids = np.char.zfill(np.arange(len(rows)).astype(np.str_), 9)
    is_new = np.zeros(len(rows), np.bool_)
    is_new[np.random.default_rng(seed).choice(len(rows), num_new, replace=False)] = True
    chosen = {"known": ~is_new, "whole": np.ones(len(rows), np.bool_), "new": is_new}
    for name, is_in in chosen.items():
        np.savez(
            folder / f"{name}.npz",
            image_ids=image_ids[is_in],
            embeddings=rows[is_in],
            digest=np.array(f"planted-{seed}"),
        )
    return {name: folder / f"{name}.npz" for name in chosen}


def run_night(source: Path, workspace: Path, common: Sequence[str], *arguments: str) -> NeardupRun:
    """`neardup nightly` in a process of its own."""
    fixed = ["nightly", str(source), "--workspace", str(workspace), "--min-score", str(MIN_SCORE)]
    return run_neardup([*fixed, *common, *arguments])


def matches_of(workspace: Path) -> NDArray[np.int64]:
    """The keys, ascending, of all matches of the night that counts; an image id is its number in digits."""
    from batch_jobs.nights import current_night, known_of, live_images, read_columns

    known = known_of(workspace, current_night(workspace))
    images = live_images(known, ["image_id"])
    numbers = np.zeros(int(images["doc"].to_numpy().max()) + 1, np.int64)
    numbers[images["doc"].to_numpy()] = np.array(images["image_id"].to_pylist(), np.str_).astype(np.int64)
    ends = read_columns(known.edges, ["left_doc", "right_doc"])
    pairs = np.column_stack([numbers[ends[column].to_numpy()] for column in ("left_doc", "right_doc")])
    return np.sort(pair_keys(pairs, len(numbers)))


class KnownWorkspace:
    """A workspace with one night over the known images, put back to that night after each further one."""

    def __init__(self, folder: Path, source: Path, common: Sequence[str]) -> None:
        self.folder = folder
        run_night(source, folder, common)
        self._pointer = (folder / "nights" / "current.json").read_bytes()
        self._steps = set((folder / "steps").iterdir())

    def put_back(self) -> None:
        """Make the first night the one that counts, and remove what later ones have written."""
        (self.folder / "nights" / "current.json").write_bytes(self._pointer)
        for step in set((self.folder / "steps").iterdir()) - self._steps:
            shutil.rmtree(step)


def take_turn(folder: Path, known: KnownWorkspace, sources: dict[str, Path], common: Sequence[str]) -> Turn:
    """A full run, a night over the whole source, a night over the new images."""
    full_folder = folder / "full"
    full = run_night(sources["whole"], full_folder, common)
    wanted = matches_of(full_folder)
    (commit,) = (full_folder / "steps").glob("candidates-*/commit.json")
    num_cut_pairs = json.loads(commit.read_text("utf-8"))["stats"]["num_cut_pairs"]
    shutil.rmtree(full_folder)
    nights, num_different = {}, {}
    for name, arguments in (("whole", []), ("new", ["--keep-missing"])):
        nights[name] = run_night(sources[name], known.folder, common, *arguments)
        num_different[name] = np.setxor1d(matches_of(known.folder), wanted, assume_unique=True).size
        known.put_back()
    runs = {FULL: full, **nights}
    return Turn(
        wall_s={name: run.wall_s for name, run in runs.items()},
        cpu_s={name: run.cpu_s for name, run in runs.items()},
        stage_s={name: run.stage_s for name, run in runs.items()},
        peak_mb={name: run.peak_mb for name, run in runs.items()},
        num_matches=wanted.size,
        num_different=num_different,
        num_cut_pairs=num_cut_pairs,
    )


def show(turns: Sequence[Turn], num_known: int, num_new: int) -> None:
    """The table of all turns' medians."""
    lines = [
        [
            label,
            f"{median(turn.share(name) for turn in turns):.2f}",
            f"{median(turn.cpu_share(name) for turn in turns):.2f}",
            f"{median(turn.wall_s[name] for turn in turns):,.1f}",
            _memory(turns, name),
            _stages(turns, name),
        ]
        for name, label in {FULL: "full run", **NIGHTS}.items()
    ]
    title = f"{num_new:,} new images against {num_known:,} known"
    show_table(title, ["", "share", "of CPU", "seconds", "memory", "stages"], lines)


def _memory(turns: Sequence[Turn], name: str) -> str:
    return f"{max(turn.peak_mb[name] for turn in turns):,.0f} MB"


def _stages(turns: Sequence[Turn], name: str) -> str:
    stages = turns[0].stage_s[name]
    return " ".join(f"{stage} {median(turn.stage_s[name][stage] for turn in turns):.1f}" for stage in stages)


@click.command()
@click.option(
    "--images", "num_images", type=click.IntRange(min=2000), default=200_000, show_default=True, help="Known."
)
@click.option("--new", "num_new", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--runs", "num_runs", type=click.IntRange(1), default=1, show_default=True, help="Turns; medians count.")
@click.option("--master", help="Spark master. [default: this machine, without Spark for small steps]")
@click.option("--tuned", is_flag=True, help="By a plan of `neardup tune` for the known images.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(
    *, num_images: int, num_new: int, num_runs: int, master: str | None, tuned: bool, seed: int, json_path: Path | None
) -> None:
    """Time one night beside the full run over the same embeddings, and compare their matches.

    Example: python -m benchmarks nightly --images 200000 --new 10000 --json nightly.json
    """
    with tempfile.TemporaryDirectory(prefix="neardup-benchmark-") as scratch:
        folder = Path(scratch)
        sources = write_sources(folder, num_known=num_images, num_new=num_new, seed=seed)
        common = ["--master", master] if master else []
        if tuned:
            arguments = ["tune", str(sources["known"]), "--min-score", str(MIN_SCORE)]
            run_measured(["-m", "cli", *arguments, "--output", str(folder / "plan.json"), "--json"])
            common += ["--plan", str(folder / "plan.json")]
        known = KnownWorkspace(folder / "known", sources["known"], common)
        turns = [take_turn(folder, known, sources, common) for _ in range(num_runs)]
    show(turns, num_images, num_new)
    num_different = max(max(turn.num_different.values()) for turn in turns)
    num_cut_pairs = turns[0].num_cut_pairs
    click.echo(
        f"{num_different:,} of {turns[0].num_matches:,} matches differ; in buckets over their bound {num_cut_pairs:,} "
        "pairs were not compared"
    )
    figures: dict[str, Any] = {
        "benchmark": "nightly",
        "images": num_images,
        "new": num_new,
        "min_score": MIN_SCORE,
        "master": master,
        "tuned": tuned,
        "seed": seed,
        "versions": versions("pyspark", "numpy", "numba", "pyarrow"),
        "share": {name: median(turn.share(name) for turn in turns) for name in NIGHTS},
        "cpu_share": {name: median(turn.cpu_share(name) for turn in turns) for name in NIGHTS},
        "num_different_matches": num_different,
        "turns": [asdict(turn) for turn in turns],
    }
    write_json(json_path, figures)
    if num_different and not num_cut_pairs:
        raise click.ClickException("a night and the full run found different matches")
