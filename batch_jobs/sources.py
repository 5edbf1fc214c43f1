"""Where images come from: a folder, a glob, a Parquet table, or embeddings made elsewhere.

`open_source` looks at a source on the driver, before Spark starts, and says what is wrong with it in one sentence.
"""

from __future__ import annotations

import glob
import os
import stat
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch_jobs.errors import SourceError
from batch_jobs.settings import digest
from embed.decoding import ImageRejected, RejectReason

GLOB_CHARACTERS = frozenset("*?[")
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
    rewritten. `files` are the image files (kind `files`) or the Parquet files of a table.
    """

    kind: SourceKind
    path: Path
    root: Path
    fingerprint: str
    files: tuple[str, ...] = field(repr=False)


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
    return Source(SourceKind.FILES, path, root.resolve(), fingerprint, tuple(files))


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
    return Source(kind, path, root, fingerprint, tuple(files))


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
    read_embeddings(path)
    return Source(SourceKind.EMBEDDINGS, path, path.parent.resolve(), digest([str(path), *_file_state(str(path))]), ())


@dataclass(frozen=True, slots=True)
class GivenEmbeddings:
    """Embeddings made elsewhere: `image_ids` `(n,)` strings, `embeddings` `(n, dim)` float32 unit rows."""

    image_ids: np.ndarray
    embeddings: np.ndarray
    digest: str


def read_embeddings(path: Path) -> GivenEmbeddings:
    """The contents of an .npz as `neardup embed` writes it; raises SourceError on anything else."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            image_ids, embeddings = arrays["image_ids"], arrays["embeddings"]
            made_by = str(arrays["digest"])
    except (OSError, ValueError, KeyError, EOFError) as error:
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
    lengths = np.linalg.norm(embeddings, axis=1)
    if not np.allclose(lengths, 1.0, atol=1e-3):
        worst = int(np.argmax(np.abs(np.nan_to_num(lengths, nan=np.inf) - 1.0)))
        raise SourceError(
            f"source {path}: row {worst} of embeddings has length {lengths[worst]:.4g}; every row must have length 1"
        )
    return GivenEmbeddings(image_ids, embeddings, made_by)
