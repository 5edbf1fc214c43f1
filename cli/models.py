"""`neardup models`: which models there are, what each was trained on, and how two of them differ."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import tracking_uri_option
from cli.tables import show_table

if TYPE_CHECKING:
    from embed.embedder_dir import EmbedderSpec
    from embed.lineage import Lineage

HELP = """\
Say which models there are, what each was trained on, and how two of them differ.

A MODEL is the name of a built-in embedder, a model directory, or the first digits of a digest, at least six, as
reports, `dedup --json` and embeddings files carry it.

\b
  neardup models list
  neardup models show vgg_copy
  neardup models show 3f9a1c52                  the model of a report, by its digest
  neardup models compare vgg_copy my-embedder/
  neardup models record my-embedder/            log a directory to the store, for example after it was down
"""
LIST_HELP = """\
List the built-in embedders, then the latest 1,000 models of the tracking store, latest first.

\b
neardup models list
neardup models list --json --tracking-uri https://mlflow.example.org
"""
SHOW_HELP = """\
Show what MODEL is, what it was trained on, by which code and with which settings, and how good it was.

\b
neardup models show my-embedder/
neardup models show 3f9a1c52
"""
COMPARE_HELP = """\
Show the data, parameters and metrics in which two models differ.

\b
neardup models compare vgg_copy my-embedder/
"""
RECORD_HELP = """\
Log what the lineage.json of DIRECTORY says to the tracking store, unless the store has it.

\b
neardup models record my-embedder/ --tracking-uri https://mlflow.example.org
"""
MIN_DIGITS = 6
SHOWN_DIGITS = 12
BUILT_IN = "built-in"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as it was found: in this package or a directory, with its files, or in the tracking store.

    `digest` is that of the files where they were found, so `lineage.digest` differs from it when files were exchanged.
    """

    name: str
    kind: str
    digest: str
    where: str
    spec: EmbedderSpec | None
    lineage: Lineage | None

    @property
    def is_foreign_lineage(self) -> bool:
        """Whether the lineage beside the files describes other files."""
        return self.lineage is not None and self.lineage.digest != self.digest

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "digest": self.digest,
            "where": self.where,
            "spec": None if self.spec is None else _spec_facts(self.spec),
            "lineage": None if self.lineage is None else self.lineage.as_json(),
            "is_foreign_lineage": self.is_foreign_lineage,
        }


@click.group(name="models", help=HELP)
def command() -> None:
    pass


json_option = click.option("--json", "json_output", is_flag=True, help="One JSON object instead of a table.")


@command.command(name="list", help=LIST_HELP, short_help="The built-in embedders and the models of the store.")
@tracking_uri_option
@json_option
def list_models(*, tracking_uri: str, json_output: bool) -> None:
    models = [*_built_in_models(), *_tracked_models(tracking_uri)]
    if json_output:
        click.echo(json.dumps({"models": [model.as_json() for model in models]}))
        return
    rows = [
        [_text(value) for value in (each.name, each.kind, each.digest[:SHOWN_DIGITS], *_origin(each), each.where)]
        for each in models
    ]
    show_table("Models", ["model", "kind", "digest", "made", "trained on", "where"], rows, wrapped=["where"])


@command.command(name="show", help=SHOW_HELP, short_help="What a model is and where it comes from.")
@click.argument("model")
@tracking_uri_option
@json_option
def show_model(*, model: str, tracking_uri: str, json_output: bool) -> None:
    found = _find(model, tracking_uri)
    if json_output:
        click.echo(json.dumps({"models": [each.as_json() for each in found]}))
        return
    click.echo("\n\n".join(map(_described, found)))


@command.command(name="compare", help=COMPARE_HELP, short_help="How two models differ.")
@click.argument("first", metavar="MODEL")
@click.argument("second", metavar="MODEL")
@tracking_uri_option
@json_option
def compare_models(*, first: str, second: str, tracking_uri: str, json_output: bool) -> None:
    left, right = ({each.kind: each for each in _find(name, tracking_uri)} for name in (first, second))
    kinds = [kind for kind in left if kind in right]
    if not kinds:
        raise click.UsageError(
            f"{first} is {', '.join(left)}, {second} is {', '.join(right)}; compare two models of one kind"
        )
    differences = {kind: _differences(left[kind], right[kind]) for kind in kinds}
    for name, side in ((first, left), (second, right)):
        for remark in filter(None, (_remark(side[kind]) for kind in kinds)):
            click.echo(f"{name}: {remark}", err=True)
    if json_output:
        click.echo(json.dumps(differences))
        return
    for kind, rows in differences.items():
        if not rows:
            click.echo(f"no difference is known between the {kind}s {first} and {second}")
            continue
        sides = [_text(first), _text(second)]
        table = [[name, *map(_text, pair)] for name, pair in rows.items()]
        show_table(f"Differences of the {kind}s", ["", *sides], table, wrapped=sides)


@command.command(name="record", help=RECORD_HELP, short_help="Log a model directory to the store.")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@tracking_uri_option
def record_model(*, directory: Path, tracking_uri: str) -> None:
    from embed.errors import LineageError
    from embed.lineage import read_lineages
    from embed.tracking import find_models, log_lineage, shown

    lineages = read_lineages(directory).values()
    if not lineages:
        raise LineageError(f"{directory} has no lineage.json; `neardup train-embedder` writes one")
    for lineage in lineages:
        known = find_models(tracking_uri=tracking_uri, digest_prefix=lineage.digest)
        if any(model.lineage == lineage for model in known):
            click.echo(f"{lineage.kind} {lineage.digest[:SHOWN_DIGITS]} was recorded before")
            continue
        log_lineage(lineage, directory, tracking_uri=tracking_uri)
        click.echo(f"{lineage.kind} {lineage.digest[:SHOWN_DIGITS]} recorded in {shown(tracking_uri)}")


