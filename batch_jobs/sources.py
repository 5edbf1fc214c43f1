"""Where images come from: a folder, a glob, a Parquet table, or embeddings made elsewhere.

`open_source` looks at a source on the driver, before Spark starts, and says what is wrong with it in one sentence.
"""

from __future__ import annotations

import glob
import os
import stat
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from numpy.typing import NDArray

from batch_jobs import schemas
from batch_jobs.errors import SourceError
from batch_jobs.settings import digest
from embed.decoding import ImageRejected, RejectReason
from lsh.row_hashes import hash_rows

GLOB_CHARACTERS = frozenset("*?[")
SIZE_BITS = 22
NO_STATE = -1
ROWS_AT_ONCE = 16_384
STAT_THREADS = 8
CONTENTS_AT_ONCE = 32
"""Of images that may each be as large as the limits allow."""
READ_BYTES = 1 << 20
MIN_MAPPED_BYTES = 1 << 20
MAX_ASCII = 127
TYPES = {"string": (pa.string(), pa.large_string()), "binary": (pa.binary(), pa.large_binary())}


class SourceKind(StrEnum):
    """What a source holds."""

    FILES = "files"
    URI_TABLE = "uri_table"
    CONTENT_TABLE = "content_table"
    EMBEDDINGS = "embeddings"


@dataclass(frozen=True, slots=True)
class Source:
    """An inspected source.

    `root` is the folder that no file may lie outside of. `fingerprint` changes when a file is added, removed or
    rewritten. `files` are the image files (kind `files`) or the Parquet files of a table; `num_images` counts files,
    rows or embeddings.
    """

    kind: SourceKind
    path: Path
    root: Path
    fingerprint: str
    files: tuple[str, ...] = field(repr=False)
    num_images: int


def open_source(source: str, *, uri_root: Path | None = None) -> Source:
    """Look at a source; raises SourceError when nothing can be read from it."""
    if "://" in source:
        raise SourceError(f"source {source} is a URL; give a local folder, glob, .parquet table or .npz file")
    path = Path(source).absolute()
    if path.suffix == ".npz":
        return _embeddings_file(path)
    if path.suffix == ".parquet":
        return _table(path, uri_root)
    if path.is_dir():
        return _folder(path)
    if not path.exists() and GLOB_CHARACTERS.intersection(source):
        return _glob(path)
    if path.is_file():
        raise SourceError(
            f"source {source} is one file; give the folder it is in, a glob, a .parquet table or a .npz of embeddings"
        )
    raise SourceError(f"source {source} does not exist; give a folder, glob, .parquet table or .npz of embeddings")


def list_source(source: Source) -> pa.Table:
    """Every image of a source as `LISTING` and its `state`, read on this machine without opening an image.

    An image whose state is the one that the catalogue has is not looked at again.
    """
    if source.kind is SourceKind.EMBEDDINGS:
        given = read_embeddings(source.path)
        image_ids = strings(given.image_ids)
        return _listing(image_ids, pa.nulls(len(image_ids), pa.string()), given.states)
    if source.kind is SourceKind.FILES:
        return _listing(pa.array(file_ids(source)), pa.array(source.files), _file_states(source.files))
    if source.kind is SourceKind.URI_TABLE:
        with _readable(source.path):
            table = pyarrow.dataset.dataset(list(source.files), format="parquet").to_table(columns=["image_id", "uri"])
        places = [str(place_of(uri, root=str(source.root))) for uri in table["uri"].to_pylist()]
        return _listing(table["image_id"], table["uri"], _file_states(places))
    with _readable(source.path):
        parts = [pq.read_table(file, columns=["image_id"], partitioning=None) for file in source.files]
    states = np.repeat(_file_states(source.files), [len(part) for part in parts])
    image_ids = pa.concat_tables(parts)["image_id"]
    return _listing(image_ids, pa.nulls(len(image_ids), pa.string()), states)


def content_groups(source: Source) -> list[tuple[str, int]]:
    """The files of a table of contents, each with the number of one of its row groups, in order."""
    return [(file, number) for file in source.files for number in range(pq.read_metadata(file).num_row_groups)]


