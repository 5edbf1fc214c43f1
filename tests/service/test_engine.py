"""The engine on small generations: what it answers, before and after changes, restarts and switches."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lsh.index.publishing import generation_folder, promote
from service.engine import Engine
from service.errors import GenerationChanged, GenerationRefused, ImageIdTaken, InvalidRequest, LogFull, UnknownImage
from service.served import Match, Source
from service.upload_log import UploadLog
from tests.service.corpora import (
    DIM,
    add_current_generation,
    add_generation,
    image_ids,
    near,
    open_engine,
    random_embeddings,
)

EMBEDDINGS = random_embeddings(200)
NEW = random_embeddings(40, seed=77)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def engine(index: Path, tmp_path: Path) -> Iterator[Engine]:
    """An engine over 200 images; `image-3` stands for `image-4` and `image-5`."""
    clusters = {"image-3": ["image-4", "image-5"]}
    generation_id = add_generation(index, image_ids(200), EMBEDDINGS, clusters=clusters)
    promote(index, generation_id)
    engine = open_engine(index, generation_id, tmp_path / "log.db")
    yield engine
    engine.close()


def register(engine: Engine, image_id: str, embedding: np.ndarray) -> str:
    registered, written = engine.register(image_id, embedding)
    written.result(timeout=30)
    return registered.canonical_id


def remove(engine: Engine, image_id: str) -> bool:
    was_known, written = engine.remove(image_id)
    written.result(timeout=30)
    return was_known


def matches(engine: Engine, embedding: np.ndarray, *, k: int = 10, min_score: float | None = None) -> Sequence[Match]:
    _, answers = engine.lookup(embedding[None], k=k, min_score=min_score)
    return answers[0].matches


def found_ids(engine: Engine, embedding: np.ndarray, **options: float) -> list[str]:
    return [match.image_id for match in matches(engine, embedding, **options)]  # type: ignore[arg-type]


def cluster_of(engine: Engine, image_id: str, *, limit: int = 100) -> tuple[str, list[str]]:
    members: list[str] = []
    token = ""
    while True:
        page, token = engine.cluster(image_id, limit=limit, page_token=token)
        members += page.image_ids
        if not token:
            return page.canonical_id, members


def test_matches_of_both_indexes_are_merged_by_score(engine: Engine) -> None:
    """A live image and one of the generation are ranked by the same similarity and say where they come from."""
    register(engine, "closer", near(EMBEDDINGS[3], 0.97, seed=1))
    register(engine, "farther", near(EMBEDDINGS[3], 0.87, seed=2))

    found = matches(engine, near(EMBEDDINGS[3], 0.999, seed=3))

    assert [(match.image_id, match.source) for match in found] == [
        ("image-3", Source.HASH_TABLES),
        ("closer", Source.LIVE),
        ("farther", Source.LIVE),
    ]
    assert [match.canonical_id for match in found] == ["image-3"] * 3
    assert found[0].shared_terms > 0
    assert matches(engine, near(EMBEDDINGS[3], 0.999, seed=3), k=2) == found[:2]


def test_a_registered_image_is_found_by_the_next_lookup_and_after_a_restart(
    engine: Engine, index: Path, tmp_path: Path
) -> None:
    """What was acknowledged is served again from the log."""
    assert register(engine, "new", NEW[0]) == "new"
    assert found_ids(engine, NEW[0]) == ["new"]
    remove(engine, "image-7")
    engine.close()

    again = open_engine(index, engine.served.generation_id, tmp_path / "log.db")

    assert found_ids(again, NEW[0]) == ["new"]
    assert found_ids(again, EMBEDDINGS[7]) == []
    again.close()


def test_registering_again_changes_nothing(engine: Engine) -> None:
    """A retried register succeeds; another image under the same id is refused."""
    register(engine, "new", NEW[0])

    again, written = engine.register("new", NEW[0])
    written.result(timeout=30)

    assert (again.canonical_id, again.was_known) == ("new", True)
    assert engine.register("image-4", EMBEDDINGS[4])[0].canonical_id == "image-3"
    with pytest.raises(ImageIdTaken, match="'new' belongs to another image"):
        engine.register("new", NEW[1])
    with pytest.raises(ImageIdTaken):
        engine.register("image-4", NEW[1])


def test_lookup_or_register_is_atomic(engine: Engine) -> None:
    """Of many equal uploads at once, exactly one becomes the original and all others name it."""
    barrier = threading.Barrier(8)

    def upload(number: int) -> tuple[bool, str]:
        barrier.wait()
        result, written = engine.lookup_or_register(f"upload-{number}", NEW[number // 8], k=3, min_score=None)
        written.result(timeout=30)
        return result.registered, result.canonical_id

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(upload, range(64)))

    for image in range(8):
        own = results[8 * image : 8 * image + 8]
        assert sum(registered for registered, _ in own) == 1
        original = next(f"upload-{8 * image + i}" for i, (registered, _) in enumerate(own) if registered)
        assert {canonical_id for _, canonical_id in own} == {original}


def test_lookup_or_register_may_be_retried(engine: Engine) -> None:
    """The second attempt of a registered upload says registered, as the first did."""
    for _ in range(2):
        result, written = engine.lookup_or_register("upload", NEW[0], k=3, min_score=None)
        written.result(timeout=30)
        assert (result.registered, result.canonical_id, result.answer.matches) == (True, "upload", ())


def test_a_removed_image_is_found_no_more(engine: Engine) -> None:
    """Removal takes effect at once for live images and for those of the generation; removing again says so."""
    register(engine, "new", NEW[0])

    assert [remove(engine, image_id) for image_id in ("new", "image-9", "new", "unknown")] == [True, True, False, False]

    assert found_ids(engine, NEW[0]) == []
    assert found_ids(engine, EMBEDDINGS[9]) == []
    with pytest.raises(UnknownImage, match="image-9"):
        engine.lookup_known("image-9", k=1, min_score=None)


def test_a_removed_image_can_be_registered_again(engine: Engine) -> None:
    """The removed id is free, also for another image."""
    remove(engine, "image-9")

    assert register(engine, "image-9", NEW[3]) == "image-9"

    assert found_ids(engine, NEW[3]) == ["image-9"]
    assert found_ids(engine, EMBEDDINGS[9]) == []


def test_a_known_image_is_left_out_of_its_own_matches(engine: Engine) -> None:
    """Lookup by id gives the others."""
    register(engine, "copy", near(EMBEDDINGS[3], 0.95))

    _, of_old = engine.lookup_known("image-3", k=5, min_score=None)
    _, of_new = engine.lookup_known("copy", k=5, min_score=None)

    assert [match.image_id for match in of_old.matches] == ["copy"]
    assert [match.image_id for match in of_new.matches] == ["image-3"]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_a_cluster_is_read_page_by_page(engine: Engine, limit: int) -> None:
    """Members of the generation come first, then live ones, each once, whatever the size of a page."""
    for number in range(3):
        register(engine, f"copy-{number}", near(EMBEDDINGS[3], 0.95, seed=number))

    for image_id in ("image-3", "image-5", "copy-1"):
        canonical, members = cluster_of(engine, image_id, limit=limit)
        assert canonical == "image-3"
        assert members[0] == "image-3"
        assert sorted(members) == ["copy-0", "copy-1", "copy-2", "image-3", "image-4", "image-5"]


def test_a_removed_canonical_is_succeeded_by_the_next_member(engine: Engine) -> None:
    """No answer names an image that was removed."""
    register(engine, "copy", near(EMBEDDINGS[3], 0.95))
    register(engine, "new", NEW[0])
    register(engine, "copy-of-new", near(NEW[0], 0.95))
    remove(engine, "image-3")
    remove(engine, "new")

    assert cluster_of(engine, "copy") == ("image-4", ["image-4", "image-5", "copy"])
    assert matches(engine, near(EMBEDDINGS[3], 0.95))[0].canonical_id == "image-4"
    assert cluster_of(engine, "copy-of-new") == ("copy-of-new", ["copy-of-new"])
    remove(engine, "image-4")
    remove(engine, "image-5")
    assert cluster_of(engine, "copy") == ("copy", ["copy"])


@pytest.mark.parametrize("token", ["nonsense", "45b010489f4f2119/-1", "/", "x" * 5000, "a/b/9999999999999999"])
def test_a_page_token_of_nobody_is_refused(engine: Engine, token: str) -> None:
    """Tokens come back from clients, so anything may be in them."""
    with pytest.raises((InvalidRequest, GenerationChanged)):
        engine.cluster("image-3", limit=1, page_token=token)


def test_a_switch_keeps_uploads_that_the_new_generation_lacks(engine: Engine, index: Path) -> None:
    """Uploads in the new generation are answered from its hash tables, the others stay live, removals stay removed."""
    register(engine, "in-both", NEW[0])
    register(engine, "only-live", NEW[1])
    remove(engine, "image-2")
    ids = [*image_ids(200), "in-both"]
    target = add_generation(index, ids, np.concatenate([EMBEDDINGS, NEW[:1]]))

    switched = engine.switch(target)

    assert switched.generation_id == engine.served.generation_id == target
    assert [match.source for match in matches(engine, NEW[0])] == [Source.HASH_TABLES]
    assert [match.source for match in matches(engine, NEW[1])] == [Source.LIVE]
    assert found_ids(engine, EMBEDDINGS[2]) == []
    assert len(engine.served.uploads) == 1


FIRST_CALLS = """
import sys
from pathlib import Path
from numba.core.dispatcher import Dispatcher
from service.lookup_servicer import checked_embedding
from tests.service.corpora import DIM, open_engine, random_embeddings

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith(("lsh", "service"))]
    kernels = {kernel for module in modules for kernel in vars(module).values() if isinstance(kernel, Dispatcher)}
    return {(kernel.py_func.__qualname__, signature) for kernel in kernels for signature in kernel.signatures}

