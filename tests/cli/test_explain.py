"""Rules of `neardup explain` and `neardup label-pairs`."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cli import explain, label_pairs
from embed.errors import EvaluationError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A textured picture, its mirror image, another picture and a file that is none."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        coarse = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        coarse.resize((300, 200), Image.Resampling.BICUBIC).save(tmp_path / f"{name}.png")
    with Image.open(tmp_path / "cat.png") as cat:
        cat.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "tac.jpg")
    (tmp_path / "notes.jpg").write_text("no picture")
    return tmp_path


def explained(*arguments: str | Path) -> Result:
    return CliRunner().invoke(explain.command, [str(argument) for argument in arguments], catch_exceptions=False)


def test_a_match_is_told_with_its_transform_and_drawn(photos: Path) -> None:
    """Verdict and transform are in the text, the overlay in the file."""
    result = explained(photos / "cat.png", photos / "tac.jpg", "--output", photos / "overlay.png")
    assert "verdict           same" in result.stdout
    assert "scaled to 1.00, mirrored" in result.stdout
    with Image.open(photos / "overlay.png") as overlay:
        assert overlay.size == (2 * 720, 480)


def test_no_match_has_no_transform_to_speak_of(photos: Path) -> None:
    """Two pictures are told to be different."""
    assert "verdict           different" in explained(photos / "cat.png", photos / "dog.png").stdout


def test_an_output_that_cannot_be_written_is_a_usage_error(photos: Path) -> None:
    """The name must end in .png and its folder exist; it is said before any work."""
    for output in ("overlay.jpg", "none/overlay.png"):
        result = explained(photos / "cat.png", photos / "dog.png", "--output", photos / output)
        assert (result.exit_code, "in a folder that exists" in result.output) == (2, True)


def test_pairs_are_labelled_in_their_order(photos: Path) -> None:
    """1, 0 and unsure, an unreadable image being unsure; the output can be evaluated on."""
    (photos / "pairs.csv").write_text("a,b\ncat.png,tac.jpg\ncat.png,dog.png\ncat.png,notes.jpg\n")
    arguments = [str(photos / "pairs.csv"), "--output", str(photos / "labels.csv")]
    result = CliRunner().invoke(label_pairs.command, arguments, catch_exceptions=False)
    assert "1 same, 1 different, 1 unsure" in result.stdout
    with (photos / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["a"], row["b"], row["label"]) for row in rows] == [
        ("cat.png", "tac.jpg", "1"),
        ("cat.png", "dog.png", "0"),
        ("cat.png", "notes.jpg", "unsure"),
    ]
    assert rows[0]["is_mirrored"] == "true"


@pytest.mark.tensorflow
def test_the_most_similar_pairs_of_a_folder_are_labelled(photos: Path, tiny_embedder: str, tmp_path: Path) -> None:
    """So many rows, of readable images below the folder alone."""
    output = tmp_path / "labels.csv"
    arguments = ["--images", str(photos), "--most-similar", "2", "--embedder", tiny_embedder, "--output", str(output)]
    CliRunner().invoke(label_pairs.command, arguments, catch_exceptions=False)
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert {name for row in rows for name in (row["a"], row["b"])} <= {"cat.png", "dog.png", "tac.jpg"}


def test_a_folder_of_links_to_elsewhere_is_told(photos: Path, tmp_path: Path) -> None:
    """Links out of the folder are not followed, and a folder of nothing else says so."""
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "cat.png").symlink_to(photos / "cat.png")
    arguments = ["--images", str(linked), "--most-similar", "2", "--output", str(tmp_path / "labels.csv")]
    result = CliRunner().invoke(label_pairs.command, arguments)
    assert isinstance(result.exception, EvaluationError)
    assert "copy them into it" in str(result.exception)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give either the CSV PAIRS or --most-similar"),
        (["--most-similar", "5"], "--most-similar needs --images"),
    ],
)
def test_pairs_come_from_one_place(given: list[str], said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(label_pairs.command, [*given, "--output", str(tmp_path / "labels.csv")])
    assert result.exit_code == 2
    assert said in result.output
