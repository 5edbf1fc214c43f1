"""`neardup train-classifier`: train the pair classifier of an embedder, and keep it only if it beats the cosine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from cli.options import tracking_uri_option

if TYPE_CHECKING:
    from embed.evaluation.labelled_pairs import LabelledPairs
    from embed.pair_classifier.classifier import PairClassifier
    from embed.pair_classifier.preparation import PreparedPhotos

HELP = """\
Train the pair classifier of an embedder on the photos below PHOTOS and write an embedder directory that has both.

A quarter of the sources (sub-folders; of the photos where there are few) is held out, or the photos of --judge-on are
taken instead. The classifier must find more of their edits at 99 % precision than the cosine does, with 95 %
confidence; otherwise nothing is written.

--labels takes pairs labelled by `neardup label-pairs`, --human-labels pairs that people judged, which weigh ten times
as much; both are CSVs with the columns a,b,label.

\b
  neardup train-classifier photos/ --output with-classifier/
  neardup calibrate other-photos/ --embedder with-classifier/ --output my-embedder/
"""
PRECISION = 0.99


@click.command(name="train-classifier", help=HELP)
@click.argument("photos", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The embedder directory to write.")
@click.option("--embedder", default="vgg_copy", show_default=True, help="Built-in embedder, or an embedder directory.")
@click.option("--num-photos", type=click.IntRange(50), default=4000, show_default=True, help="Photos to edit.")
@click.option("--num-held-out", type=click.IntRange(50), default=1000, show_default=True, help="Photos to judge on.")
@click.option("--held-out", type=click.FloatRange(0.05, 0.9), default=0.25, show_default=True, help="Share held out.")
@click.option(
    "--judge-on", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Photos to judge on instead."
)
@click.option(
    "--judge-labels",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="CSV of near-duplicates in --judge-on.",
)
@click.option("--edits", type=click.Choice(["default", "harder", "all"]), default="default", show_default=True)
@click.option("--labels", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="CSV of geometric labels.")
@click.option(
    "--human-labels", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="CSV of people's labels."
)
@click.option(
    "--images", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Root of a and b. [default: PHOTOS]"
)
@click.option("--hidden", type=click.IntRange(0, 1024), default=0, show_default=True, help="Units of a network.")
@click.option(
    "--num-background",
    type=click.IntRange(0, 100_000),
    default=6000,
    show_default=True,
    help="Photos that crowding is measured against.",
)
@click.option("--epochs", type=click.IntRange(1, 1000), default=2, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object instead of the table.")
@tracking_uri_option
def command(
    *,
    photos: Path,
    output: Path,
    embedder: str,
    num_photos: int,
    num_held_out: int,
    held_out: float,
    judge_on: Path | None,
    judge_labels: Path | None,
    edits: str,
    labels: Path | None,
    human_labels: Path | None,
    images: Path | None,
    hidden: int,
    num_background: int,
    epochs: int,
    seed: int,
    json_output: bool,
    tracking_uri: str,
) -> None:
    from dataclasses import asdict

    from embed.embedder import load_embedder
    from embed.embedder_dir import extend_embedder_dir
    from embed.errors import ClassifierError
    from embed.evaluation.descriptors import EmbedderDescriptor
    from embed.evaluation.edits import EDIT_SETS
    from embed.evaluation.planted import describe_all, files_sha256, list_photos
    from embed.lineage import ModelKind, record
    from embed.pair_classifier.preparation import mark_labelled, prepare_photos, split_background, split_photos
    from embed.pair_classifier.training import (
        HUMAN_WEIGHT,
        ClassifierSettings,
        planted_pairs,
        train_classifier,
        with_labels,
    )

    if output.exists():
        raise click.UsageError(f"--output {output} already exists; choose another directory or remove it first")
    settings = ClassifierSettings(hidden=hidden, epochs=epochs, seed=seed)
    if judge_on is None:
        train_paths, held_out_paths, sources = split_photos(list_photos(photos), held_out=held_out, seed=seed)
    else:
        train_paths, held_out_paths, sources = list_photos(photos), list_photos(judge_on), (judge_on.name,)
    ours = load_embedder(embedder)
    descriptor = EmbedderDescriptor(ours.spec.architecture, ours, ours.spec.size)
    kinds = EDIT_SETS[edits]
    train = prepare_photos(train_paths, descriptor, num_edited=num_photos, edits=kinds, seed=seed)
    labelled = [
        (_read_labels(path, images or photos), weight)
        for path, weight in ((labels, 1.0), (human_labels, HUMAN_WEIGHT))
        if path is not None
    ]
    for given, _ in labelled:
        mark_labelled(train, given)
    train, background = split_background(train, [given for given, _ in labelled], num=num_background)
    pairs = planted_pairs(
        train.described.edited,
        train.described.corpus,
        same=train.same,
        num_lookalikes=settings.num_lookalikes,
        seed=seed,
    )
    for given, weight in labelled:
        rows, _ = describe_all(descriptor, given.images)
        pairs = with_labels(pairs, rows, given.left, given.right, given.is_same, weight=weight)
    classifier = train_classifier(pairs, settings, embedder_digest=ours.spec.digest, background=background)

    judged = prepare_photos(held_out_paths, descriptor, num_edited=num_held_out, edits=kinds, seed=seed)
    for given in [given for given, _ in labelled] + (
        [] if judge_labels is None else [_read_labels(judge_labels, judge_on or photos)]
    ):
        mark_labelled(judged, given)
    figures = judge(judged, classifier, edits=kinds, seed=seed)
    figures |= {
        "photos": len(train.paths),
        "background": 0 if background is None else len(background.codes),
        "held out photos": len(judged.paths),
        "held out sources": list(sources),
    }
    if json_output:
        click.echo(json.dumps(figures))
    else:
        _print(figures)
    low = figures["gain interval"][0]
    if low <= 0:
        raise ClassifierError(
            f"the classifier does not surely beat the cosine on the photos held out (gain from {low:+.3f}), so nothing "
            f"was written; give more photos or labels, or keep the embedder as it is"
        )
    written = extend_embedder_dir(ours.spec, output, pair_classifier=classifier, min_score=figures["min score"])
    record(
        written.directory,
        kind=ModelKind.CLASSIFIER,
        digest=classifier.digest,
        tracking_uri=tracking_uri,
        seed=seed,
        parents={"embedder": ours.spec.digest},
        data={"photos": files_sha256(train.paths), **{p.name: files_sha256([p]) for p in (labels, human_labels) if p}},
        parameters=asdict(settings)
        | {
            "edits": edits,
            **{name.replace(" ", "_"): figures[name] for name in ("photos", "background", "held out photos")},
        },
        metrics={name.replace(" ", "_"): value for name, value in figures.items() if isinstance(value, float)},
    )
    if not json_output:
        click.echo(f"embedder with its classifier written to {output}; calibrate it with `neardup calibrate`")


def judge(prepared: PreparedPhotos, classifier: PairClassifier, *, edits: Sequence[str], seed: int) -> dict[str, Any]:
    """Recall at 99 % precision with the classifier and with the cosine, the gain, and the classifier's threshold."""
    from embed.evaluation.planted import score_edits
    from embed.evaluation.precision_recall import recall_at, recall_gain
    from embed.pair_scoring import PairScorer, sigmoid

    with_classifier = PairScorer(classifier)
    better, base = (
        score_edits(prepared.described, edits=edits, scorer=scorer, same=prepared.same_pairs)
        for scorer in (with_classifier, PairScorer())
    )
    gain, interval = recall_gain(better, base, PRECISION, seed=seed)
    ours, cosine = recall_at(better, PRECISION, seed=seed), recall_at(base, PRECISION, seed=seed)
    threshold = np.array([min(ours.point.threshold, 80.0)], np.float32)
    return {
        "recall": ours.overall,
        "recall of the cosine": cosine.overall,
        "gain": gain,
        "gain interval": [interval.low, interval.high],
        "min score": float(sigmoid(threshold)[0]),
    }


def _read_labels(path: Path, images: Path) -> LabelledPairs:
    """The labelled pairs whose images can be read."""
    from embed.evaluation.labelled_pairs import read_labelled_pairs, readable_pairs
    from embed.evaluation.planted import readable_images

    given = read_labelled_pairs(path, images=images)
    return readable_pairs(given, set(readable_images(given.images)[0]))


def _print(figures: dict[str, Any]) -> None:
    from cli.tables import show_table

    low, high = figures["gain interval"]
    show_table(
        f"Held out: {figures['held out photos']:,} photos of {', '.join(figures['held out sources']) or 'all sources'}",
        ["recall at precision 0.99", ""],
        [
            ["cosine", f"{figures['recall of the cosine']:.3f}"],
            ["pair classifier", f"{figures['recall']:.3f}"],
            ["gain", f"{figures['gain']:+.3f} ({low:+.3f}..{high:+.3f})"],
        ],
    )