def read_contents(group: tuple[str, int], image_ids: pa.Array) -> Iterator[pa.RecordBatch]:
    """Those images of one of the `content_groups` that have one of `image_ids`: `image_id`, `content`, `state`."""
    path, number = group
    state = file_state(path)
    # Read by pages through a buffer, or all contents of the group would be in memory at once.
    with _readable(path), pq.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False) as file:
        if not pc.any(_are_in(file.read_row_group(number, ["image_id"])["image_id"], image_ids)).as_py():
            return
        for batch in file.iter_batches(CONTENTS_AT_ONCE, row_groups=[number], columns=["image_id", "content"]):
            wanted = batch.filter(_are_in(batch["image_id"], image_ids))
            columns = [wanted["image_id"].cast(pa.string()), wanted["content"].cast(pa.binary())]
            states = pa.array(np.full(len(wanted), state))
            yield pa.RecordBatch.from_arrays([*columns, states], names=["image_id", "content", "state"])


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Raises SourceError where what the block reads of a Parquet table is damaged or gone."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(f"source {path} cannot be read any further ({reason}); write that table again") from error


def _are_in(image_ids: Any, among: pa.Array) -> Any:
    return pc.is_in(image_ids.cast(pa.string()), value_set=among)


def _listing(image_ids: Any, uris: Any, states: NDArray[np.int64]) -> pa.Table:
    columns = [image_ids.cast(pa.string()), uris.cast(pa.string()), pa.array(states)]
    return pa.table(columns, names=[*schemas.columns(schemas.LISTING), "state"])


def _file_states(paths: tuple[str, ...] | list[str]) -> NDArray[np.int64]:
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        return np.fromiter(pool.map(file_state, paths, chunksize=256), np.int64, count=len(paths))


def file_ids(source: Source) -> list[str]:
    """The image ids of a source of files: paths below its folder, or below what its glob fixes."""
    base = source.path if source.path.is_dir() else source.root
    return [Path(file).relative_to(base).as_posix() for file in source.files]


def place_of(uri: str | None, *, root: str) -> Path:
    """Where the image of a uri lies; relative ones are below `root`."""
    return Path(root, (uri or "").removeprefix("file://"))


