"""PCA of embeddings, as a whitening or as a rotation alone: fitted on a sample, applied by the embedder.

Source: Jegou and Chum, "Negative evidences and co-occurences in image retrieval", ECCV 2012, section 3.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embed.errors import EmbedderError


@dataclass(frozen=True, slots=True, kw_only=True)
class Whitening:
    """`(x - mean) @ projection`: `mean` is `(features,)`, `projection` `(features, dim)`, both float32 and finite."""

    mean: NDArray[np.float32]
    projection: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.projection.ndim != 2 or len(self.mean) != len(self.projection):
            raise EmbedderError(
                f"whitening of mean {self.mean.shape} and projection {self.projection.shape} does not fit together; "
                f"expected (features,) and (features, dim)"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.projection).all()):
            raise EmbedderError("the whitening holds values that are not finite; fit it again")

    @property
    def dim(self) -> int:
        """Columns of the result."""
        return int(self.projection.shape[1])

    def first(self, dim: int) -> Whitening:
        """The first `dim` columns of the result alone."""
        return Whitening(mean=self.mean, projection=self.projection[:, :dim])


def fit_whitening(rows: NDArray[np.float32], *, dim: int) -> Whitening:
    """The `dim` strongest principal directions of `(n, features)` rows, each scaled to unit variance."""
    n, features = rows.shape
    if not 1 <= dim <= min(n - 1, features):
        raise EmbedderError(f"dim={dim} is out of range 1..{min(n - 1, features)} for {n} rows of {features} features")
    mean = rows.mean(axis=0, dtype=np.float64)
    _, spread, directions = np.linalg.svd(rows - mean, full_matrices=False)
    deviation = np.maximum(spread[:dim] / np.sqrt(n - 1), 1e-9)
    projection = directions[:dim].T / deviation
    return Whitening(mean=mean.astype(np.float32), projection=projection.astype(np.float32))


def principal_rotation(rows: NDArray[np.float32]) -> Whitening:
    """A rotation of `(n, dim)` rows that puts the directions of largest variance first, and no mean taken off.

    Every cosine stays as it is, and the first columns, at unit length, are an embedding of fewer dimensions.
    """
    dim = rows.shape[1]
    spread = rows.astype(np.float64).T @ rows.astype(np.float64)
    directions = np.linalg.eigh(spread).eigenvectors[:, ::-1]
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(dim)])
    return Whitening(mean=np.zeros(dim, np.float32), projection=(directions * signs).astype(np.float32))


def whitening_bytes(whitening: Whitening) -> bytes:
    """`whitening` as an `.npz` file."""
    buffer = io.BytesIO()
    np.savez(buffer, mean=whitening.mean, projection=whitening.projection)
    return buffer.getvalue()


def read_whitening(path: Path) -> Whitening:
    """The whitening of an `.npz` with `mean` and `projection`, never unpickled; raises EmbedderError."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Whitening(
                mean=np.asarray(arrays["mean"], dtype=np.float32),
                projection=np.asarray(arrays["projection"], dtype=np.float32),
            )
    except EmbedderError as error:
        raise EmbedderError(f"{path}: {error}") from error
    except Exception as error:
        raise EmbedderError(
            f"{path} is not a whitening file ({error}); it is an .npz with the arrays `mean` and `projection`"
        ) from error