index, generation_id = Path(sys.argv[1]), sys.argv[2]
new = [checked_embedding(row.tobytes(), dim=DIM) for row in random_embeddings(3, seed=77)]
engine = open_engine(index, generation_id, index.parent / "log.db")
warmed_up = compiled()
for _ in range(2):
    engine.register("new", new[0])[1].result()
    engine.lookup_or_register("newer", new[1], k=5, min_score=None)[1].result()
engine.lookup(new[2][None], k=5, min_score=None)
engine.lookup_known("image-3", k=5, min_score=None)
for image_id in ("new", "image-4"):
    engine.remove(image_id)[1].result()
engine.lookup(new[0][None], k=5, min_score=None)
engine.close()
print(sorted(compiled() - warmed_up))
"""


def test_no_call_waits_for_a_kernel(index: Path) -> None:
    """A first call's kernels, which take seconds to compile once, are there before the engine answers."""
    generation_id = add_generation(index, image_ids(200), EMBEDDINGS)
    command = [sys.executable, "-c", FIRST_CALLS, str(index), generation_id]
    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_going_back_a_generation_loses_no_upload(engine: Engine, index: Path) -> None:
    """An upload leaves the log only when the generation before contains it too."""
    before = engine.served.generation_id
    register(engine, "upload", NEW[0])
    larger = np.concatenate([EMBEDDINGS, NEW[:1]])
    target = add_generation(index, [*image_ids(200), "upload"], larger)

    engine.switch(target)
    engine.switch(before)
    assert found_ids(engine, NEW[0]) == ["upload"]

    engine.switch(target)
    next_one = add_generation(index, [*image_ids(200), "upload", "more"], np.concatenate([larger, NEW[1:2]]))
    engine.switch(next_one)
    assert list(engine.log.registered()) == []
    assert found_ids(engine, NEW[0]) == ["upload"]


