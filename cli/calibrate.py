"""`neardup calibrate`: scores that are probabilities and a threshold that is a promise, for one's own photos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import dtype_option, tracking_uri_option

if TYPE_CHECKING:
    from cli.cluster_precision import ClusterPrecision
    from embed.calibration.fitting import Fitted
    from embed.evaluation.descriptors import Descriptor
    from embed.evaluation.labelled_pairs import LabelledPairs
    from embed.evaluation.scored_pairs import ScoredPairs

HELP = """\
Calibrate an embedder on the photos below PHOTOS and write an embedder directory whose scores are probabilities.

Every edit of every photo is compared with all photos and the distractors. The threshold is the lowest at which the
precision is at least --precision with 95 % confidence, when a query has --true-pairs-per-query near-duplicates in a
corpus of --corpus-size images. Use photos of the kind you will look up that the embedder was not trained on. Pairs of
--labels (a,b,label with 1 or unsure, as `neardup label-pairs` writes them) are near-duplicates by nature, not mistakes.
With --pairs, a CSV with the columns a,b,label, people's own judgements take the place of edits.

\b
  neardup calibrate photos/ --precision 0.99 --output calibrated/
  neardup calibrate photos/ --distractors others/ --corpus-size 1000000 --output calibrated/ --report calibration.html
  neardup dedup photos/ --embedder calibrated/

