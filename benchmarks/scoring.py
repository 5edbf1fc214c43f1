"""`python -m benchmarks scoring`: how many pairs a second the classifier and a calibration score.

Codes, pairs and weights are random, which costs the same as trained ones. The exact cosine of the codes, which
selection and lookups pay for each candidate anyway, is measured in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.results import versions, write_json
from cli.tables import show_table
from embed.calibration.calibration import Calibration, Promise
from embed.pair_classifier.classifier import Background, PairClassifier
from embed.pair_scoring import PairScorer
from lsh.codes import pair_cosines

DIM, HIDDEN, NUM_BACKGROUND, NUM_KNOTS, NUM_IMAGES = 256, 64, 6000, 200, 50_000
_PROMISE = Promise(
    target=0.99,
    precision=0.99,
    lower_bound=0.99,
    upper_bound=0.99,
    recall=1.0,
    true_pairs_per_query=1.0,
    corpus_size=NUM_IMAGES,
)


def random_scorer(rng: np.random.Generator) -> PairScorer:
    """A classifier of `HIDDEN` units and a background, and a calibration of `NUM_KNOTS` knots."""
    classifier = PairClassifier(
        projection=rng.normal(size=(DIM, HIDDEN)).astype(np.float32),
        bias=rng.normal(size=HIDDEN).astype(np.float32),
        output=rng.normal(size=HIDDEN).astype(np.float32),
        line=np.array([20.0, -4.0, -15.0], np.float32),
        embedder_digest="00" * 32,
        background=Background(rng.integers(-127, 128, (NUM_BACKGROUND, DIM), dtype=np.int8)),
    )
    calibration = Calibration(
        method="isotonic",
        raw_scores=tuple(np.linspace(-50, 50, NUM_KNOTS).tolist()),
        probabilities=tuple(np.linspace(0, 1, NUM_KNOTS).tolist()),
        threshold=0.0,
        promise=_PROMISE,
        scored_by="00" * 32,
    )
    return PairScorer(classifier, calibration)


def pairs_per_second(score: Callable[[slice], object], num_pairs: int, *, num_threads: int, rounds: int) -> float:
    """The median rate of `score` over contiguous parts of the pairs, a part a thread."""
    bounds = np.linspace(0, num_pairs, num_threads + 1).astype(int).tolist()
    parts = [slice(start, end) for start, end in pairwise(bounds)]
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(score, parts))
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            list(pool.map(score, parts))
            seconds.append(time.perf_counter() - started)
    return num_pairs / statistics.median(seconds)


@click.command()
@click.option("--pairs", "num_pairs", type=click.IntRange(1), default=2_000_000, show_default=True)
@click.option("--threads", type=click.IntRange(1, 256), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="The median is shown.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here.")
def command(*, num_pairs: int, threads: int, rounds: int, json_path: Path | None) -> None:
    """Pairs a second that the classifier and the calibration score, beside the cosines of the same pairs."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (NUM_IMAGES, DIM), dtype=np.int8)
    left, right = rng.integers(0, NUM_IMAGES, (2, num_pairs))
    scorer = random_scorer(rng)
    similarities = rng.uniform(0.3, 1.0, num_pairs).astype(np.float32)
    projected = scorer.project(codes)

    def cosines(part: slice) -> NDArray[np.float32]:
        return pair_cosines(codes, codes, left[part], right[part])

    def scores(part: slice) -> NDArray[np.float32]:
        return scorer.scores(similarities[part], projected, projected, left[part], right[part])

    rates = {
        "cosine of the codes": pairs_per_second(cosines, num_pairs, num_threads=threads, rounds=rounds),
        "classifier and calibration": pairs_per_second(scores, num_pairs, num_threads=threads, rounds=rounds),
    }
    started = time.perf_counter()
    scorer.project(codes)
    images_per_second = NUM_IMAGES / (time.perf_counter() - started)
    rows = [[name, f"{rate:,.0f}"] for name, rate in rates.items()]
    rows.append(["classifier's part an image, images", f"{images_per_second:,.0f}"])
    show_table(f"{num_pairs:,} pairs of {NUM_IMAGES:,} images, {threads} threads", ["", "a second"], rows)
    write_json(
        json_path,
        {"pairs": num_pairs, "threads": threads, "pairs_per_second": rates, "images_per_second": images_per_second}
        | {"versions": versions("numpy", "numba")},
    )
