"""Tests of sources: what is read, and what is said about what cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_jobs.errors import SourceError
from batch_jobs.sources import (
    SourceKind,
    file_state,
    list_source,
    open_source,
    read_embeddings,
    read_image_bytes,
    strings,
)
from embed.decoding import ImageRejected, RejectReason


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    given = {
        "image_ids": np.array(["a", "b"]),
        "embeddings": np.eye(2, 4, dtype=np.float32),
        "digest": np.array("d"),
    }
    np.savez(path, **{**given, **arrays})  # type: ignore[arg-type]
    return path


def test_a_folder_gives_its_files_in_order(tmp_path: Path) -> None:
    """Files come sorted, from subfolders too, without hidden ones."""
    for name in ("b.jpg", "sub/a.jpg", ".hidden.jpg", ".git/c.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    source = open_source(str(tmp_path))
    assert source.kind is SourceKind.FILES
    assert source.files == (str(tmp_path / "b.jpg"), str(tmp_path / "sub" / "a.jpg"))


def test_a_glob_gives_what_it_matches(tmp_path: Path) -> None:
    """The root of a glob is the part before its first wildcard."""
    (tmp_path / "x").mkdir()
    for name in ("x/1.jpg", "x/2.png"):
        (tmp_path / name).touch()
    source = open_source(str(tmp_path / "*" / "*.jpg"))
    assert source.files == (str(tmp_path / "x" / "1.jpg"),)
    assert source.root == tmp_path


def test_a_relative_source_is_the_same_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files have absolute paths, so that executors in other folders find them; a glob's too."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert open_source("photos") == open_source(str(tmp_path / "photos"))
    assert open_source("photos/*.jpg") == open_source(str(tmp_path / "photos" / "*.jpg"))


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    """A rewritten file changes the fingerprint, an untouched folder does not."""
    (tmp_path / "a.jpg").write_bytes(b"1")
    first = open_source(str(tmp_path)).fingerprint
    assert open_source(str(tmp_path)).fingerprint == first
    (tmp_path / "a.jpg").write_bytes(b"22")
    assert open_source(str(tmp_path)).fingerprint != first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "is empty"),
        ("one.jpg", "is one file"),
        ("*.nothing", "is empty"),
        ("s3://bucket/photos", "is a URL"),
        ("missing.parquet", "does not exist"),
        ("missing.npz", "does not exist"),
        ("text.parquet", "not a readable Parquet"),
        ("text.npz", "not an .npz"),
    ],
)
def test_an_unusable_source_is_explained(tmp_path: Path, name: str, message: str) -> None:
    """Each kind of unusable source has its own sentence."""
    (tmp_path / "empty").mkdir()
    for file in ("one.jpg", "text.parquet", "text.npz"):
        (tmp_path / file).write_text("text")
    source = name if "://" in name else str(tmp_path / name)
    with pytest.raises(SourceError, match=message):
        open_source(source)


def test_a_table_needs_its_columns(tmp_path: Path) -> None:
    """The message lists the columns there are and those there must be."""
    pq.write_table(pa.table({"id": ["a"], "uri": ["b"]}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match="has the columns id, uri; it needs image_id"):
        open_source(str(tmp_path / "t.parquet"))


def test_a_table_needs_the_right_types(tmp_path: Path) -> None:
    """A number is not a content."""
    pq.write_table(pa.table({"image_id": ["a"], "content": [1]}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match="column content is int64; it must be binary"):
        open_source(str(tmp_path / "t.parquet"))


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    """No rows is an empty source."""
    pq.write_table(
        pa.table({"image_id": pa.array([], pa.string()), "uri": pa.array([], pa.string())}), tmp_path / "t.parquet"
    )
    with pytest.raises(SourceError, match="no rows"):
        open_source(str(tmp_path / "t.parquet"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image_ids": np.array([1, 2])}, "must be .n,. strings"),
        ({"image_ids": np.array(["a"])}, "must be .1, dim. float32"),
        ({"embeddings": np.eye(2, 4)}, "float64"),
        ({"embeddings": np.full((2, 4), np.nan, np.float32)}, "row 0"),
        ({"embeddings": 2 * np.eye(2, 4, dtype=np.float32)}, "row 0 of embeddings has length 2"),
        ({"image_ids": np.array([{}, {}], dtype=object)}, "not an .npz with"),
    ],
)
def test_wrong_embeddings_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    """Shapes, types and lengths are checked; objects are never unpickled."""
    with pytest.raises(SourceError, match=message):
        open_source(str(write_npz(tmp_path / "e.npz", **arrays)))


def test_a_file_outside_the_root_is_rejected(tmp_path: Path) -> None:
    """Neither a link nor dots lead out of the configured root."""
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    for path in ("root/link", "root/../secret"):
        with pytest.raises(ImageRejected, match="outside") as caught:
            read_image_bytes(str(tmp_path / path), root=str(tmp_path / "root"), max_bytes=100)
        assert caught.value.reason is RejectReason.UNREADABLE


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    """A named pipe with no writer is rejected at once."""
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageRejected, match="not a regular file"):
        read_image_bytes(str(tmp_path / "pipe.jpg"), root=str(tmp_path), max_bytes=100)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """The size is checked before the content is."""
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(ImageRejected) as caught:
        read_image_bytes(str(tmp_path / "large"), root=str(tmp_path), max_bytes=4)
    assert caught.value.reason is RejectReason.TOO_MANY_BYTES


def test_large_arrays_are_mapped_small_and_compressed_ones_read(tmp_path: Path) -> None:
    """A file of more than a mebibyte of rows is read where it lies, and holds what numpy wrote, compressed or not."""
    rows = np.random.default_rng(0).normal(size=(9000, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    arrays = {"image_ids": np.arange(9000).astype(np.str_), "embeddings": rows, "digest": np.array("x")}
    np.savez(tmp_path / "stored.npz", **arrays)  # type: ignore[arg-type]
    np.savez_compressed(tmp_path / "compressed.npz", **arrays)  # type: ignore[arg-type]
    stored, compressed = (read_embeddings(tmp_path / f"{name}.npz") for name in ("stored", "compressed"))
    assert isinstance(stored.embeddings, np.memmap)
    assert not isinstance(compressed.embeddings, np.memmap)
    for read in (stored, compressed):
        np.testing.assert_array_equal(read.embeddings, rows)
        np.testing.assert_array_equal(read.image_ids, arrays["image_ids"])


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    """An array of Python objects is refused, large enough to be mapped or not."""
    for size in (2, 200_000):
        path = write_npz(tmp_path / f"{size}.npz", image_ids=np.array([{}] * size, dtype=object))
        with pytest.raises(SourceError, match=r"not an \.npz with"):
            read_embeddings(path)


def test_a_file_written_again_is_read_again(tmp_path: Path) -> None:
    """What was checked once is not taken for what is there now."""
    rows = np.eye(4, dtype=np.float32)
    for count in (2, 3):
        path = write_npz(
            tmp_path / "e.npz",
            image_ids=np.arange(count).astype(np.str_),
            embeddings=rows[:count],
            digest=np.array("x"),
        )
        assert len(read_embeddings(path).image_ids) == count


@given(st.lists(st.text(st.characters(codec="ascii"))) | st.lists(st.text(st.characters(codec="utf-8"))))
def test_strings_are_those_of_the_array(texts: list[str]) -> None:
    """All at once or one by one, as numpy has them: without zeros at the end, in either order of bytes."""
    array = np.array(texts, np.str_)
    for ordered in (array, array.astype(array.dtype.newbyteorder(">"))):
        assert strings(ordered).to_pylist() == array.tolist()


def test_a_listing_has_the_state_of_each_file(tmp_path: Path) -> None:
    """Writing a file again, or another size at the same time, changes its state and no other's."""
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (1, 1))
    first = list_source(open_source(str(tmp_path)))
    assert first["image_id"].to_pylist() == ["a", "b", "c"]
    os.utime(tmp_path / "b", (2, 2))
    (tmp_path / "c").write_text("xy")
    os.utime(tmp_path / "c", (1, 1))
    second = list_source(open_source(str(tmp_path)))
    is_same = np.equal(first["state"].to_numpy(), second["state"].to_numpy())
    assert is_same.tolist() == [True, False, False]
    assert file_state(str(tmp_path / "missing")) == -1


def test_images_of_a_table_have_the_state_of_its_file(tmp_path: Path) -> None:
    """A table that grows by a file leaves the states of the others."""
    for name, image_id in (("a", "x"), ("b", "y")):
        pq.write_table(pa.table({"image_id": [image_id], "content": [b"1"]}), tmp_path / f"{name}.parquet")
    table = tmp_path.rename(tmp_path.with_suffix(".parquet"))
    listing = list_source(open_source(str(table)))
    assert listing["image_id"].to_pylist() == ["x", "y"]
    assert listing["state"].to_pylist() == [file_state(str(table / f"{name}.parquet")) for name in ("a", "b")]
