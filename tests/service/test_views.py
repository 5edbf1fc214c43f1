"""Rules of views in lookups: those of known images in the index, those of an upload from a thorough server."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from embed.decoding import ImageLimits, decode_image
from embed.embedder import load_embedder
from embed.embedder_dir import describe_embedder
from embed.preprocessing import to_square
from embed.views import MAX_LIFT, NUM_VIEWS, VIEW_MARGINS, lifted, view_squares
from lsh.codes import pair_cosines, quantize
from lsh.index.publishing import promote
from lsh.index.view_similarity import ViewSimilarity
from service.decoding_pool import DecodingLimits, DecodingPool
from service.engine import Engine
from service.errors import LogError, SettingsError
from service.served import Match, Source
from service.settings import ServeSettings
from service.upload_log import Registrations
from tests.service.corpora import add_generation, image_ids, near, open_engine, random_embeddings

if TYPE_CHECKING:
    from tests.service.conftest import Serve

EMBEDDINGS = random_embeddings(200)
STRANGERS = random_embeddings(60, seed=5)
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


@pytest.fixture
def engine(index: Path, tmp_path: Path) -> Iterator[Engine]:
    """200 images; `image-7` has two views."""
    views = {"image-7": STRANGERS[:2]}
    generation_id = add_generation(
        index, image_ids(200), EMBEDDINGS, views=views, view_similarity=ViewSimilarity((0.0, 0.05))
    )
    promote(index, generation_id)
    engine = open_engine(index, generation_id, tmp_path / "log.db")
    yield engine
    engine.close()


def views_with(view: int, row: NDArray[np.float32]) -> NDArray[np.float32]:
    """Views of an upload that are like nothing known, but one."""
    views = STRANGERS[10 : 10 + NUM_VIEWS].copy()
    views[view] = row
    return views


def matches(engine: Engine, embedding: NDArray[np.float32], views: NDArray[np.float32] | None = None) -> list[Match]:
    of_one = None if views is None else views[None]
    _, answers = engine.lookup(embedding[None], k=10, min_score=None, views=of_one)
    return list(answers[0].matches)


def code_cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    row = np.zeros(1, np.int64)
    return float(pair_cosines(quantize(left[None]), quantize(right[None]), row, row)[0])


def counted(view: int, seen: NDArray[np.float32], known: NDArray[np.float32], *, whole: float) -> float:
    """What a view counts in a pair whose wholes have that cosine."""
    less = code_cosine(seen, known) - VIEW_MARGINS[view]
    return float(lifted(np.array([less], np.float32), np.array([whole], np.float32))[0])


def test_what_is_like_a_view_of_a_known_image_finds_the_image(engine: Engine) -> None:
    """With the view's margin taken off, and told as such; an image that is like the whole is told otherwise."""
    for view, margin in enumerate((0.0, 0.05)):
        (match,) = matches(engine, STRANGERS[view])
        assert (match.image_id, match.by_view, match.source) == ("image-7", True, Source.HASH_TABLES)
        assert match.similarity == pytest.approx(1 - margin)
        assert match.shared_terms > 0
    (whole,) = matches(engine, EMBEDDINGS[7])
    assert (whole.image_id, whole.by_view) == ("image-7", False)


def test_a_removed_image_is_not_found_by_a_view(engine: Engine) -> None:
    """What is removed is gone with all its rows."""
    engine.remove("image-7")[1].result(timeout=30)
    assert matches(engine, STRANGERS[0]) == []


@pytest.mark.parametrize("view", [0, NUM_VIEWS - 1])
def test_a_view_of_an_upload_finds_known_images(engine: Engine, view: int) -> None:
    """In the hash tables and among uploads, as similar as the view counts where the wholes are strangers."""
    engine.register("upload", STRANGERS[50])[1].result(timeout=30)
    for known, image_id, source in (
        (EMBEDDINGS[3], "image-3", Source.HASH_TABLES),
        (STRANGERS[50], "upload", Source.LIVE),
    ):
        seen = near(known, 0.95)
        (match,) = matches(engine, STRANGERS[40], views_with(view, seen))
        assert (match.image_id, match.source, match.by_view) == (image_id, source, True)
        assert match.similarity == pytest.approx(code_cosine(seen, known) - VIEW_MARGINS[view] + MAX_LIFT)
        assert matches(engine, STRANGERS[40]) == []


