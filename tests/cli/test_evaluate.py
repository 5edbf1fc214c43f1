"""Rules of `neardup evaluate`, as an operator meets them. The hashes stand for the embedder where none is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cli.evaluate import command
from embed.errors import EvaluationError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Invoke = Callable[..., Result]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight smooth random pictures and one file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        coarse.resize((240, 180), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    (folder / "<b>broken.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture
def invoke() -> Invoke:
    """`invoke(*arguments)`: the command's result; an error of ours is raised."""

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)

    return run


def test_json_holds_recall_by_kind_with_intervals_and_what_was_rejected(photos: Path, invoke: Invoke) -> None:
    """One object with each descriptor's figures at each precision, and the file that could not be read."""
    result = invoke(photos, "--descriptor", "pdq", "--descriptor", "phash", "--json")
    figures = json.loads(result.stdout)
    assert figures["thorough"] is False
    assert (figures["photos"], [Path(name).name for name, _ in figures["rejects"]]) == (8, ["<b>broken.png"])
    assert [entry["descriptor"] for entry in figures["results"]] == ["PDQ", "pHash 256"]
    at_99 = figures["results"][0]["recall_at"][1]
    assert (at_99["precision"], len(at_99["by_kind"])) == (0.99, 14)
    low, high = at_99["by_kind"]["JPEG 30"]["interval"]
    assert 0 <= low <= at_99["by_kind"]["JPEG 30"]["recall"] <= high <= 1


def test_labelled_near_duplicates_among_the_photos_are_no_mistakes(
    photos: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """A slightly cropped twin is a false match until its label says otherwise."""
    twin = Image.open(photos / "0.png").crop((8, 8, 240, 180))
    twin.save(photos / "twin.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("a,b,label\n0.png,twin.png,1\n")
    given = (photos, "--descriptor", "phash", "--json")
    without, with_labels = (json.loads(invoke(*given, *more).stdout) for more in ((), ("--labels", labels)))
    recall = [figures["results"][0]["recall_at"][1]["recall"] for figures in (without, with_labels)]
    assert recall[0] < recall[1]
    assert (without.get("labelled pairs"), with_labels["labelled pairs"]) == (None, 1)


def test_the_same_seed_gives_the_same_figures(photos: Path, invoke: Invoke) -> None:
    """Edits, draws and intervals depend on the seed alone; only the speed differs."""

    def figures() -> object:
        results = json.loads(invoke(photos, "--descriptor", "phash", "--seed", 3, "--num-photos", 5, "--json").stdout)
        return [entry["recall_at"] for entry in results["results"]]

    assert figures() == figures()


def test_labelled_pairs_are_told_by_kind(photos: Path, tmp_path: Path, invoke: Invoke) -> None:
    """A copy is found, and the table says what counted as false."""
    for number in range(3):
        with Image.open(photos / f"{number}.png") as photo:
            photo.resize((120, 90)).save(photos / f"{number}-small.jpg", quality=60)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b,label,kind\n" + "".join(f"{n}.png,{n}-small.jpg,1,resize\n" for n in range(3)))
    result = invoke("--pairs", pairs, "--images", photos, "--descriptor", "phash")
    assert "resize" in result.stdout
    assert "1.000" in result.stdout
    assert "no pair is labelled 0" in result.stdout


@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
def test_thorough_measures_the_embedder_with_its_views(
    photos: Path, tmp_path: Path, tiny_embedder: str, invoke: Invoke
) -> None:
    """Edits and labelled pairs alike, beside the same hashes as ever, and the figures say so."""
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b,label\n0.png,1.png,1\n2.png,3.png,1\n")
    given = ("--embedder", tiny_embedder, "--descriptor", "embedder", "--descriptor", "phash", "--thorough", "--json")
    for source in ((photos, "--num-photos", 3), ("--pairs", pairs, "--images", photos)):
        figures = json.loads(invoke(*source, *given).stdout)
        assert figures["thorough"] is True
        assert [entry["descriptor"] for entry in figures["results"]] == ["vgg_copy + views", "pHash 256"]


@pytest.mark.tensorflow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
def test_the_network_computes_in_the_precision_asked_for(photos: Path, invoke: Invoke) -> None:
    """bfloat16 moves cosines, and so the threshold, by about 0.001, and finds what float32 finds."""
    at_99 = {}
    for dtype in ("float32", "bfloat16"):
        figures = json.loads(invoke(photos, "--descriptor", "cosine", "--dtype", dtype, "--json").stdout)
        assert figures["dtype"] == dtype
        at_99[dtype] = figures["results"][0]["recall_at"][1]
    assert 0 < abs(at_99["float32"]["threshold"] - at_99["bfloat16"]["threshold"]) < 0.02
    assert abs(at_99["float32"]["recall"] - at_99["bfloat16"]["recall"]) <= 0.05


@pytest.mark.parametrize("num_orientations", ["4", "8"])
def test_views_are_compared_upright_only(num_orientations: str, photos: Path, invoke: Invoke) -> None:
    """With several orientations they are a usage error that says which option to leave out."""
    result = invoke(photos, "--descriptor", "phash", "--thorough", "--orientations", num_orientations)
    assert (result.exit_code, f"leave out --orientations {num_orientations}" in result.output) == (2, True)


@pytest.mark.parametrize("arguments", [(), ("photos", "--pairs", "pairs.csv")])
def test_exactly_one_of_photos_and_pairs_is_needed(
    arguments: tuple[str, ...], photos: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither or both is a usage error that names the two."""
    (tmp_path / "pairs.csv").touch()
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert (result.exit_code, "give either PHOTOS or --pairs CSV" in result.output) == (2, True)


def test_an_empty_folder_is_an_error_of_ours(tmp_path: Path, invoke: Invoke) -> None:
    """The folder is named with the suffixes that count as images."""
    with pytest.raises(EvaluationError, match=r"holds no image files; pass a folder with .*\.jpg"):
        invoke(tmp_path, "--descriptor", "phash")


@pytest.mark.browser
def test_the_report_opens_without_complaints_and_fits_a_phone(
    photos: Path, tmp_path: Path, invoke: Invoke, chromium: Browser
) -> None:
    """Table, curve, histogram and pairs of images are there, nothing is fetched, and hostile names stay text."""
    report = tmp_path / "report.html"
    invoke(photos, "--descriptor", "phash", "--descriptor", "pdq", "--report", report)
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(report.as_uri())
    assert page.locator(".recalls tbody tr").count() == 14 + 2 * 3
    assert page.locator("polyline.curve").count() == 2
    assert page.locator(".side-true").count() > 0
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.locator(".shown-pair").count() > 10
    assert "<b>broken.png" in page.inner_text("section[aria-label='Rejected images']")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.close()
    assert complaints == []