def _find(given: str, tracking_uri: str) -> list[Model]:
    """The models that `given` names: several kinds may share a directory. Raises LineageError."""
    from embed.embedder_dir import shipped_embedders
    from embed.errors import LineageError

    if given in shipped_embedders():
        return _models_in(shipped_embedders()[given], where=BUILT_IN)
    if Path(given).is_dir():
        return _models_in(Path(given).resolve())
    if not re.fullmatch(rf"[0-9a-f]{{{MIN_DIGITS},64}}", given):
        raise LineageError(
            f"there is no model {given!r}: it is neither built in ({', '.join(shipped_embedders())}), a directory, nor "
            f"{MIN_DIGITS} to 64 hex digits of a digest"
        )
    found = [model for model in _built_in_models() if model.digest.startswith(given)]
    found = found or _tracked_models(tracking_uri, given)
    digests = sorted({model.digest for model in found})
    if not found:
        raise LineageError(
            f"no model with a digest {given}... is built in or in the tracking store; give its directory, or the store "
            f"that knows it by --tracking-uri; `neardup models list` shows what is known"
        )
    if len(digests) > 1:
        shown = ", ".join(digest[: len(given) + 6] for digest in digests[:5])
        raise LineageError(f"{len(digests)} models have a digest {given}... ({shown}); give more digits")
    return found[:1]


def _built_in_models() -> list[Model]:
    from embed.embedder_dir import shipped_embedders

    return [model for folder in shipped_embedders().values() for model in _models_in(folder, where=BUILT_IN)]


def _models_in(directory: Path, where: str | None = None) -> list[Model]:
    """The models of a directory: those whose files are there, or those of its lineage where there is no embedder.

    Raises EmbedderError, LineageError.
    """
    from embed.embedder_dir import describe_embedder, model_digests
    from embed.lineage import ModelKind, read_lineages

    lineages = read_lineages(directory)
    has_spec = (directory / "embedder.json").exists() or not lineages
    spec = describe_embedder(directory) if has_spec else None
    digests = model_digests(spec) if spec else {kind: lineage.digest for kind, lineage in lineages.items()}
    return [
        Model(
            name=directory.name,
            kind=kind.value,
            digest=digests[kind],
            where=where or str(directory),
            spec=spec if kind is ModelKind.EMBEDDER else None,
            lineage=lineages.get(kind),
        )
        for kind in ModelKind
        if kind in digests
    ]


def _tracked_models(tracking_uri: str, digest_prefix: str = "") -> list[Model]:
    from embed.tracking import find_models

    return [
        Model(
            name=Path(model.directory).name,
            kind=model.lineage.kind.value,
            digest=model.lineage.digest,
            where=model.directory,
            spec=None,
            lineage=model.lineage,
        )
        for model in find_models(tracking_uri=tracking_uri, digest_prefix=digest_prefix)
    ]


def _facts(model: Model) -> dict[str, Any]:
    """Everything known, by the same names as in `--json`, what identifies first."""
    facts: dict[str, Any] = {"digest": model.digest, "where": model.where}
    if model.spec is not None:
        facts |= {f"spec.{name}": value for name, value in _spec_facts(model.spec).items()}
    if model.lineage is not None:
        lineage = model.lineage.as_json()
        groups = ("parents", "data", "parameters", "metrics")
        facts |= {name: lineage[name] for name in ("created_at", "code_version", "seed")}
        facts |= {f"{group}.{name}": value for group in groups for name, value in lineage[group].items()}
        facts |= {"note": model.lineage.note} if model.lineage.note else {}
    return facts


def _spec_facts(spec: EmbedderSpec) -> dict[str, Any]:
    names = ("architecture", "size", "dim", "pooling", "gem_p", "preprocessing", "whitening", "layout_weight")
    return {name: getattr(spec, name) for name in (*names, "min_score")}


def _differences(left: Model, right: Model) -> dict[str, tuple[Any, Any]]:
    """The facts that are not the same, by name, those of one side only as None on the other.

    What a lineage says of other files is no fact.
    """
    facts = [_facts(replace(each, lineage=None) if each.is_foreign_lineage else each) for each in (left, right)]
    names = [name for name in {**facts[0], **facts[1]} if name != "where"]
    pairs = {name: (facts[0].get(name), facts[1].get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _origin(model: Model) -> tuple[str | None, str | None]:
    """When a model was made and what it was trained on, in a few words; nothing from a lineage of other files."""
    if model.lineage is None or model.is_foreign_lineage:
        return None, None
    data = ", ".join(f"{name} {digest[:8]}" for name, digest in model.lineage.data.items())
    return (model.lineage.created_at or "")[:10] or None, data or None


def _described(model: Model) -> str:
    """A line for each fact, and a remark where they need one."""
    facts = {"model": f"{model.name}, {model.kind}", **_facts(model)}
    width = max(map(len, facts)) + 2
    lines = [f"{_text(name):<{width}}{_text(value)}" for name, value in facts.items()]
    return "\n".join([*lines, *filter(None, [_remark(model)])])


def _remark(model: Model) -> str | None:
    """What to know before trusting a model's lineage."""
    if model.lineage is None:
        return "nothing is recorded about its training: there is no lineage.json beside it"
    if model.lineage.digest == model.digest:
        return None
    return (
        f"the lineage.json beside it describes another {model.kind}, {model.lineage.digest[:SHOWN_DIGITS]}: "
        f"what it says of training does not hold for these files"
    )


def _text(value: Any) -> str:
    from cli.report.wording import visible

    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else visible(str(value))