def test_changes_during_a_switch_are_in_the_new_generation(engine: Engine, index: Path) -> None:
    """What is registered or removed while the new generation is warmed is seen after the switch."""
    register(engine, "early", NEW[0])
    target = add_generation(index, image_ids(200), EMBEDDINGS, clusters={"image-10": ["image-11"]})

    def change_meanwhile() -> None:
        register(engine, "meanwhile", NEW[1])
        register(engine, "gone-again", NEW[2])
        remove(engine, "gone-again")
        remove(engine, "early")
        remove(engine, "image-8")

    engine.switch(target, before=change_meanwhile)

    assert engine.served.generation_id == target
    assert found_ids(engine, NEW[1]) == ["meanwhile"]
    assert [found_ids(engine, row) for row in (NEW[0], NEW[2], EMBEDDINGS[8])] == [[], [], []]


@pytest.mark.parametrize("kind", ["truncated", "bit flipped", "missing"])
def test_a_damaged_generation_is_refused_by_name(engine: Engine, index: Path, kind: str) -> None:
    """Whatever file is damaged in whatever way, it is named, and the old generation is served on."""
    before = engine.served.generation_id
    target = add_generation(index, image_ids(3), EMBEDDINGS[:3])
    for path in sorted(generation_folder(index, target).iterdir()):
        whole = path.read_bytes()
        if not whole:
            continue
        middle = len(whole) // 2
        if kind == "missing":
            path.unlink()
        elif kind == "truncated":
            path.write_bytes(whole[:middle])
        else:
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(GenerationRefused, match=path.name):
            engine.switch(target)
        path.write_bytes(whole)
        assert engine.served.generation_id == before
    assert found_ids(engine, EMBEDDINGS[0]) == ["image-0"]


