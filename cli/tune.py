"""`neardup tune`: how to hash a corpus, from a sample of its embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lsh.plans import Plan, Prediction

HELP = """\
Find the cheapest way to hash a corpus that keeps a share of its near pairs.

EMBEDDINGS is an .npz of `neardup embed`, the corpus itself or a random part of it. Families, tables, polytopes and
thresholds are tried on a sample; what each would do to --images is counted, not assumed.

\b
  neardup tune photos.npz --min-score 0.8 --output plan.json
  neardup tune part.npz --images 100000000 --target-recall 0.98
  neardup dedup photos.npz --plan plan.json
"""
NUM_SHOWN = 6


@click.command(name="tune", help=HELP)
@click.argument("embeddings", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--images", "num_images", type=click.IntRange(2), help="Size of the corpus. [default: of EMBEDDINGS]")
@click.option(
    "--min-score",
    type=click.FloatRange(0.3, 0.999),
    default=0.8,
    show_default=True,
    help="Lowest similarity of a match.",
)
@click.option(
    "--target-recall",
    type=click.FloatRange(0.1, 0.9999),
    default=0.95,
    show_default=True,
    help="Share of the pairs just above --min-score that must be candidates.",
)
@click.option(
    "--unverified", is_flag=True, help="Plan for codes that do not fit: shared terms alone must tell matches."
)
@click.option("--max-tables", type=click.IntRange(4, 96), default=96, show_default=True, help="Most hash tables.")
@click.option("--sample", "num_sampled", type=click.IntRange(1000, 200_000), default=20_000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--check", is_flag=True, help="Run the best plan on EMBEDDINGS and print what it did beside it.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the best plan here, as JSON.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object instead of the table.")
def command(
    *,
    embeddings: Path,
    num_images: int | None,
    min_score: float,
    target_recall: float,
    unverified: bool,
    max_tables: int,
    num_sampled: int,
    seed: int,
    check: bool,
    output: Path | None,
    json_output: bool,
) -> None:
    import numpy as np

    from batch_jobs.sources import read_embeddings
    from lsh.near_pairs import near_pairs
    from lsh.plans import TuningTarget
    from lsh.tuning import measured, plans

    corpus = read_embeddings(embeddings).embeddings
    if check and num_images not in (None, len(corpus)):
        raise click.UsageError(f"--check measures the {len(corpus):,} images of {embeddings}; leave --images out")
    rng = np.random.default_rng(seed)
    sample = corpus[np.sort(rng.choice(len(corpus), min(num_sampled, len(corpus)), replace=False))]
    target = TuningTarget(
        num_images=num_images or len(corpus),
        min_similarity=min_score,
        target_recall=target_recall,
        verified=not unverified,
        max_tables=max_tables,
    )
    found = plans(sample, target, seed=seed)
    actual = None
    if check:
        # Other rows than those of the sample, so that the recall shown is not the one that was optimised.
        others = corpus[np.sort(np.random.default_rng(seed + 1).choice(len(corpus), len(sample), replace=False))]
        actual = measured(corpus, found[0], near_pairs(others, min_score, seed=seed + 1))
    if output is not None:
        _write(found[0], output)
    if json_output:
        click.echo(json.dumps(_as_json(found, actual)))
        return
    _show(found, actual, target.num_images)
    if output is not None:
        click.echo(f"plan            {output}")


def _write(plan: Plan, output: Path) -> None:
    from batch_jobs.workspace import write_json

    if not output.parent.is_dir():
        raise click.UsageError(f"--output {output}: the folder {output.parent} does not exist")
    write_json(output, plan.to_json())


def _as_json(found: list[Plan], actual: Prediction | None) -> dict[str, Any]:
    from dataclasses import asdict

    return {"plans": [plan.to_json() for plan in found], "measured": asdict(actual) if actual else None}


def _show(found: list[Plan], actual: Prediction | None, num_images: int) -> None:
    from cli.tables import show_table

    rows = [(describe_terms(plan), plan.prediction) for plan in found[:NUM_SHOWN]]
    if actual is not None:
        rows.insert(1, ("  measured", actual))
    show_table(
        f"{num_images:,} images, cheapest first",
        ["plan", "recall", "false", "walked", "candidates", "bytes", "hash", "join", "verify", "core hours"],
        [
            [
                name,
                f"{does.recall:.3f}",
                f"{does.false_ratio:.2f}",
                f"{does.walked:,.0f}",
                f"{does.candidates:,.1f}",
                f"{does.term_block_bytes + does.pair_block_bytes:,.0f}",
                *(f"{1e6 * seconds:.1f}" for seconds in (does.hash_s, does.join_s, does.verify_s)),
                f"{does.core_s * num_images / 3600:,.2f}",
            ]
            for name, does in rows
        ],
    )
    click.echo("Pairs and shuffled bytes are per image, hash, join and verify microseconds per image on one core.")


def describe_terms(plan: Plan) -> str:
    """A plan in one line, such as `48 x (64, 64, 4), distance 66`."""
    terms = plan.terms
    shape = {
        "cross_polytope": f"({', '.join(map(str, terms.polytope_dims))})",
        "hyperplane": f"{terms.num_planes} planes",
        "minhash": f"{terms.num_hashes} hashes of {terms.num_activations}",
    }[terms.family]
    shared = f", {plan.min_shared_terms} shared" if plan.min_shared_terms > 1 else ""
    return f"{terms.num_tables} x {shape}, distance {plan.candidates.max_sketch_distance}{shared}"
