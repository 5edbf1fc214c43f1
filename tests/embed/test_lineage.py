"""`lineage.json`: what it keeps, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embed import lineage as lineage_module
from embed.embedder_dir import create_embedder_dir, describe_embedder, shipped_embedders
from embed.errors import LineageError
from embed.lineage import MAX_FILE_BYTES, Lineage, ModelKind, code_version, read_lineages, record, write_lineage

A, B = "a" * 64, "b" * 64


def lineage(**changes: Any) -> Lineage:
    return Lineage(**{"kind": ModelKind.EMBEDDER, "digest": A, **changes})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Every field and type of value comes back as it was."""
    written = lineage(
        created_at="2026-01-02T03:04:05Z",
        code_version="0.1.0+c1002020a3f1",
        seed=3,
        parents={"start_from": B},
        data={"photos": A},
        parameters={"epochs": 13, "dtype": "bfloat16", "frozen": True, "rate": 0.5, "start": None, "text": "13"},
        metrics={"final_loss": 1},
        note="of two",
    )

    write_lineage(tmp_path, written)

    assert read_lineages(tmp_path) == {ModelKind.EMBEDDER: written}


def test_the_bytes_are_canonical(tmp_path: Path) -> None:
    """The same lineage gives the same bytes, whatever the order of its entries, and leaves nothing else behind."""
    write_lineage(tmp_path, lineage(parameters={"b": 1, "a": "é"}))
    first = (tmp_path / "lineage.json").read_bytes()
    write_lineage(tmp_path, lineage(parameters={"a": "é", "b": 1}))

    assert (tmp_path / "lineage.json").read_bytes() == first
    assert b'"parameters": {\n        "a": "\\u00e9",\n        "b": 1\n      }' in first
    assert [path.name for path in tmp_path.iterdir()] == ["lineage.json"]


def test_each_kind_of_a_directory_has_its_entry(tmp_path: Path) -> None:
    """A calibration written beside an embedder keeps the embedder's entry, and replaces its own earlier one."""
    embedder, calibration = lineage(), lineage(kind=ModelKind.CALIBRATION, digest=B)
    for each in (embedder, lineage(kind=ModelKind.CALIBRATION, seed=1), calibration):
        write_lineage(tmp_path, each)

    assert read_lineages(tmp_path) == {ModelKind.EMBEDDER: embedder, ModelKind.CALIBRATION: calibration}


def test_a_directory_without_the_file_has_no_lineage(tmp_path: Path) -> None:
    """Embedders made before there were lineages, or by hand, stay usable."""
    assert read_lineages(tmp_path) == {}


def test_the_lineage_leaves_the_embedders_digest_alone(tmp_path: Path) -> None:
    """An embedder is the same with and without its lineage."""
    before = create_embedder_dir(tmp_path / "e", architecture="vgg_copy", weights="seeded", size=32)
    write_lineage(before.directory, lineage(digest=before.digest))

    assert describe_embedder(tmp_path / "e") == before


