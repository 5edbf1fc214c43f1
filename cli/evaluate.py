"""`neardup evaluate`: what an embedder finds and misses, on planted edits or on labelled pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import dtype_option

if TYPE_CHECKING:
    from embed.evaluation.evaluation import Evaluation
    from embed.evaluation.labelled_pairs import LabelledPairs
    from embed.evaluation.scored_pairs import JudgedPair

HELP = """\
Measure recall at a stated precision, one threshold for all pairs, beside PDQ and pHash.

With PHOTOS every edit of every photo must find its photo among all photos and the distractors; pairs of --labels
(a,b,label with 1 or unsure, as `neardup label-pairs` writes them) are near-duplicates by nature, not mistakes. With
--pairs, a CSV with the columns a,b,label (1 near-duplicate, 0 not), the pairs labelled 1 must be found and the others
not; a file without 0 takes all pairs of its images that the 1s do not link as different.

\b
  neardup evaluate photos/ --report evaluation.html
  neardup evaluate photos/ --distractors others/ --edits harder
  neardup evaluate --pairs pairs.csv --images photos/ --embedder my-embedder/ --json
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The evaluations, ours first, and what is needed to show them. Judged pairs are positions in `images`."""

    source: str
    images: Sequence[Path]
    edits_of_left: bool
    evaluations: Sequence[Evaluation]
    rejects: Sequence[tuple[str, str]]
    notes: Sequence[str]
    counts: dict[str, int]


@click.command(name="evaluate", help=HELP)
@click.argument("photos", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
@click.option("--pairs", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="CSV with a,b,label.")
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Root of a and b. [default: PHOTOS, or the folder of --pairs]",
)
@click.option("--distractors", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of others.")
@click.option("--num-distractors", type=click.IntRange(min=0), default=1000, show_default=True)
@click.option("--num-photos", type=click.IntRange(min=1), help="Draw only so many of PHOTOS.")
@click.option("--edits", type=click.Choice(["default", "harder", "all"]), default="default", show_default=True)
@click.option("--embedder", default="vgg_copy", show_default=True, help="Built-in embedder, or an embedder directory.")
@dtype_option
@click.option(
    "--descriptor",
    "names",
    type=click.Choice(["embedder", "cosine", "pdq", "phash"]),
    multiple=True,
    default=["embedder", "pdq", "phash"],
    show_default=True,
    help="Repeat to choose several; cosine: the embedder without its pair classifier.",
)
@click.option(
    "--labels", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="CSV of near-duplicates in PHOTOS."
)
@click.option(
    "--orientations",
    type=click.Choice(["1", "4", "8"]),
    default="1",
    show_default=True,
    help="Ask in so many turns and mirror images of each edit; costs as many times more.",
)
@click.option(
    "--thorough",
    is_flag=True,
    help="Compare parts and versions of each image too, as `neardup dedup --thorough` does; eleven times as long.",
)
@click.option(
    "--precision", type=click.FloatRange(0.5, 0.9999), default=0.99, show_default=True, help="Of the table by kind."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML report here.")
@click.option("--show-worst", type=click.IntRange(0, 200), default=0, help="Print so many of the worst pairs.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object instead of the table.")
def command(
    *,
    photos: Path | None,
    pairs: Path | None,
    images: Path | None,
    distractors: Path | None,
    num_distractors: int,
    num_photos: int | None,
    edits: str,
    embedder: str,
    dtype: str | None,
    names: tuple[str, ...],
    labels: Path | None,
    orientations: str,
    thorough: bool,
    precision: float,
    seed: int,
    report: Path | None,
    show_worst: int,
    json_output: bool,
) -> None:
    from embed.embedder_dir import describe_embedder
    from embed.evaluation.evaluation import warnings_of
    from embed.evaluation.labelled_pairs import read_labelled_pairs
    from embed.evaluation.precision_recall import PRECISIONS

    if (photos is None) == (pairs is None):
        raise click.UsageError("give either PHOTOS or --pairs CSV")
    if thorough and orientations != "1":
        raise click.UsageError(
            f"--thorough compares images upright only; leave out --orientations {orientations}, or --thorough"
        )
    if report is not None and not report.parent.is_dir():
        raise click.UsageError(f"--report {report}: the folder {report.parent} does not exist")
    spec = describe_embedder(embedder)
    names = tuple(dict.fromkeys(names))
    precisions = tuple(sorted({*PRECISIONS, precision}))
    num_worst = max(show_worst, 40)
    if pairs is not None:
        evaluated = _evaluate_labels(
            pairs,
            images or pairs.parent,
            names,
            embedder=embedder,
            dtype=dtype,
            thorough=thorough,
            precisions=precisions,
            seed=seed,
            num_worst=num_worst,
        )
    else:
        assert photos is not None  # noqa: S101 - the usage error above
        evaluated = _evaluate_edits(
            photos,
            distractors,
            names,
            num_photos=num_photos,
            num_distractors=num_distractors,
            edits=edits,
            embedder=embedder,
            dtype=dtype,
            thorough=thorough,
            known=None if labels is None else read_labelled_pairs(labels, images=images or photos),
            num_orientations=int(orientations),
            precisions=precisions,
            seed=seed,
            num_worst=num_worst,
        )
    notes = [*evaluated.notes, *warnings_of(evaluated.evaluations)]
    parameters = {
        "embedder": spec.name,
        "embedder digest": spec.digest,
        "dtype": dtype or spec.default_dtype,
        "seed": seed,
        "edits": edits,
        "thorough": thorough,
        **evaluated.counts,
    }
    if report is not None:
        _write_report(evaluated, report, precision=precision, parameters=parameters, notes=notes, seed=seed)
    if json_output:
        figures = {
            **parameters,
            "source": evaluated.source,
            "notes": notes,
            "rejects": evaluated.rejects,
            "results": [evaluation.as_json() for evaluation in evaluated.evaluations],
        }
        click.echo(json.dumps(_finite(figures)))
        return
    _print(evaluated, precision=precision, show_worst=show_worst, notes=notes)
    if report is not None:
        click.echo(f"report            {report}")


def _evaluate_edits(
    photos: Path,
    distractors: Path | None,
    names: Sequence[str],
    *,
    num_photos: int | None,
    num_distractors: int,
    edits: str,
    embedder: str,
    dtype: str | None,
    thorough: bool,
    known: LabelledPairs | None,
    num_orientations: int,
    precisions: Sequence[float],
    seed: int,
    num_worst: int,
) -> Evaluated:
    from embed.embedder_dir import describe_embedder
    from embed.evaluation.descriptors import EmbedderDescriptor, load_descriptors
    from embed.evaluation.edits import EDIT_SETS
    from embed.evaluation.evaluation import evaluate
    from embed.evaluation.labelled_pairs import linked_positions
    from embed.evaluation.orientations import OrientedDescriptor
    from embed.evaluation.planted import (
        describe_planted,
        draw_distractors,
        draw_photos,
        list_photos,
        readable_images,
        score_edits,
    )
    from embed.evaluation.same_picture import same_pictures

    paths, rejects = readable_images(draw_photos(list_photos(photos), num_photos, seed=seed))
    drawn = draw_distractors(distractors, num_distractors, seed=seed) if distractors else []
    others, rejected_others = readable_images(drawn) if drawn else ([], [])
    everything = [*paths, *others]
    same = same_pictures(everything)
    by_nature = sorted({*linked_positions(known, everything)} - {*same}) if known is not None else []
    descriptors = [
        OrientedDescriptor(descriptor, num_orientations, describe_embedder(embedder).dim)
        if num_orientations > 1 and isinstance(descriptor, EmbedderDescriptor)
        else descriptor
        for descriptor in load_descriptors(names, embedder=embedder, dtype=dtype, thorough=thorough)
    ]
    planted_edits = EDIT_SETS[edits]
    described = describe_planted(descriptors, paths, others, edits=planted_edits, seed=seed)
    notes = []
    if same:
        twins = ", ".join(f"{everything[left].name} = {everything[right].name}" for left, right in same[:20])
        notes.append(f"{len(same)} pairs of files hold one picture and count neither as true nor as false: {twins}")
    if known is not None:
        notes.append(
            f"{len(by_nature)} more pairs, labelled near-duplicate or unsure, count neither as true nor as false"
        )
    same = [*same, *by_nature]
    return Evaluated(
        source=str(photos),
        images=everything,
        edits_of_left=True,
        evaluations=[
            evaluate(
                descriptor.name,
                score_edits(rows, edits=planted_edits, scorer=descriptor.scorer, same=same, num_worst=num_worst),
                precisions=precisions,
                images_per_second=rows.images_per_second,
                seed=seed,
            )
            for descriptor, rows in zip(descriptors, described, strict=True)
        ],
        rejects=[*rejects, *rejected_others],
        notes=notes,
        counts={"photos": len(paths), "distractors": len(others), "same picture pairs": len(same) - len(by_nature)}
        | ({} if known is None else {"labelled pairs": len(by_nature)}),
    )


def _evaluate_labels(
    pairs: Path,
    images: Path,
    names: Sequence[str],
    *,
    embedder: str,
    dtype: str | None,
    thorough: bool,
    precisions: Sequence[float],
    seed: int,
    num_worst: int,
) -> Evaluated:
    from embed.evaluation.descriptors import load_descriptors
    from embed.evaluation.evaluation import evaluate
    from embed.evaluation.labelled_pairs import read_labelled_pairs, readable_pairs, score_labels
    from embed.evaluation.planted import describe_all, readable_images
    from embed.evaluation.same_picture import same_pictures

    given = read_labelled_pairs(pairs, images=images)
    readable, rejects = readable_images(given.images)
    labelled = readable_pairs(given, set(readable))
    notes, same = [], []
    if given.are_complete:
        same = same_pictures(labelled.images)
        notes.append("no pair is labelled 0, so all pairs of images that the labelled ones do not link count as false")
        notes.append(f"{len(same)} pairs of files hold one picture and link as labels do")
    evaluations = []
    for descriptor in load_descriptors(names, embedder=embedder, dtype=dtype, thorough=thorough):
        rows, images_per_second = describe_all(descriptor, labelled.images)
        scored = score_labels(rows, labelled, scorer=descriptor.scorer, same=same, num_worst=num_worst)
        evaluations.append(
            evaluate(descriptor.name, scored, precisions=precisions, images_per_second=images_per_second, seed=seed)
        )
    return Evaluated(
        source=str(pairs),
        images=labelled.images,
        edits_of_left=False,
        evaluations=evaluations,
        rejects=rejects,
        notes=notes,
        counts={"images": len(labelled.images), "pairs": len(labelled.left)},
    )


def _print(evaluated: Evaluated, *, precision: float, show_worst: int, notes: Sequence[str]) -> None:
    from cli.report.wording import visible
    from cli.tables import show_table

    found = [evaluation.at(precision) for evaluation in evaluated.evaluations]
    rows = [[visible(kind), *(f"{recall.by_kind[kind]:.3f}" for recall in found)] for kind in found[0].by_kind]
    for place, recall in enumerate(evaluated.evaluations[0].recalls):
        columns = [evaluation.recalls[place] for evaluation in evaluated.evaluations]
        rows.append(
            [
                f"all at precision {recall.precision:g}",
                *(f"{r.overall:.3f} ({r.interval.low:.3f}..{r.interval.high:.3f})" for r in columns),
            ]
        )
        rows.append(["  threshold", *(f"{r.point.threshold:.4f}" for r in columns)])
        rows.append(["  true / false", *(f"{r.point.num_true} / {r.point.num_false}" for r in columns)])
    rows.append(["images/s", *(f"{evaluation.images_per_second:.0f}" for evaluation in evaluated.evaluations)])
    counts = ", ".join(f"{number:,} {name}" for name, number in evaluated.counts.items())
    header = [f"recall at precision {precision:g}", *(evaluation.descriptor for evaluation in evaluated.evaluations)]
    show_table(f"{visible(evaluated.source)}: {counts}", header, rows)
    for title, worst in (
        ("false matches", evaluated.evaluations[0].worst_false),
        ("misses", evaluated.evaluations[0].worst_misses),
    ):
        if show_worst:
            names = [
                [f"{pair.score:.4f}", pair.kind, *(visible(evaluated.images[i].name) for i in (pair.left, pair.right))]
                for pair in worst[:show_worst]
            ]
            show_table(f"Worst {title} of {evaluated.evaluations[0].descriptor}", ["score", "kind", "a", "b"], names)
    for name, reason in evaluated.rejects:
        click.echo(f"rejected {visible(name)}: {visible(reason)}", err=True)
    for note in notes:
        click.echo(note)


def _write_report(
    evaluated: Evaluated,
    path: Path,
    *,
    precision: float,
    parameters: dict[str, Any],
    notes: Sequence[str],
    seed: int,
) -> None:
    from datetime import UTC, datetime

    from cli.report import make_thumbnail
    from cli.report.evaluation import EvaluationReport, ShownPair, write_evaluation_report
    from embed.evaluation.planted import edited_photo, open_photo

    def shown(pair: JudgedPair) -> ShownPair:
        left, right = evaluated.images[pair.left], evaluated.images[pair.right]
        left_pixels = (
            edited_photo(left, pair.kind, seed=seed, photo_number=pair.left)
            if evaluated.edits_of_left
            else open_photo(left)
        )
        return ShownPair(
            kind=pair.kind,
            score=pair.score,
            left=make_thumbnail(left_pixels),
            left_name=left.name,
            right=make_thumbnail(open_photo(right)),
            right_name=right.name,
        )

    ours = evaluated.evaluations[0]
    write_evaluation_report(
        EvaluationReport(
            source=evaluated.source,
            created_at=datetime.now(UTC),
            precision=precision,
            evaluations=evaluated.evaluations,
            parameters={name: str(value) for name, value in parameters.items()},
            warnings=notes,
            rejects=evaluated.rejects,
            worst_misses=[shown(pair) for pair in ours.worst_misses],
            worst_false=[shown(pair) for pair in ours.worst_false],
        ),
        path,
    )


def _finite(value: Any) -> Any:
    """The value with null for numbers that JSON cannot hold, as the threshold of a descriptor that finds nothing."""
    if isinstance(value, float):
        return value if abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
