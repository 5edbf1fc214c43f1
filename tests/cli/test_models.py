"""Rules of `neardup models`, with a real tracking store in a file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import models, quantize, train_embedder, train_head
from cli.exit_codes import ExitCode
from embed.calibration.calibration import Calibration, Promise
from embed.embedder_dir import create_embedder_dir, describe_embedder, extend_embedder_dir
from embed.errors import EmbedderError, LineageError
from embed.lineage import Lineage, ModelKind, record, write_lineage


@pytest.fixture
def trained(tmp_path: Path, tracking_uri: str) -> Path:
    """An embedder directory with its lineage, which the store knows too."""
    return embedder(tmp_path / "mine", tracking_uri, epochs=13)


def embedder(path: Path, tracking_uri: str | None, **parameters: Any) -> Path:
    """Another embedder for each path, so that tests can share the store."""
    seed = int.from_bytes(hashlib.sha256(str(path).encode()).digest()[:4])
    spec = create_embedder_dir(path, architecture="vgg_copy", weights="seeded", size=32, seed=seed)
    record(
        path,
        kind=ModelKind.EMBEDDER,
        digest=spec.digest,
        tracking_uri=tracking_uri,
        seed=seed,
        data={"photos": "ab" * 32},
        parameters=parameters,
        metrics={"final_loss": 1.5},
    )
    return path


def run(*arguments: str | Path, tracking_uri: str) -> Result:
    given = [*map(str, arguments), "--tracking-uri", tracking_uri]
    return CliRunner().invoke(models.command, given, catch_exceptions=False)


def run_json(*arguments: str | Path, tracking_uri: str) -> Any:
    return json.loads(run(*arguments, "--json", tracking_uri=tracking_uri).stdout)


def test_the_list_has_built_in_and_tracked_models(trained: Path, tracking_uri: str) -> None:
    """Built-in embedders come first; a trained one is told with its data and directory."""
    listed = run_json("list", tracking_uri=tracking_uri)["models"]
    assert (listed[0]["name"], listed[0]["where"]) == ("vgg_copy", "built-in")
    latest = next(model for model in listed if model["where"] != "built-in")
    assert (latest["name"], latest["where"]) == ("mine", str(trained))

    table = run("list", tracking_uri=tracking_uri).stdout
    assert "photos abababab" in table
    assert describe_embedder(trained).digest[:12] in table


def test_without_a_store_the_built_in_models_are_listed_at_once(tmp_path: Path) -> None:
    """A machine that trained nothing pays for no MLflow and gets no file."""
    probe = (
        "import sys; from click.testing import CliRunner; from cli import models; "
        "print(CliRunner().invoke(models.command, ['list', '--json']).output); "
        "print(sorted({'mlflow', 'keras', 'pyspark'} & set(sys.modules)))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_TRACKING_URI")}
    environment |= {"XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=environment)
    assert {model["name"] for model in json.loads(done.stdout.splitlines()[0])["models"]} == {"vgg_copy"}
    assert done.stdout.splitlines()[-1] == "[]"
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_found_by_directory_and_by_its_digest(trained: Path, tracking_uri: str) -> None:
    """The digest that a run reports, or its beginning, leads to what the model was trained on."""
    digest = describe_embedder(trained).digest
    by_directory = run_json("show", trained, tracking_uri=tracking_uri)["models"][0]

    assert by_directory["digest"] == digest
    for given in (digest, digest[:8]):
        by_digest = run_json("show", given, tracking_uri=tracking_uri)["models"][0]
        assert by_digest["lineage"] == by_directory["lineage"]
        assert by_digest["lineage"]["data"] == {"photos": "ab" * 32}


def test_a_built_in_model_is_found_by_name_and_digest_without_any_store(tmp_path: Path) -> None:
    """The report of a default run names a digest that every machine knows."""
    uri = f"sqlite:///{tmp_path}/none.db"
    digest = describe_embedder().digest
    shown = run("show", digest, tracking_uri=uri).stdout

    assert run("show", "vgg_copy", tracking_uri=uri).stdout.startswith(shown)
    assert re.search(rf"^digest +{digest}$", shown, re.MULTILINE)
    assert "spec.architecture" in shown
    assert "embed/weights/README.md" in shown


def test_an_embedder_without_lineage_is_told_so(tmp_path: Path, tracking_uri: str) -> None:
    """What its files say is shown; of its training nothing is known."""
    create_embedder_dir(tmp_path / "bare", architecture="vgg_copy", weights="seeded", size=32)

    shown = run("show", tmp_path / "bare", tracking_uri=tracking_uri).stdout

    assert "spec.size" in shown
    assert "nothing is recorded about its training" in shown


def test_a_lineage_of_other_files_is_not_believed(trained: Path, tracking_uri: str) -> None:
    """When the weights were exchanged, the digest is that of the files and the lineage is said not to hold."""
    before = describe_embedder(trained).digest
    spec = json.loads((trained / "embedder.json").read_text())
    (trained / "embedder.json").write_text(json.dumps({**spec, "seed": 7}))

    shown = run_json("show", trained, tracking_uri=tracking_uri)["models"][0]
    assert (shown["digest"], shown["is_foreign_lineage"]) == (describe_embedder(trained).digest, True)
    text = run("show", trained, tracking_uri=tracking_uri).stdout
    assert f"describes another embedder, {before[:12]}" in text
    compared = run("compare", trained, "vgg_copy", tracking_uri=tracking_uri)
    assert f"describes another embedder, {before[:12]}" in compared.stderr
    assert "abababab" not in compared.stdout


@pytest.fixture
def calibrated(trained: Path, tmp_path: Path) -> Path:
    """The embedder with a calibration and its lineage."""
    spec = describe_embedder(trained)
    promise = Promise(
        target=0.99,
        precision=0.995,
        lower_bound=0.99,
        upper_bound=1.0,
        recall=0.8,
        true_pairs_per_query=1.0,
        corpus_size=100,
    )
    calibration = Calibration(
        method="logistic",
        raw_scores=(0.0, 1.0),
        probabilities=(0.0, 1.0),
        threshold=0.6,
        promise=promise,
        scored_by=spec.digest,
    )
    written = extend_embedder_dir(spec, tmp_path / "calibrated", calibration=calibration)
    write_lineage(written.directory, Lineage(kind=ModelKind.CALIBRATION, digest=calibration.digest))
    return written.directory


def test_all_models_of_a_directory_are_shown(calibrated: Path, tracking_uri: str) -> None:
    """A calibration that lies with its embedder is shown with it."""
    shown = run_json("show", calibrated, tracking_uri=tracking_uri)["models"]
    digest = hashlib.sha256((calibrated / "calibration.json").read_bytes()).hexdigest()
    assert [(model["kind"], model["digest"], model["is_foreign_lineage"]) for model in shown] == [
        ("embedder", describe_embedder(calibrated).digest, False),
        ("calibration", digest, False),
    ]


def test_a_lineage_of_another_calibration_is_not_believed(calibrated: Path, tracking_uri: str) -> None:
    path = calibrated / "calibration.json"
    path.write_text(path.read_text().replace("0.6", "0.7"))
    shown = run_json("show", calibrated, tracking_uri=tracking_uri)["models"][1]
    assert (shown["kind"], shown["is_foreign_lineage"]) == ("calibration", True)
    assert "describes another calibration" in run("show", calibrated, tracking_uri=tracking_uri).stdout


def test_names_cannot_drive_the_terminal(tmp_path: Path, tracking_uri: str) -> None:
    """Escape sequences and markup in a lineage that somebody sent are shown, not obeyed."""
    write_lineage(tmp_path, Lineage(kind=ModelKind.CLASSIFIER, digest="d" * 64, note="\x1b[2J[red]x[/red]"))
    other = tmp_path / "other"
    other.mkdir()
    write_lineage(other, Lineage(kind=ModelKind.CLASSIFIER, digest="d" * 64))

    for command in (("show", tmp_path), ("compare", tmp_path, other)):
        assert "‹U+001B›[2J[red]x[/red]" in run(*command, tracking_uri=tracking_uri).stdout


def test_a_comparison_shows_what_differs_and_nothing_else(tmp_path: Path, tracking_uri: str) -> None:
    """Parameters of both sides, or of one; what is the same is left out."""
    first = embedder(tmp_path / "first", None, epochs=13, dtype="bfloat16")
    second = embedder(tmp_path / "second", None, epochs=11, dtype="bfloat16", group_size=16)

    differences = run_json("compare", first, second, tracking_uri=tracking_uri)["embedder"]
    assert differences["parameters.epochs"] == [13, 11]
    assert differences["parameters.group_size"] == [None, 16]
    assert not {"parameters.dtype", "metrics.final_loss", "spec.size", "where"} & differences.keys()
    table = run("compare", first, second, tracking_uri=tracking_uri).stdout
    assert "parameters.epochs" in table
    assert "no difference is known" in run("compare", first, first, tracking_uri=tracking_uri).stdout


def test_models_of_different_kinds_are_not_compared(tmp_path: Path, trained: Path, tracking_uri: str) -> None:
    """There is nothing to compare between a calibration and an embedder."""
    write_lineage(tmp_path, Lineage(kind=ModelKind.CALIBRATION, digest="c" * 64))
    result = run("compare", tmp_path, trained, tracking_uri=tracking_uri)
    assert (result.exit_code, "compare two models of one kind" in result.output) == (ExitCode.USAGE, True)


def test_a_directory_is_recorded_once(tmp_path: Path, tracking_uri: str) -> None:
    """What a store missed can be logged later; doing it twice changes nothing."""
    path = embedder(tmp_path / "late", None)
    digest = describe_embedder(path).digest
    with pytest.raises(LineageError):
        run("show", digest, tracking_uri=tracking_uri)

    assert "recorded in sqlite" in run("record", path, tracking_uri=tracking_uri).stdout
    assert "was recorded before" in run("record", path, tracking_uri=tracking_uri).stdout
    assert run_json("show", digest, tracking_uri=tracking_uri)["models"][0]["where"] == str(path)


def test_what_names_no_model_is_refused(tmp_path: Path, tracking_uri: str) -> None:
    """A typing error, a digest nobody knows, too few digits and a folder of something else each have their message."""
    for given, message in (
        ("vgg_cpoy", "neither built in"),
        ("abcde", "neither built in"),
        ("0123456789", "no model with a digest 0123456789"),
    ):
        with pytest.raises(LineageError, match=message):
            run("show", given, tracking_uri=tracking_uri)
    with pytest.raises(EmbedderError, match="is no embedder directory"):
        run("show", tmp_path, tracking_uri=tracking_uri)
    with pytest.raises(LineageError, match=r"has no lineage\.json"):
        run("record", tmp_path, tracking_uri=tracking_uri)


def test_a_prefix_of_two_digests_is_ambiguous(tmp_path: Path, tracking_uri: str) -> None:
    """The error shows both, a digit or more further."""
    for ending in "12":
        record(tmp_path, kind=ModelKind.CALIBRATION, digest="5eed" * 15 + f"000{ending}", tracking_uri=tracking_uri)
    with pytest.raises(LineageError, match=r"2 models have a digest 5eed5eed\.\.\. .*give more digits"):
        run("show", "5eed5eed", tracking_uri=tracking_uri)
    assert run("show", "5eed" * 15 + "0001", tracking_uri=tracking_uri).exit_code == ExitCode.OK


def test_an_address_that_is_no_store_is_a_usage_error(tmp_path: Path) -> None:
    """It is refused by every command that takes it, before a training and not after it."""
    for command, *arguments in (
        (models.command, "list"),
        (train_embedder.command, str(tmp_path), "--output", "out"),
        (train_head.command, str(tmp_path), "--start-from", str(tmp_path), "--output", "out"),
        (quantize.command, str(tmp_path), "--embedder", str(tmp_path), "--output", "out"),
    ):
        result = CliRunner().invoke(command, arguments, env={"NEARDUP_TRACKING_URI": "mlruns"})
        assert result.exit_code == ExitCode.USAGE
        assert "'mlruns' is no tracking store" in result.output


def test_errors_have_a_message_and_an_exit_code() -> None:
    """An operator sees no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "models", "show", "nothing"], capture_output=True, text=True, check=False
    )
    assert done.returncode == ExitCode.MODEL
    assert done.stderr.startswith("neardup: error: there is no model 'nothing'")