An embedder calibrated with --thorough has the threshold for `neardup dedup --thorough`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The scored pairs a calibration is fitted to, and where they come from."""

    pairs: ScoredPairs
    num_false_compared: int
    corpus_size: int
    clusters: ClusterPrecision | None
    data_sha256: str
    counts: dict[str, int]


@click.command(name="calibrate", help=HELP)
@click.argument("photos", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The embedder directory to write.")
@click.option("--thorough", is_flag=True, help="Compare parts and versions of each image too; eleven times as long.")
@click.option("--precision", type=click.FloatRange(0.5, 0.9999), default=0.99, show_default=True)
@click.option("--embedder", default="vgg_copy", show_default=True, help="Built-in embedder, or an embedder directory.")
@dtype_option
@click.option("--distractors", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of others.")
@click.option("--num-distractors", type=click.IntRange(min=0), default=1000, show_default=True)
@click.option("--num-photos", type=click.IntRange(min=1), default=2000, show_default=True, help="Draw up to so many.")
@click.option("--edits", type=click.Choice(["default", "harder", "all"]), default="default", show_default=True)
@click.option(
    "--labels", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="CSV of near-duplicates in PHOTOS."
)
@click.option("--pairs", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="CSV with a,b,label.")
@click.option(
    "--images", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Root of a and b. [default: CSV's]"
)
@click.option("--true-pairs-per-query", type=click.FloatRange(1e-6, 1e6), default=1.0, show_default=True)
@click.option("--corpus-size", type=click.IntRange(1), help="Images a query meets. [default: as many as given]")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML report here.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object instead of the table.")
@tracking_uri_option
def command(
    *,
    photos: Path | None,
    output: Path,
    thorough: bool,
    precision: float,
    embedder: str,
    dtype: str | None,
    distractors: Path | None,
    num_distractors: int,
    num_photos: int,
    edits: str,
    labels: Path | None,
    pairs: Path | None,
    images: Path | None,
    true_pairs_per_query: float,
    corpus_size: int | None,
    report: Path | None,
    seed: int,
    json_output: bool,
    tracking_uri: str,
) -> None:
    from embed.calibration.fitting import Prior, fit_calibration
    from embed.embedder_dir import describe_embedder, extend_embedder_dir
    from embed.evaluation.descriptors import load_descriptors
    from embed.evaluation.labelled_pairs import read_labelled_pairs
    from embed.lineage import ModelKind, record

    if (photos is None) == (pairs is None):
        raise click.UsageError("give either PHOTOS or --pairs CSV")
    if output.exists():
        raise click.UsageError(f"--output {output} already exists; choose another directory or remove it first")
    if report is not None and not report.parent.is_dir():
        raise click.UsageError(f"--report {report}: the folder {report.parent} does not exist")
    spec = describe_embedder(embedder)
    (descriptor,) = load_descriptors(["embedder"], embedder=embedder, dtype=dtype, thorough=thorough)
    if pairs is not None:
        evidence = _judged_pairs(pairs, images or pairs.parent, descriptor)
    else:
        assert photos is not None  # noqa: S101 - the usage error above
        evidence = _planted_pairs(
            photos,
            distractors,
            descriptor,
            num_photos=num_photos,
            num_distractors=num_distractors,
            edits=edits,
            known=None if labels is None else read_labelled_pairs(labels, images=images or photos),
            seed=seed,
        )
    prior = Prior(true_pairs_per_query=true_pairs_per_query, corpus_size=corpus_size or evidence.corpus_size)
    fitted = fit_calibration(
        evidence.pairs,
        num_false_compared=evidence.num_false_compared,
        prior=prior,
        precision=precision,
        scored_by=spec.raw_scorer_digest,
        seed=seed,
    )
    calibration = fitted.calibration
    clusters = evidence.clusters.at(calibration.threshold) if evidence.clusters else None
    written = extend_embedder_dir(spec, output, calibration=calibration)
    figures: dict[str, Any] = {
        "embedder": spec.name,
        "embedder digest": spec.digest,
        "calibration digest": calibration.digest,
        "min score": calibration.min_score,
        "threshold": calibration.threshold,
        "method": calibration.method,
        "log loss": fitted.log_loss,
        **asdict(calibration.promise),
        "clusters": None if clusters is None else asdict(clusters),
        **evidence.counts,
        "seed": seed,
    }
    record(
        written.directory,
        kind=ModelKind.CALIBRATION,
        digest=calibration.digest,
        tracking_uri=tracking_uri,
        seed=seed,
        parents={"embedder": spec.digest, "raw scorer": spec.raw_scorer_digest},
        data={"photos": evidence.data_sha256},
        parameters={
            "edits": edits,
            "thorough": thorough,
            "dtype": dtype or spec.default_dtype,
            "target": precision,
            "true_pairs_per_query": prior.true_pairs_per_query,
            "corpus_size": prior.corpus_size,
            "method": calibration.method,
            **{name.replace(" ", "_").replace("-", "_"): count for name, count in evidence.counts.items()},
        },
        metrics={
            "precision": calibration.promise.precision,
            "precision_lower_bound": calibration.promise.lower_bound,
            "recall": calibration.promise.recall,
            "min_score": calibration.min_score,
            **{f"log_loss_{name}": loss for name, loss in fitted.log_loss.items()},
        },
    )
    if report is not None:
        _write_report(report, fitted, figures)
    if json_output:
        click.echo(json.dumps({**figures, "output": str(output), "report": str(report) if report else None}))
        return
    _print(figures, output, report)


def _planted_pairs(
    photos: Path,
    distractors: Path | None,
    descriptor: Descriptor,
    *,
    num_photos: int,
    num_distractors: int,
    edits: str,
    known: LabelledPairs | None,
    seed: int,
) -> Evidence:
    from cli.cluster_precision import ClusterPrecision
    from embed.evaluation.edits import EDIT_SETS
    from embed.evaluation.labelled_pairs import linked_positions
    from embed.evaluation.planted import (
        describe_planted,
        draw_distractors,
        draw_photos,
        files_sha256,
        list_photos,
        readable_images,
        score_edits,
    )
    from embed.evaluation.same_picture import same_pictures

    paths, _ = readable_images(draw_photos(list_photos(photos), num_photos, seed=seed))
    drawn = draw_distractors(distractors, num_distractors, seed=seed) if distractors else []
    others, _ = readable_images(drawn) if drawn else ([], [])
    same = same_pictures([*paths, *others])
    if known is not None:
        same = sorted({*same, *linked_positions(known, [*paths, *others])})
    kinds = EDIT_SETS[edits]
    (described,) = describe_planted([descriptor], paths, others, edits=kinds, seed=seed)
    corpus_size = len(paths) + len(others) - 1
    return Evidence(
        pairs=score_edits(described, edits=kinds, scorer=descriptor.scorer, same=same),
        num_false_compared=max(1, len(paths) * len(kinds) * corpus_size - 2 * len(same) * len(kinds)),
        corpus_size=max(1, corpus_size),
        clusters=ClusterPrecision(described=described, scorer=descriptor.scorer, same=same),
        data_sha256=files_sha256([*paths, *others]),
        counts={
            "photos": len(paths),
            "distractors": len(others),
            "true pairs": len(paths) * len(kinds),
            "natural near-duplicates": len(same),
        },
    )


def _judged_pairs(path: Path, images: Path, descriptor: Descriptor) -> Evidence:
    from embed.evaluation.labelled_pairs import read_labelled_pairs, readable_pairs, score_labels
    from embed.evaluation.planted import describe_all, files_sha256, readable_images
    from embed.evaluation.same_picture import same_pictures

    given = read_labelled_pairs(path, images=images)
    labelled = readable_pairs(given, set(readable_images(given.images)[0]))
    rows, _ = describe_all(descriptor, labelled.images)
    same = same_pictures(labelled.images) if labelled.are_complete else []
    scored = score_labels(rows, labelled, scorer=descriptor.scorer, same=same)
    num_images, num_false = len(labelled.images), int((~labelled.is_same).sum())
    return Evidence(
        pairs=scored,
        num_false_compared=num_images * (num_images - 1) // 2 if labelled.are_complete else num_false,
        corpus_size=num_images - 1,
        clusters=None,
        data_sha256=files_sha256([path, *labelled.images]),
        counts={"images": num_images, "true pairs": len(scored.true_scores)},
    )


def _print(figures: dict[str, Any], output: Path, report: Path | None) -> None:
    from cli.tables import show_table

    rows = [
        ["lowest score of a match", f"{figures['min score']:.4f}"],
        ["  as raw score", f"{figures['threshold']:.4f}"],
        ["precision", f"{figures['precision']:.4f}"],
        ["  with 95 % confidence at least", f"{figures['lower_bound']:.4f}"],
        ["recall", f"{figures['recall']:.3f}"],
        ["true pairs a query, corpus", f"{figures['true_pairs_per_query']:g}, {figures['corpus_size']:,} images"],
        ["method", f"{figures['method']} (log loss {_losses(figures['log loss'])})"],
    ]
    if figures["clusters"] is not None:
        found = figures["clusters"]
        rows += [
            ["clusters without a stranger", _share(found["clean_share"], found["clean_interval"])],
            ["images with their canonical", _share(found["member_share"], found["member_interval"])],
        ]
    show_table(f"Calibrated for precision {figures['target']:g}: {figures['embedder']}", ["", ""], rows)
    click.echo(f"embedder written to {output}; use it with --embedder {output}")
    if report is not None:
        click.echo(f"report            {report}")


def _losses(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())


def _share(share: float, interval: Sequence[float]) -> str:
    return f"{share:.4f} ({interval[0]:.4f}..{interval[1]:.4f})"


def _write_report(path: Path, fitted: Fitted, figures: dict[str, Any]) -> None:
    from datetime import UTC, datetime

    from cli.report.calibration import CalibrationReport, write_calibration_report

    parameters = {name: str(value) for name, value in figures.items() if not isinstance(value, dict)}
    write_calibration_report(CalibrationReport(datetime.now(UTC), fitted, figures["clusters"], parameters), path)
