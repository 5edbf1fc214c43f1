"""Rules of `neardup calibrate` and `neardup train-classifier`, as an operator meets them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from cli import calibrate, train_classifier
from embed.embedder_dir import describe_embedder
from embed.errors import CalibrationError, ClassifierError
from embed.lineage import ModelKind, read_lineages
from tests.photos import synthetic_photo

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]
Invoke = Callable[..., Result]
NUM_PHOTOS = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in four sub-folders."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(NUM_PHOTOS):
        source = folder / f"source-{number % 4}"
        source.mkdir(exist_ok=True)
        synthetic_photo(number, width=160, height=120).save(source / f"{number}.png")
    return folder


@pytest.fixture
def invoke(tracking_uri: str) -> Invoke:
    """`invoke(command, *arguments)`: the command's result; an error of ours is raised."""

    def run(module: object, *arguments: object) -> Result:
        command = module.command  # type: ignore[attr-defined]
        given = [*map(str, arguments), "--tracking-uri", tracking_uri]
        return CliRunner().invoke(command, given, catch_exceptions=False)

    return run


@pytest.fixture(scope="module")
def calibrated(
    photos: Path, tmp_path_factory: pytest.TempPathFactory, tracking_uri: str
) -> tuple[dict[str, object], Path]:
    """What `calibrate --json` said, and the folder with the embedder and the report."""
    folder = tmp_path_factory.mktemp("calibrated")
    arguments = [photos, "--output", folder / "mine", "--precision", 0.9, "--report", folder / "report.html"]
    arguments += ["--dtype", "bfloat16", "--json"]
    result = CliRunner().invoke(
        calibrate.command, [*map(str, arguments), "--tracking-uri", tracking_uri], catch_exceptions=False
    )
    return json.loads(result.stdout), folder


def test_the_directory_scores_with_the_calibration(calibrated: tuple[dict[str, object], Path]) -> None:
    """The threshold printed is the one that the new directory's pairs are judged by; the embeddings stay the same."""
    figures, folder = calibrated
    spec, plain = describe_embedder(folder / "mine"), describe_embedder("vgg_copy")
    assert spec.min_score == figures["min score"]
    assert (spec.digest, spec.scorer_digest == plain.scorer_digest) == (plain.digest, False)
    assert figures["lower_bound"] >= 0.9  # type: ignore[operator]


def test_lineage_says_what_it_was_calibrated_on(calibrated: tuple[dict[str, object], Path], tracking_uri: str) -> None:
    """The directory and the tracking store name the photos' digest, the prior and both precisions."""
    figures, folder = calibrated
    lineage = read_lineages(folder / "mine")[ModelKind.CALIBRATION]
    assert lineage.digest == figures["calibration digest"]
    assert lineage.parents["embedder"] == figures["embedder digest"]
    assert (lineage.parameters["target"], lineage.parameters["photos"]) == (0.9, NUM_PHOTOS)
    assert lineage.parameters["dtype"] == "bfloat16"
    with sqlite3.connect(tracking_uri.removeprefix("sqlite:///")) as store:
        logged = store.execute("SELECT COUNT(*) FROM tags WHERE value = ?", [lineage.digest]).fetchone()
    assert logged[0] >= 1


def test_the_report_shows_the_reliability_diagram(
    calibrated: tuple[dict[str, object], Path], chromium: Browser
) -> None:
    """The page renders in a browser, with dots for the bins and no error on the console."""
    page = chromium.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto((calibrated[1] / "report.html").as_uri())
    assert page.locator("circle").count() >= 1
    assert page.locator("h1").inner_text() == "Calibration of vgg_copy"
    assert not errors
    page.close()


def test_a_precision_out_of_reach_writes_nothing(photos: Path, tmp_path: Path, invoke: Invoke) -> None:
    """The error names the best that these photos can show."""
    with pytest.raises(CalibrationError, match=r"no threshold reaches precision 0\.9999"):
        invoke(calibrate, photos, "--output", tmp_path / "mine", "--precision", 0.9999, "--corpus-size", 10**9)
    assert not (tmp_path / "mine").exists()


def test_an_existing_output_is_refused_before_any_work(photos: Path, tmp_path: Path, invoke: Invoke) -> None:
    for module in (calibrate, train_classifier):
        result = invoke(module, photos, "--output", tmp_path)
        assert (result.exit_code, "already exists" in result.output) == (2, True)


def test_photos_and_pairs_exclude_each_other(photos: Path, tmp_path: Path, invoke: Invoke) -> None:
    result = invoke(calibrate, "--output", tmp_path / "mine")
    assert (result.exit_code, "give either PHOTOS or --pairs" in result.output) == (2, True)


def test_too_few_photos_for_a_classifier_are_refused(photos: Path, tmp_path: Path, invoke: Invoke) -> None:
    with pytest.raises(ClassifierError, match=r"18 photos to train on and 6 held out are too few"):
        invoke(train_classifier, photos, "--output", tmp_path / "mine")


def test_a_classifier_that_does_not_beat_the_cosine_is_not_written(
    photos: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """Where the cosine already finds all there is nothing to gain."""
    with pytest.raises(ClassifierError, match="does not surely beat the cosine"):
        invoke(train_classifier, photos, "--output", tmp_path / "mine", "--judge-on", photos)
    assert not (tmp_path / "mine").exists()


def test_thorough_images_are_judged_by_their_views_too(
    photos: Path, calibrated: tuple[dict[str, object], Path], tmp_path: Path, invoke: Invoke
) -> None:
    """The same photos find more of their edits, and the lineage says that parts were compared."""
    arguments = [photos, "--output", tmp_path / "mine", "--precision", 0.9, "--thorough", "--json"]
    figures = json.loads(invoke(calibrate, *arguments).stdout)
    assert figures["calibration digest"] != calibrated[0]["calibration digest"]
    assert figures["recall"] > calibrated[0]["recall"]
    assert read_lineages(tmp_path / "mine")[ModelKind.CALIBRATION].parameters["thorough"] is True