@pytest.mark.parametrize("name", list(shipped_embedders()))
def test_shipped_embedders_carry_their_lineage(name: str) -> None:
    """The lineage of a shipped embedder is that of exactly the shipped files: new weights need a new one."""
    assert read_lineages(shipped_embedders()[name])[ModelKind.EMBEDDER].digest == describe_embedder(name).digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "network"}, "kind='network' is unknown; choose embedder, classifier, calibration"),
        ({"digest": "abc"}, "digest='abc' cannot be recorded; expected 64 lower-case hex digits"),
        ({"seed": True}, "seed='True' cannot be recorded; expected an integer"),
        ({"parents": {"start_from": None}}, "parents.start_from='None' cannot be recorded"),
        ({"data": {"photos": "A" * 64}}, "data.photos="),
        ({"data": [A]}, "data is no mapping of at most 40 entries"),
        ({"parameters": {"layers": [1, 2]}}, "parameters.layers='[1, 2]' cannot be recorded; expected a number"),
        ({"parameters": {"a/b": 1}}, "parameters has the name 'a/b'; use letters, digits"),
        ({"parameters": {str(number): number for number in range(101)}}, "at most 100 entries"),
        ({"metrics": {"loss": float("nan")}}, "metrics.loss='nan' cannot be recorded; expected a finite number"),
        ({"metrics": {"loss": 10**400}}, "metrics.loss="),
        ({"note": "x" * 2001}, "note="),
    ],
)
def test_values_that_cannot_be_stored_are_refused(changes: dict[str, Any], message: str) -> None:
    """Each field is checked when a lineage is made, with its value and what is allowed."""
    with pytest.raises(LineageError, match=re.escape(message)):
        lineage(**changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b"[]", "has format_version 'None'; this release reads 1"),
        (b'{"format_version": 2, "models": {}}', "has format_version '2'; this release reads 1"),
        (b'{"format_version": 1}', "it has no models"),
        (b'{"format_version": 1, "models": {"embedder": 1}}', "its 'embedder' has other fields than"),
        (b'{"format_version": 1, "models": {"embedder": {"seed": 1}}}', "its 'embedder' has other fields than"),
        (b'{"format_version": 1, "models": {"embedder": {"digest": 7}}}', "digest='7' cannot be recorded"),
        (b'{"format_version": 1, "models": {"spy": {"digest": "%s"}}}' % A.encode(), "kind='spy' is unknown"),
        (b" " * (MAX_FILE_BYTES + 1), "has more than 262,144 bytes"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    """Whatever the bytes are, the error names the file and says what is wrong with it."""
    (tmp_path / "lineage.json").write_bytes(content)

    with pytest.raises(LineageError) as refused:
        read_lineages(tmp_path)
    assert str(tmp_path / "lineage.json") in str(refused.value)
    assert message in str(refused.value)


def test_a_whole_lineage_cut_short_is_refused(tmp_path: Path) -> None:
    """No beginning of a file passes for a lineage."""
    write_lineage(tmp_path, lineage(parameters={"epochs": 13}))
    path = tmp_path / "lineage.json"
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(LineageError):
            read_lineages(tmp_path)


def test_a_record_knows_when_and_by_which_code(tmp_path: Path) -> None:
    """What the caller cannot know better is filled in."""
    made = record(tmp_path, kind=ModelKind.CLASSIFIER, digest=A, tracking_uri=None, parents={"embedder": B}, seed=5)

    assert read_lineages(tmp_path) == {ModelKind.CLASSIFIER: made}
    assert (made.code_version, made.parents, made.seed) == (code_version(), {"embedder": B}, 5)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", str(made.created_at))


def test_a_store_that_fails_does_not_lose_the_lineage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file is written, and the log says what failed and how to record the model later."""
    (tmp_path / "full").write_text("a file where a folder is needed")
    with caplog.at_level(logging.WARNING):
        made = record(tmp_path, kind=ModelKind.EMBEDDER, digest=A, tracking_uri=f"sqlite:///{tmp_path}/full/mlflow.db")

    assert read_lineages(tmp_path) == {ModelKind.EMBEDDER: made}
    assert re.search(r"failed \(.*full.*`neardup models record ", caplog.text)


def test_the_code_version_names_the_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Release, commit, and whether files were changed; the release alone outside of a checkout."""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(lineage_module, "_CHECKOUT", tmp_path)
    release = code_version()
    assert "+" not in release
    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    assert re.fullmatch(re.escape(release) + r"\+[0-9a-f]{12,}", code_version())
    (tmp_path / "code.py").write_text("2")
    assert code_version().endswith(".dirty")


def test_lineages_are_read_without_mlflow() -> None:
    """Importing the module costs no tracking store."""
    probe = "import sys, embed.lineage, embed.tracking; print('mlflow' in sys.modules, 'keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_file_is_json_that_other_tools_read(tmp_path: Path) -> None:
    """A version, and an object for each kind."""
    write_lineage(tmp_path, lineage(seed=1))

    given = json.loads((tmp_path / "lineage.json").read_text())
    assert (given["format_version"], given["models"]["embedder"]["seed"]) == (1, 1)
