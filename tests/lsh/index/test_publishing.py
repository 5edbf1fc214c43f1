"""Rules of publishing: one pointer, always whole, that moves forward and back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lsh.errors import GenerationError
from lsh.index import layout
from lsh.index.generation import read_manifest
from lsh.index.publishing import (
    collect_garbage,
    current,
    generation_folder,
    list_generations,
    new_generation,
    promote,
    rollback,
)
from tests.lsh.index.conftest import make_corpus, write_generation


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


def published(index: Path, num: int) -> list[str]:
    """The ids of `num` new generations."""
    generation_ids = []
    for seed in range(num):
        with new_generation(index) as folder:
            generation_ids.append(read_manifest(write_generation(folder, make_corpus(100, seed=seed))).generation_id)
    return generation_ids


def test_an_index_starts_without_a_current_generation(index: Path) -> None:
    """Before the first promotion nothing is current, and nothing is listed."""
    assert current(index) is None
    assert list_generations(index) == []
    for change in (rollback, lambda index: promote(index, "0" * 16), lambda index: collect_garbage(index, 0)):
        with pytest.raises(GenerationError, match="there is no index"):
            change(index)


def test_promote_and_rollback_move_the_pointer(index: Path) -> None:
    """Promotions are undone one after the other, the first one cannot be."""
    first, second, third = published(index, 3)
    for generation_id in (first, second, third):
        promote(index, generation_id)
        assert current(index) == generation_id
    assert [rollback(index), rollback(index)] == [second, first]
    assert current(index) == first
    with pytest.raises(GenerationError, match="nothing to roll back to"):
        rollback(index)


def test_promoting_the_current_generation_changes_nothing(index: Path) -> None:
    """A rollback after promoting twice still leads to the generation before."""
    first, second = published(index, 2)
    for generation_id in (first, second, second):
        promote(index, generation_id)
    assert rollback(index) == first


def test_a_damaged_generation_is_not_promoted(index: Path) -> None:
    """The file is named and the pointer stays."""
    first, second = published(index, 2)
    promote(index, first)
    codes = generation_folder(index, second) / layout.CODES
    codes.write_bytes(bytes(codes.stat().st_size))
    with pytest.raises(GenerationError, match=layout.CODES):
        promote(index, second)
    assert current(index) == first


@pytest.mark.parametrize("generation_id", ["0" * 16, "../generations", "", "nonsense", "A" * 16])
def test_an_unknown_generation_is_refused(index: Path, generation_id: str) -> None:
    """Only the ids of generations that are there lead to a folder."""
    published(index, 1)
    with pytest.raises(GenerationError, match="see `neardup index list`"):
        promote(index, generation_id)


def publish_unsound(index: Path, damage: Callable[[Path], object]) -> None:
    with new_generation(index) as folder:
        damage(write_generation(folder, make_corpus(100)))


def test_an_unsound_generation_is_not_published(index: Path) -> None:
    """What was written is verified before it gets its name, and a refused folder is removed."""
    with pytest.raises(GenerationError, match=layout.SKETCHES):
        publish_unsound(index, lambda folder: (folder / layout.SKETCHES).write_bytes(b""))
    with pytest.raises(FileNotFoundError):
        publish_unsound(index, lambda folder: (folder / "no such file").read_bytes())
    assert list((index / "generations").iterdir()) == []


def test_writing_the_same_generation_again_keeps_the_first(index: Path) -> None:
    """Equal content has one id and one folder."""
    for _ in range(2):
        with new_generation(index) as folder:
            write_generation(folder, make_corpus(100))
    assert len(list_generations(index)) == 1


def test_garbage_is_what_no_rollback_needs(index: Path) -> None:
    """Older generations go, except the last `keep` that were current; the current one always stays."""
    first, second, third = published(index, 3)
    for generation_id in (first, second, third):
        promote(index, generation_id)
    assert collect_garbage(index, 2) == []
    assert collect_garbage(index, 1) == [first]
    assert {one.generation_id for one in list_generations(index)} == {second, third}
    assert rollback(index) == second
    with pytest.raises(GenerationError, match="nothing to roll back to"):
        rollback(index)


def test_a_negative_number_to_keep_is_refused(index: Path) -> None:
    """`keep` counts generations."""
    (only,) = published(index, 1)
    promote(index, only)
    with pytest.raises(GenerationError, match="keep=-1"):
        collect_garbage(index, -1)


def test_a_generation_that_cannot_be_read_is_listed_with_its_problem(index: Path) -> None:
    """One damaged generation does not hide the others."""
    whole, damaged = published(index, 2)
    (generation_folder(index, damaged) / "manifest.json").write_text("{}")
    listed = {one.generation_id: one for one in list_generations(index)}
    assert listed[whole].problem is None
    assert "manifest.json" in (listed[damaged].problem or "")


def test_a_generation_under_another_name_is_a_problem(index: Path) -> None:
    """The folder's name is the id of its manifest."""
    (only,) = published(index, 1)
    shutil.copytree(generation_folder(index, only), index / "generations" / ("f" * 16))
    assert [one.generation_id for one in list_generations(index) if one.problem] == ["f" * 16]


@pytest.mark.parametrize("content", ["", "{}", '{"current": "../x", "previous": []}', '{"current": 1, "previous": []}'])
def test_a_damaged_pointer_is_named(index: Path, content: str) -> None:
    """A pointer file that is not ours is an error with the way out, not a guess."""
    published(index, 1)
    (index / "current").write_text(content)
    with pytest.raises(GenerationError, match=r"current cannot be read .*promote a generation again"):
        current(index)


def test_the_pointer_is_replaced_in_one_step(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash before the rename leaves the old pointer as it was and no file behind."""
    first, second = published(index, 2)
    promote(index, first)

    def crash(_: Path) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="the disk is gone"):
        promote(index, second)
    monkeypatch.undo()
    assert current(index) == first
    assert {path.name for path in index.iterdir()} == {"generations", "current", ".lock"}


def test_promotions_at_once_lose_no_history(index: Path) -> None:
    """Processes that promote at the same time take turns: every promotion can be rolled back."""
    generation_ids = published(index, 4)
    program = "import sys, pathlib; from lsh.index.publishing import *; promote(pathlib.Path(sys.argv[1]), sys.argv[2])"
    running = [subprocess.Popen([sys.executable, "-c", program, str(index), one]) for one in generation_ids]
    assert [process.wait(timeout=120) for process in running] == [0] * 4
    seen = [current(index), *(rollback(index) for _ in range(3))]
    assert sorted(map(str, seen)) == sorted(generation_ids)
