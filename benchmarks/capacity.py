"""`python -m benchmarks capacity`: what larger corpora would take, from the JSON of measured runs.

Core-seconds (of all processes, Spark's included), shuffled bytes and disk of `benchmarks batch` runs are fitted, each
on its own, as `fixed + per_image * n * (n / largest) ** (exponent - 1)`. Two sizes determine `fixed` and `per_image`
and leave the exponent 1; three or more also determine the exponent, which is never taken below 1: a run that seems to
get cheaper by the image is one whose fixed costs weigh less. What exceeds the largest measured size is extrapolated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.results import write_json
from cli.tables import show_table

LARGE = (100_000_000, 1_000_000_000, 8_000_000_000)
EXPONENTS = np.arange(1.0, 1.505, 0.01)
QUANTITIES = {"cpu_s": "core-hours", "shuffle_bytes": "shuffled", "disk_bytes": "disk"}
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """How one quantity grows with the number of images; `largest` is the largest size it was fitted on."""

    fixed: float
    per_image: float
    exponent: float
    largest: int

    def at(self, num_images: int) -> float:
        """The quantity for `num_images`.

        >>> Cost(fixed=10.0, per_image=2.0, exponent=1.5, largest=100).at(400)
        1610.0
        """
        growth = float((num_images / self.largest) ** (self.exponent - 1.0))
        return self.fixed + self.per_image * num_images * growth


def fit(points: Iterable[tuple[int, float]]) -> Cost:
    """The cost of least relative error through `(num_images, amount)` points of two sizes or more, none negative."""
    sizes, amounts = (np.array(column, np.float64) for column in zip(*sorted(points), strict=True))
    if np.unique(sizes).size < 2:
        raise click.ClickException(f"runs of {sizes.size} sizes are given, two or more are needed; measure another one")
    largest = int(sizes.max())
    exponents = EXPONENTS if np.unique(sizes).size > 2 else EXPONENTS[:1]
    fits = [_fit_with(sizes, amounts, float(exponent), largest) for exponent in exponents]
    return min(fits, key=lambda one: one[0])[1]


def _fit_with(sizes: np.ndarray, amounts: np.ndarray, exponent: float, largest: int) -> tuple[float, Cost]:
    """Weighted least squares for one exponent, with neither term below 0; returns the error and the cost."""
    grown = sizes * (sizes / largest) ** (exponent - 1.0)
    weights = 1.0 / np.maximum(amounts, 1e-9)
    terms = np.column_stack([np.ones_like(sizes), grown]) * weights[:, None]
    both = np.linalg.lstsq(terms, np.ones_like(sizes), rcond=None)[0]
    alone = float(terms[:, 1].sum() / (terms[:, 1] ** 2).sum())
    fixed, per_image = both if both.min() >= 0 else (0.0, alone)
    error = float(((terms @ np.array([fixed, per_image]) - 1.0) ** 2).sum())
    return error, Cost(fixed=float(fixed), per_image=float(per_image), exponent=exponent, largest=largest)


def batch_points(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Our rows of the batch runs among `files`, by size."""
    rows = [row for file in files for row in _rows(file, "batch") if row["contender"] == "ours"]
    return sorted(rows, key=lambda row: int(row["images"]))


def _rows(file: Path, benchmark: str) -> list[dict[str, Any]]:
    try:
        figures = json.loads(file.read_text(encoding="utf-8"))
        return list(figures["rows"]) if figures["benchmark"] == benchmark else []
    except (ValueError, KeyError, TypeError) as error:
        raise click.ClickException(f"{file} is no JSON of a benchmark ({error}); write one with --json") from error


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--images", "sizes", type=click.IntRange(min=1), multiple=True, default=LARGE, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(*, runs: Sequence[Path], sizes: Sequence[int], json_path: Path | None) -> None:
    """Foretell core-hours, shuffled bytes and disk of larger corpora from RUNS, JSON files of batch and lookup.

    Example: python -m benchmarks capacity batch-250k.json batch-500k.json batch-1m.json lookup-1m.json
    """
    points = batch_points(runs)
    costs = {name: fit((row["images"], row[name]) for row in points) for name in QUANTITIES} if points else {}
    served = [row for file in runs for row in _rows(file, "lookup") if row["contender"] == "ours"]
    if costs:
        _show_batch(points, costs, sizes)
    if served:
        _show_served(served, sizes)
    write_json(
        json_path,
        {
            "benchmark": "capacity",
            "costs": {name: asdict(cost) for name, cost in costs.items()},
            "rows": [{"images": size, **{name: cost.at(size) for name, cost in costs.items()}} for size in sizes],
        },
    )


def _show_batch(points: Sequence[dict[str, Any]], costs: dict[str, Cost], sizes: Sequence[int]) -> None:
    show_table(
        "Batch, from images' embeddings to clusters",
        ["images", *QUANTITIES.values(), ""],
        [
            *(
                [f"{row['images']:,}", *(_shown(name, float(row[name])) for name in QUANTITIES), "measured"]
                for row in points
            ),
            *(
                [
                    f"{size:,}",
                    *(_shown(name, costs[name].at(size)) for name in QUANTITIES),
                    "extrapolated" if size > points[-1]["images"] else "fitted",
                ]
                for size in sizes
            ),
        ],
    )
    for name, cost in costs.items():
        click.echo(
            f"{name} = {cost.fixed:,.1f} + {cost.per_image:.6g} n (n / {cost.largest:,}) ** {cost.exponent - 1.0:.2f}"
        )


def _show_served(served: Sequence[dict[str, Any]], sizes: Sequence[int]) -> None:
    bytes_per_image = float(served[-1]["bytes_per_image"])
    show_table(
        f"Served from memory, {bytes_per_image:,.0f} bytes an image on disk and, once touched, in memory",
        ["images", "index", "lookups a second on one core", ""],
        [
            *(
                [
                    f"{row['images']:,}",
                    _bytes(row["bytes_per_image"] * row["images"]),
                    f"{1e6 / row['cpu_us']:,.0f}",
                    "measured",
                ]
                for row in served
            ),
            *([f"{size:,}", _bytes(bytes_per_image * size), "measure the shard", "extrapolated"] for size in sizes),
        ],
    )


def _shown(name: str, amount: float) -> str:
    return f"{amount / SECONDS_PER_HOUR:,.2f}" if name == "cpu_s" else _bytes(amount)


def _bytes(size_bytes: float) -> str:
    """Decimal units, as disks are sold.

    >>> _bytes(3.2e12), _bytes(5e8)
    ('3.2 TB', '500.0 MB')
    """
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if size_bytes >= size:
            return f"{size_bytes / size:,.1f} {unit}"
    return f"{size_bytes / 1e6:,.1f} MB"