def test_the_best_of_whole_and_views_counts(engine: Engine) -> None:
    """Each image is one match, by what is most similar."""
    (by_whole,) = matches(engine, near(EMBEDDINGS[3], 0.95), views_with(4, near(EMBEDDINGS[3], 0.9)))
    whole, seen = near(EMBEDDINGS[3], 0.85), near(EMBEDDINGS[3], 0.95)
    (by_view,) = matches(engine, whole, views_with(4, seen))
    assert not by_whole.by_view
    assert by_view.by_view
    assert by_whole.similarity == pytest.approx(0.95, abs=0.01)
    assert by_view.similarity == pytest.approx(counted(4, seen, EMBEDDINGS[3], whole=code_cosine(whole, EMBEDDINGS[3])))
    assert 0 < by_view.similarity - (code_cosine(seen, EMBEDDINGS[3]) - VIEW_MARGINS[4]) < MAX_LIFT


def test_views_do_not_meet_views(engine: Engine) -> None:
    """Parts of two images may well be alike that are no copies of each other."""
    assert matches(engine, STRANGERS[40], views_with(0, STRANGERS[0])) == []


def test_an_upload_that_only_a_view_knows_is_not_registered(engine: Engine) -> None:
    """`LookupOrRegister` and `Register` go by views as well: a known canonical stands for it."""
    views = views_with(2, EMBEDDINGS[9])
    result, written = engine.lookup_or_register("framed", STRANGERS[40], k=3, min_score=None, views=views)
    written.result(timeout=30)
    assert (result.registered, result.canonical_id) == (False, "image-9")
    registered, written = engine.register("framed", STRANGERS[40], views=views)
    written.result(timeout=30)
    assert registered.canonical_id == "image-9"


def test_an_upload_is_found_by_its_views(engine: Engine, index: Path, tmp_path: Path) -> None:
    """At once, after a restart, and no more once it is removed."""
    views = views_with(3, EMBEDDINGS[0])
    upload = STRANGERS[40]
    part = near(views[7], 0.97)
    engine.register("upload", upload, views=views)[1].result(timeout=30)
    similarity = counted(7, part, views[7], whole=code_cosine(part, upload))
    expected = ("upload", Source.LIVE, True, round(similarity, 6))

    def found(engine: Engine) -> list[tuple[str, Source, bool, float]]:
        return [(one.image_id, one.source, one.by_view, round(one.similarity, 6)) for one in matches(engine, part)]

    assert found(engine) == [expected]
    assert [one.by_view for one in matches(engine, upload)] == [False]
    assert matches(engine, STRANGERS[41], views_with(0, part)) == []
    engine.close()
    again = open_engine(index, engine.served.generation_id, tmp_path / "log.db")
    assert found(again) == [expected]
    again.remove("upload")[1].result(timeout=30)
    assert found(again) == []
    again.register("upload", upload)[1].result(timeout=30)
    assert found(again) == []
    again.close()


def test_a_removal_that_is_taken_back_keeps_the_views(engine: Engine) -> None:
    """The entry of an upload, as it is restored from, is the one that was logged."""
    views = views_with(0, EMBEDDINGS[0])
    engine.register("plain", STRANGERS[41])[1].result(timeout=30)
    engine.register("viewed", STRANGERS[40], views=views)[1].result(timeout=30)
    uploads = engine.served.uploads
    for image_id, rows in (("plain", STRANGERS[41:42]), ("viewed", np.concatenate([STRANGERS[40:41], views]))):
        entry = uploads.entry_of(image_id)
        assert entry is not None
        assert entry.code == quantize(rows).tobytes()
        uploads.apply(entry)
        assert uploads.entry_of(image_id) == entry


