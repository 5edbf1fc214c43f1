"""`python -m benchmarks kills`: real processes of a run killed at random moments, and its tables afterwards.

Every run is the whole `neardup dedup` of embeddings on a standalone cluster. A driver that was killed is started
again; a Python worker or an executor is replaced by Spark. In the end all tables must hold the rows of a run that
nobody disturbed, and the clusters the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import click
import numpy as np
import psutil
import pyarrow.parquet as pq

from benchmarks.batch_embeddings import plant_embeddings
from benchmarks.results import versions, write_json
from benchmarks.standalone import StandaloneCluster, kill_tree, standalone_cluster
from cli.tables import show_table

POLL_S = 0.02
TABLES = ("catalogue", "embeddings", "codes", "edges", "rejects", "clusters")
"""Those that hold rows; the others hold blocks, whose packing follows the number of tasks."""


class Victim(StrEnum):
    """What is killed."""

    DRIVER = "driver"
    EXECUTOR = "executor"
    PYTHON_WORKER = "python_worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One disturbed run: when in it what was killed, whether something was there to be killed, and what was left."""

    victim: Victim
    moment_s: float
    hit: bool
    restarts: int
    wall_s: float
    same_tables: bool


def start_dedup(
    source: Path, workspace: Path, *options: str, master: str, environment: Mapping[str, str] | None = None
) -> psutil.Popen:
    """`neardup dedup` in a process of its own; its messages go to `dedup.log` beside the workspace."""
    command = [sys.executable, "-m", "cli", "dedup", str(source), "--workspace", str(workspace), "--master", master]
    with workspace.with_suffix(".log").open("ab") as log:
        return psutil.Popen(
            [*command, *options, "--json"],
            stdout=log,
            stderr=log,
            env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", **(environment or {})},
        )


def disturb(run: psutil.Popen, cluster: StandaloneCluster, victim: Victim, *, moment_s: float, pick: int) -> bool:
    """Kill a victim `moment_s` after the start, or as soon as there is one; False when the run ended before.

    `pick` chooses among several, and for a driver whether its JVM dies with it or is left to notice.
    """
    started = time.monotonic()
    candidates: dict[Victim, Callable[[], Sequence[psutil.Process]]] = {
        Victim.DRIVER: lambda: [run],
        Victim.EXECUTOR: cluster.executors,
        Victim.PYTHON_WORKER: cluster.python_workers,
    }
    while run.poll() is None:
        there = candidates[victim]() if time.monotonic() - started >= moment_s else ()
        if there:
            chosen = there[pick % len(there)]
            if victim is Victim.DRIVER and pick % 2:
                kill_tree(chosen)
                return True
            try:
                chosen.kill()
            except psutil.NoSuchProcess:
                continue
            return True
        time.sleep(POLL_S)
    return False


def finish(start: Callable[[], psutil.Popen], run: psutil.Popen, *, attempts: int = 3) -> int:
    """Wait for a run and start it again until it succeeds; returns how often it was started again."""
    for restarts in range(attempts):
        if run.wait() == 0:
            return restarts
        run = start()
    if run.wait() == 0:
        return attempts
    raise click.ClickException(f"{' '.join(run.args)} failed {attempts + 1} times; see its log")


def table_digests(workspace: Path) -> dict[str, str]:
    """The SHA-256 of each committed table's rows in a fixed order, of `clusters` that of its file."""
    digests = {}
    for name in TABLES:
        for table in sorted(workspace.glob(f"steps/*/{name}")):
            if name == "clusters":
                content = b"".join(path.read_bytes() for path in sorted(table.glob("*.parquet")))
            else:
                rows = pq.read_table(table)
                rows = rows.sort_by([(column, "ascending") for column in rows.column_names])
                content = repr(rows.to_pylist()).encode()
            digests[f"{table.parent.name}/{name}"] = hashlib.sha256(content).hexdigest()
    return digests


@click.command()
@click.option("--moments", type=click.IntRange(min=1), default=30, show_default=True, help="Runs to disturb.")
@click.option("--images", "num_images", type=click.IntRange(min=100), default=20_000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(*, moments: int, num_images: int, seed: int, json_path: Path | None) -> None:
    """Kill the driver, an executor or a Python worker at random moments of real runs; compare the tables afterwards."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="neardup-kills-") as name:
        folder = Path(name)
        source = folder / "embeddings.npz"
        embeddings = plant_embeddings(num_images, seed=seed).embeddings
        ids = np.array([f"image-{row:08d}" for row in range(len(embeddings))])
        np.savez(source, image_ids=ids, embeddings=embeddings, digest=np.array("made for a test"))
        (folder / "cluster").mkdir()
        with standalone_cluster(folder / "cluster") as cluster:

            def start(workspace: Path) -> psutil.Popen:
                return start_dedup(source, workspace, "--min-score", "0.8", master=cluster.master)

            started = time.monotonic()
            if start(folder / "undisturbed").wait() != 0:
                raise click.ClickException((folder / "undisturbed.log").read_text())
            duration_s = time.monotonic() - started
            wanted = table_digests(folder / "undisturbed")
            outcomes = []
            for number in range(moments):
                outcome = _disturbed(
                    folder / f"run-{number}",
                    start,
                    cluster,
                    victim=list(Victim)[number % len(Victim)],
                    moment_s=float(rng.uniform(0.0, duration_s)),
                    pick=int(rng.integers(1 << 16)),
                    wanted=wanted,
                )
                outcomes.append(outcome)
                click.echo(
                    f"{outcome.victim} at {outcome.moment_s:.1f} s: same tables: {outcome.same_tables}", err=True
                )
    show_table("kills", ("victim", "runs", "killed", "started again", "same tables"), _rows(outcomes))
    figures = {"undisturbed_s": duration_s, "outcomes": [asdict(outcome) for outcome in outcomes]}
    write_json(json_path, {"versions": versions("pyspark", "pyarrow", "numpy"), **figures})
    if not all(outcome.same_tables for outcome in outcomes):
        raise click.ClickException("a disturbed run ended in other tables")


def _disturbed(
    workspace: Path,
    start: Callable[[Path], psutil.Popen],
    cluster: StandaloneCluster,
    *,
    victim: Victim,
    moment_s: float,
    pick: int,
    wanted: Mapping[str, str],
) -> Outcome:
    started = time.monotonic()
    run = start(workspace)
    hit = disturb(run, cluster, victim, moment_s=moment_s, pick=pick)
    restarts = finish(lambda: start(workspace), run)
    return Outcome(
        victim=victim,
        moment_s=moment_s,
        hit=hit,
        restarts=restarts,
        wall_s=time.monotonic() - started,
        same_tables=table_digests(workspace) == wanted,
    )


def _rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    rows = []
    for victim in Victim:
        of_victim = [outcome for outcome in outcomes if outcome.victim is victim]
        counts = (
            len(of_victim),
            sum(outcome.hit for outcome in of_victim),
            sum(outcome.restarts for outcome in of_victim),
            sum(outcome.same_tables for outcome in of_victim),
        )
        rows.append((str(victim), *map(str, counts)))
    return rows


if __name__ == "__main__":
    command()