def test_a_generation_of_another_embedder_is_refused(engine: Engine, index: Path) -> None:
    """Another model or another dimension gives embeddings that mean nothing here."""
    foreign = add_generation(index, image_ids(3), EMBEDDINGS[:3], digest="cd" * 32)
    wide = np.pad(EMBEDDINGS[:3], ((0, 0), (0, DIM)))
    wider = add_generation(index, image_ids(3), wide)

    for target, reason in ((foreign, "embedder_digest"), (wider, "dim 128")):
        with pytest.raises(GenerationRefused, match=reason):
            engine.switch(target)

    assert found_ids(engine, EMBEDDINGS[0]) == ["image-0"]


def test_an_old_generation_is_released_with_its_last_query(engine: Engine, index: Path) -> None:
    """Nothing but a running query keeps the memory of a generation that was replaced."""
    in_query = engine.served
    old = weakref.ref(in_query)
    target = add_generation(index, image_ids(3), EMBEDDINGS[:3])

    engine.switch(target)

    assert len(in_query.lookup(EMBEDDINGS[100:101], k=1, min_score=0.9)[0].matches) == 1
    del in_query
    gc.collect()
    assert old() is None


def test_what_the_log_cannot_write_is_taken_back(engine: Engine) -> None:
    """With a full disk, changes fail and leave no trace in memory; lookups go on."""
    register(engine, "known", NEW[0])
    log = engine.log
    assert isinstance(log, UploadLog)
    num_pages = log._query("PRAGMA page_count")[0][0]
    log._query(f"PRAGMA max_page_count={num_pages}")
    failed = 0
    for number in range(1, 40):
        try:
            register(engine, f"{number}-" + "x" * 900, NEW[number])
        except LogFull:
            failed += 1
            assert found_ids(engine, NEW[number]) == []
        else:
            assert found_ids(engine, NEW[number]) != []
    assert failed > 20

    removals = [engine.remove(f"image-{number}")[1] for number in range(len(EMBEDDINGS))]
    errors = [removal.exception(timeout=30) for removal in removals]
    assert any(isinstance(error, LogFull) for error in errors)
    for number, error in enumerate(errors):
        assert found_ids(engine, EMBEDDINGS[number]) == ([f"image-{number}"] if error else [])
    assert found_ids(engine, NEW[0]) == ["known"]


@pytest.mark.parametrize("image_id", ["", "x" * 1025, "é" * 600])
def test_an_image_id_has_limits(engine: Engine, image_id: str) -> None:
    """Empty and oversized keys are refused before anything is written."""
    with pytest.raises(InvalidRequest, match="image_id has"):
        engine.register(image_id, NEW[0])


def test_a_generation_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The error says where it was looked for."""
    with pytest.raises(GenerationRefused, match="is not in"):
        open_engine(tmp_path, "0" * 16, tmp_path / "log.db")


def test_a_restart_with_the_same_generation_answers_the_same(index: Path, tmp_path: Path) -> None:
    """Answers do not depend on whether changes came by calls or by replay."""
    generation_id = add_current_generation(index)
    engine = open_engine(index, generation_id, tmp_path / "log.db")
    generator = np.random.default_rng(3)
    known = image_ids(200)
    for number in range(150):
        if generator.random() < 0.3:
            remove(engine, known.pop(int(generator.integers(len(known)))))
        else:
            base = EMBEDDINGS[int(generator.integers(200))]
            register(engine, f"new-{number}", near(base, 0.6 + 0.4 * generator.random(), seed=number))
            known.append(f"new-{number}")
    before = [[(m.image_id, m.similarity, m.canonical_id) for m in matches(engine, row)] for row in EMBEDDINGS]
    engine.close()

    again = open_engine(index, generation_id, tmp_path / "log.db")

    assert [[(m.image_id, m.similarity, m.canonical_id) for m in matches(again, row)] for row in EMBEDDINGS] == before
    again.close()