def test_views_of_an_upload_that_the_generation_has_are_left_out(engine: Engine, index: Path) -> None:
    """A promoted generation answers for it, and an upload before it in the log keeps its own views."""
    for number in (0, 1, 2):
        rows = near(STRANGERS[42 + number], 0.9999)
        engine.register(f"new-{number}", rows, views=views_with(number, near(EMBEDDINGS[20 + number], 0.5)))[1].result(
            30
        )
    ids = [*image_ids(200), "new-1"]
    later = add_generation(index, ids, np.concatenate([EMBEDDINGS, STRANGERS[43:44]]))
    engine.switch(later)
    uploads = engine.served.uploads
    assert [uploads.image_id(row) for row in uploads.owner_of_views] == ["new-0", "new-2"]
    assert len(uploads.view_index) == 2 * NUM_VIEWS


def test_views_of_another_version_are_left_out() -> None:
    """An image registered with other views than this version's is still known by its whole."""
    dim = 4
    codes = [bytes(range(dim)), bytes((1 + NUM_VIEWS) * dim), bytes(7 * dim)]
    found = Registrations.of(((str(n), code, str(n)) for n, code in enumerate(codes)), dim=dim, log="log")
    assert found.codes.shape == (3, dim)
    assert {position: views.shape for position, views in found.views.items()} == {1: (NUM_VIEWS, dim)}
    assert found.some(np.array([False, True, True])).views.keys() == {0}
    with pytest.raises(LogError, match="has not 4 bytes"):
        Registrations.of([("a", bytes(9), "a")], dim=dim, log="log")


def test_views_want_images(tmp_path: Path) -> None:
    """A server of embeddings has nothing to make them of."""
    with pytest.raises(SettingsError, match="leave one out"):
        ServeSettings(index=tmp_path, log=tmp_path / "log", listen="127.0.0.1:0", thorough=True)


def jpeg(photo: Image.Image) -> bytes:
    content = io.BytesIO()
    photo.save(content, "JPEG", quality=90)
    return content.getvalue()


def photo(title: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, title)())


@pytest.mark.tensorflow
def test_a_thorough_server_finds_a_photo_of_a_photo(serve: Serve, tmp_path: Path) -> None:
    """By the middle of the upload; a server that is not thorough registers it as new."""
    embedder = load_embedder("vgg_copy")
    squares = np.stack([to_square(np.asarray(photo(title)), embedder.spec.size) for title in PHOTOS])
    digest = describe_embedder("vgg_copy").digest
    photos = tmp_path / "photos"
    promote(photos, add_generation(photos, PHOTOS, embedder.embed(squares), digest=digest, min_score=0.89))
    coffee = photo("coffee")
    wall = Image.new("RGB", (round(coffee.width / 0.68), round(coffee.height / 0.68)), (120, 140, 110))
    wall.paste(coffee, ((wall.width - coffee.width) // 2, (wall.height - coffee.height) // 2))
    found = {}
    for thorough in (False, True):
        with (
            serve(index=photos, log=tmp_path / f"log-{thorough}", embedder="vgg_copy", thorough=thorough) as running,
            running.client() as client,
        ):
            assert client.status().thorough is thorough
            assert [match.by_view for match in client.lookup(jpeg(coffee)).matches] == [False]
            answer = client.lookup_or_register("upload", jpeg(wall))
            found[thorough] = [(match.image_id, match.by_view) for match in answer.matches]
    assert found == {False: [], True: [("coffee", True)]}


def test_decoders_make_the_squares_of_views(serve: Serve) -> None:
    """Those that runs make, and the whole image as without views."""
    content = jpeg(photo("chelsea"))
    limits = DecodingLimits(image=ImageLimits(), num_processes=1)

    async def decode(*, with_views: bool) -> list[NDArray[np.uint8]]:
        pool = DecodingPool(size=32, limits=limits, with_views=with_views)
        try:
            await pool.start()
            return await pool.decode(content)
        finally:
            await pool.close()

    with serve() as running:
        (whole,) = running.run(decode(with_views=False))
        squares = running.run(decode(with_views=True))

    expected = view_squares(decode_image(content, min_side=64), 32)
    np.testing.assert_array_equal(squares[0], whole)
    assert len(squares) == 1 + len(expected)
    for square, wanted in zip(squares[1:], expected, strict=True):
        np.testing.assert_array_equal(square, wanted)