def file_state(path: str) -> int:
    """One number that changes when a file is written again: milliseconds of its last change above its size's low bits.

    -1 for a file that cannot be looked at. `catalogue` computes the same for the files of a table, in Spark's SQL.
    """
    size_bytes, changed_ns = _file_state(path)
    return NO_STATE if size_bytes < 0 else (changed_ns // 1_000_000) << SIZE_BITS | size_bytes & ((1 << SIZE_BITS) - 1)


def read_image_bytes(path: str, *, root: str, max_bytes: int) -> bytes:
    """The content of an image file; raises ImageRejected when it is outside `root`, too large or not readable."""
    try:
        resolved = os.path.realpath(path, strict=True)
        if not is_inside(resolved, root):
            raise ImageRejected(
                RejectReason.UNREADABLE, f"lies outside {root}; give --uri-root to allow another folder"
            )
        # A pipe or device opened for reading could block for ever.
        descriptor = os.open(resolved, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageRejected(RejectReason.UNREADABLE, "not a regular file")
            if status.st_size > max_bytes:
                raise ImageRejected(
                    RejectReason.TOO_MANY_BYTES, f"{status.st_size} bytes; at most {max_bytes} are allowed"
                )
            return file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        raise ImageRejected(RejectReason.UNREADABLE, getattr(error, "strerror", None) or str(error)) from error


def is_inside(resolved: str, root: str) -> bool:
    """Whether a resolved path is `root` or below it; both absolute, without links.

    >>> is_inside("/photos/a.jpg", "/photos"), is_inside("/photos2/a.jpg", "/photos")
    (True, False)
    """
    return resolved == root or resolved.startswith(root.rstrip(os.sep) + os.sep)


def _folder(path: Path) -> Source:
    """All files below a folder, hidden ones and those of its hidden folders left out."""

    def refuse(error: OSError) -> None:
        if error.filename == str(path):
            raise SourceError(f"source {path} cannot be read ({error.strerror}); check its permissions") from error

    files: list[str] = []
    for folder, subfolders, names in os.walk(path, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files.extend(str(Path(folder, name)) for name in names if not name.startswith("."))
    return _files(path, root=path, files=files, what="folder")


def _glob(pattern: Path) -> Source:
    fixed = []
    for part in pattern.parts:
        if GLOB_CHARACTERS.intersection(part):
            break
        fixed.append(part)
    root = Path(*fixed)
    found = glob.glob(str(pattern), recursive=True)  # noqa: PTH207 - Path.glob wants the root apart
    files = [name for name in found if not Path(name).is_dir()]
    return _files(pattern, root=root, files=files, what="glob")


def _files(path: Path, *, root: Path, files: list[str], what: str) -> Source:
    if not files:
        raise SourceError(f"source {path} is empty: the {what} has no files; give one that has images")
    files.sort()
    fingerprint = digest([[name, *_file_state(name)] for name in files])
    return Source(SourceKind.FILES, path, root.resolve(), fingerprint, tuple(files), len(files))


def _file_state(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 - millions of files
    except OSError:
        return (-1, -1)
    return (status.st_size, status.st_mtime_ns)


def _table(path: Path, uri_root: Path | None) -> Source:
    files = sorted(str(file) for file in path.rglob("*.parquet")) if path.is_dir() else [str(path)]
    if not path.exists():
        raise SourceError(f"source {path} does not exist")
    if not files:
        raise SourceError(f"source {path} holds no .parquet files")
    try:
        schema = pq.read_schema(files[0])
        num_rows = sum(pq.read_metadata(file).num_rows for file in files)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"source {path} is not a readable Parquet table: {error}") from error
    kind = _table_kind(path, schema)
    if num_rows == 0:
        raise SourceError(f"source {path} is empty: the table has no rows")
    root = (uri_root or (path if path.is_dir() else path.parent)).resolve()
    fingerprint = digest([str(root), [[name, *_file_state(name)] for name in files]])
    return Source(kind, path, root, fingerprint, tuple(files), num_rows)


def _table_kind(path: Path, schema: pa.Schema) -> SourceKind:
    kind = SourceKind.CONTENT_TABLE if "content" in schema.names else SourceKind.URI_TABLE
    place = "content" if kind is SourceKind.CONTENT_TABLE else "uri"
    if not {"image_id", place} <= set(schema.names):
        raise SourceError(
            f"source {path} has the columns {', '.join(schema.names)}; it needs image_id (string) "
            "and content (binary) or uri (string)"
        )
    for name in ("image_id", place):
        needed = "binary" if name == "content" else "string"
        if schema.field(name).type not in TYPES[needed]:
            raise SourceError(f"source {path}: column {name} is {schema.field(name).type}; it must be {needed}")
    return kind


def _embeddings_file(path: Path) -> Source:
    if not path.is_file():
        raise SourceError(f"source {path} does not exist")
    fingerprint = digest([str(path), *_file_state(str(path))])
    num_images = len(read_embeddings(path).image_ids)
    return Source(SourceKind.EMBEDDINGS, path, path.parent.resolve(), fingerprint, (), num_images)


@dataclass(frozen=True, slots=True)
class GivenEmbeddings:
    """Embeddings made elsewhere: `image_ids` `(n,)` strings, `embeddings` `(n, dim)` float32 unit rows.

    `states` `(n,)` int64 are hashes of the rows' bytes.
    """

    image_ids: np.ndarray
    embeddings: np.ndarray
    states: NDArray[np.int64]
    digest: str


def read_embeddings(path: Path) -> GivenEmbeddings:
    """The contents of an .npz as `neardup embed` writes it; raises SourceError on anything else.

    Arrays that are stored as they are stay on disk: they are mapped, not read. A file is checked once.
    """
    return _read_embeddings(path, _file_state(str(path)))


def release_embeddings() -> None:
    """Let go of the file that was read last: what was looked at of it counts as memory while it is mapped."""
    _read_embeddings.cache_clear()


@lru_cache(maxsize=1)
def _read_embeddings(path: Path, _: tuple[int, int]) -> GivenEmbeddings:
    try:
        image_ids, embeddings, made_by = (_array(path, name) for name in ("image_ids", "embeddings", "digest"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"source {path} is not an .npz with image_ids, embeddings and digest ({error}); "
            "make one with 'neardup embed'"
        ) from error
    if image_ids.ndim != 1 or image_ids.dtype.kind != "U":
        raise SourceError(f"source {path}: image_ids is {image_ids.dtype} {image_ids.shape}; it must be (n,) strings")
    if embeddings.ndim != 2 or embeddings.dtype != np.float32 or len(embeddings) != len(image_ids):
        raise SourceError(
            f"source {path}: embeddings is {embeddings.dtype} {embeddings.shape}; "
            f"it must be ({len(image_ids)}, dim) float32"
        )
    if not len(image_ids):
        raise SourceError(f"source {path} is empty: it has no embeddings")
    states, lengths = _hashed(embeddings)
    if not np.allclose(lengths, 1.0, atol=1e-3):
        worst = int(np.argmax(np.abs(np.nan_to_num(lengths, nan=np.inf) - 1.0)))
        raise SourceError(
            f"source {path}: row {worst} of embeddings has length {lengths[worst]:.4g}; every row must have length 1"
        )
    return GivenEmbeddings(image_ids, embeddings, states, str(made_by))


def _hashed(embeddings: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The state and the length of each row; threads wait together for what is read from disk."""
    with ThreadPoolExecutor() as pool:
        starts = range(0, len(embeddings), ROWS_AT_ONCE)
        parts = list(pool.map(lambda start: hash_rows(embeddings[start : start + ROWS_AT_ONCE]), starts))
    states, squares = (np.concatenate(column) for column in zip(*parts, strict=True))
    return states, np.sqrt(squares)


def strings(texts: NDArray[np.str_]) -> pa.Array:
    """Texts `(n,)` for Arrow; where all are ASCII, as ids are, without an object for each.

    >>> strings(np.array(["a", "", "bcd"])).to_pylist()
    ['a', '', 'bcd']
    """
    width = texts.dtype.itemsize // 4
    if not width or not len(texts):
        return pa.array(texts.tolist(), pa.string())
    points = np.ascontiguousarray(texts, texts.dtype.newbyteorder("=")).view(np.uint32).reshape(len(texts), width)
    if points.max() > MAX_ASCII:
        return pa.array(texts.tolist(), pa.string())
    # numpy fills up with zeros behind the last character.
    lengths = width - np.argmax(points[:, ::-1] != 0, axis=1)
    lengths[points.max(axis=1) == 0] = 0
    is_text = np.arange(width) < lengths[:, None]
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(points.astype(np.uint8)[is_text])]
    return pa.Array.from_buffers(pa.large_string(), len(texts), buffers).cast(pa.string())


def _array(path: Path, name: str) -> np.ndarray:
    """An array of an .npz, mapped where it is neither compressed nor small; never unpickled."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
        if member.compress_type == zipfile.ZIP_STORED and member.file_size >= MIN_MAPPED_BYTES:
            with path.open("rb") as file:
                return _mapped(path, file, member.header_offset)
        with archive.open(member) as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
            return array


def _mapped(path: Path, file: IO[bytes], header_offset: int) -> np.ndarray:
    """The array of a stored member, whose zip header is at `header_offset`: 30 bytes, a name, and an extra field."""
    file.seek(header_offset + 26)
    sizes = file.read(4)
    file.seek(int.from_bytes(sizes[:2], "little") + int.from_bytes(sizes[2:], "little"), os.SEEK_CUR)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(file)]
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    mapped: np.ndarray = np.memmap(
        path, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order="F" if is_fortran else "C"
    )
    return mapped
