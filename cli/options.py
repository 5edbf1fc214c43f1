"""The options that several commands share: those of the pipeline with the settings made of them, the tracking store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from batch_jobs.settings import RunSettings

DEFAULT_WORKSPACE = Path("neardup-workspace")
MEBIBYTE = 1 << 20


def _default_tracking_uri() -> str:
    from embed.tracking import default_tracking_uri

    return default_tracking_uri()


def _checked_tracking_uri(_: click.Context, __: click.Parameter, given: str) -> str:
    """Refuse an address that is none before any work, not after a training."""
    from embed.errors import TrackingError
    from embed.tracking import sqlite_file

    try:
        sqlite_file(given)
    except TrackingError as error:
        raise click.BadParameter(str(error)) from error
    return given


tracking_uri_option = click.option(
    "--tracking-uri",
    envvar="NEARDUP_TRACKING_URI",
    default=_default_tracking_uri,
    callback=_checked_tracking_uri,
    metavar="URI",
    help="MLflow store of your models; also NEARDUP_TRACKING_URI. [default: a file in your data folder]",
)


workspace_option = click.option(
    "--workspace",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_WORKSPACE,
    show_default=True,
    help="Folder that keeps every step.",
)


dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "int8"]),
    help="Precision of the network; int8 is the fastest on CPUs. [default: int8 if the embedder has it, or float32]",
)
verbose_option = click.option("--verbose", "-v", is_flag=True, help="A line on standard error for each stage.")


def pipeline_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add SOURCE and the shared options to a command."""
    for option in reversed(
        (
            click.argument("source"),
            workspace_option,
            click.option(
                "--embedder", default="vgg_copy", show_default=True, help="Built-in embedder, or an embedder directory."
            ),
            dtype_option,
            click.option(
                "--max-reject-ratio",
                type=click.FloatRange(0.0, 1.0),
                default=1.0,
                show_default=True,
                help="Fail when more than this share of the images cannot be read.",
            ),
            click.option(
                "--max-mib", type=click.IntRange(1), default=64, show_default=True, help="Largest image file, in MiB."
            ),
            click.option(
                "--max-megapixels",
                type=click.IntRange(1),
                default=100,
                show_default=True,
                help="Largest image, in million pixels.",
            ),
            click.option(
                "--uri-root",
                type=click.Path(path_type=Path, exists=True, file_okay=False),
                help="Folder that a table's uris may point into. [default: the table's own]",
            ),
            click.option("--master", help="Spark master, for small steps too. [default: local[*], where it is needed]"),
            click.option(
                "--partitions", type=click.IntRange(1, 100_000), help="Spark partitions. [default: two a core]"
            ),
        )
    ):
        command = option(command)
    return command


def matching_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what decides how pairs are found and which of them match."""
    for option in reversed(
        (
            click.option(
                "--min-score",
                type=click.FloatRange(-1.0, 1.0),
                help="Lowest score of a match. [default: the embedder's own]",
            ),
            click.option(
                "--min-shared-terms",
                type=click.IntRange(1),
                help="LSH terms a pair must share. [default: the plan's, or 1]",
            ),
            click.option(
                "--plan",
                type=click.Path(path_type=Path, exists=True, dir_okay=False),
                help="How to hash: a file that `neardup tune` wrote.",
            ),
            click.option(
                "--thorough",
                is_flag=True,
                help="Find crops to a quarter, gray, turned and framed copies too; embeds eleven times as long.",
            ),
        )
    ):
        command = option(command)
    return command


def run_settings(
    *,
    source: str,
    workspace: Path,
    embedder: str,
    dtype: str | None,
    max_reject_ratio: float,
    max_mib: int,
    max_megapixels: int,
    uri_root: Path | None,
    master: str | None,
    partitions: int | None,
    min_score: float | None = None,
    min_shared_terms: int | None = None,
    plan: Path | None = None,
    thorough: bool = False,
) -> RunSettings:
    """The settings of a run from a command's options; a plan of `neardup tune` gives terms and thresholds."""
    from batch_jobs.settings import RunSettings
    from embed.decoding import ImageLimits

    return RunSettings(
        source=source,
        workspace=workspace.resolve(),
        embedder=embedder,
        dtype=dtype,
        min_score=min_score,
        **_planned(plan, min_shared_terms),
        thorough=thorough,
        max_reject_ratio=max_reject_ratio,
        uri_root=uri_root,
        limits=ImageLimits(max_bytes=max_mib * MEBIBYTE, max_pixels=max_megapixels * 1_000_000),
        master=master,
        num_partitions=partitions,
    )


def _planned(path: Path | None, min_shared_terms: int | None) -> dict[str, Any]:
    """The settings that a plan file decides; `min_shared_terms` overrules the plan's."""
    if path is None:
        return {"min_shared_terms": min_shared_terms or 1}
    import json
    from dataclasses import asdict

    from lsh.errors import ParameterError
    from lsh.plans import Plan

    try:
        plan = Plan.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ParameterError) as error:
        raise click.UsageError(f"--plan {path}: {error}") from error
    return {
        "terms": plan.terms,
        "candidates": plan.candidates,
        "min_shared_terms": min_shared_terms or plan.min_shared_terms,
        "verified": plan.verified,
        "prediction": asdict(plan.prediction),
    }
