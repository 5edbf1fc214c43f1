"""Embeddings to terms: one bucket key per table for each image.

Three families. `cross_polytope`: a term joins, for `num_polytopes` random rotations, the vertex of the cross-polytope
(the signed axis) nearest to the rotated embedding; a smaller last polytope sets the bits of a term to the size of a
corpus. `hyperplane`: a term joins the signs of `num_planes` coordinates of a random rotation. `minhash`: a term joins
`num_hashes` min-hashes of the set of the `num_activations` strongest activations. Embeddings close in angle share a
term with high probability in each; at equal length of the term, cross-polytopes keep most near pairs together.

Sources: cross-polytopes, Andoni et al., arXiv 1509.02897, sections 3 and 5.1 (the smaller last one); hyperplanes,
Charikar, STOC 2002, section 3, orthogonalised within a rotation as in Ji et al., "Super-Bit Locality-Sensitive
Hashing", NIPS 2012; min-hashes: `minhash`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from math import log2
from typing import Any, Literal, get_args

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lsh.errors import ParameterError
from lsh.minhash import MAX_SEED as MAX_MINHASH_SEED
from lsh.minhash import StrongestActivations
from lsh.rotations import (
    LANES,
    MAX_DIM,
    checked_embeddings,
    load_lanes,
    rotated_dim,
    rotation_signs,
    spread_lanes,
    turn_lanes,
)

Family = Literal["cross_polytope", "hyperplane", "minhash"]

MAX_TABLES = 1024
MAX_POLYTOPES = 8
MAX_PLANES = 48
MAX_HASHES = 8
MAX_SEED = (1 << 63) - 1
_TERMS_STREAM = 1
_MAX_DOUBLINGS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TermParams:
    """What decides the terms of an embedding; equal params give equal terms on every machine.

    `num_polytopes`, `polytope_dim` and `last_polytope_dim` (None: as large as the others) belong to the family
    `cross_polytope`, `num_planes` to `hyperplane`, `num_activations` and `num_hashes` to `minhash`. In
    `benchmarks/batch_embeddings.py`'s embeddings, as dense as real ones, the defaults find 96 % of the pairs of cosine
    0.79 to 0.85 and 99.6 % of 0.85 to 0.91, 32 tables 89 % and 98 %. `terms_for` a number of images are cheaper, and
    `tuning` finds what a corpus needs.
    """

    family: Family = "cross_polytope"
    num_tables: int = 48
    dim: int = 256
    num_polytopes: int = 2
    polytope_dim: int = 256
    last_polytope_dim: int | None = None
    num_planes: int = 18
    num_activations: int = 24
    num_hashes: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise ParameterError(f"family={self.family!r} is unknown; choose one of {', '.join(get_args(Family))}")
        _check_range("num_tables", self.num_tables, 1, MAX_TABLES)
        _check_range("dim", self.dim, 1, MAX_DIM)
        _check_range("num_polytopes", self.num_polytopes, 1, MAX_POLYTOPES)
        _check_range("polytope_dim", self.polytope_dim, 2, MAX_DIM)
        _check_range("num_planes", self.num_planes, 1, MAX_PLANES)
        _check_range("num_activations", self.num_activations, 1, MAX_DIM)
        _check_range("num_hashes", self.num_hashes, 1, MAX_HASHES)
        _check_range("seed", self.seed, 0, MAX_MINHASH_SEED if self.family == "minhash" else MAX_SEED)
        if self.last_polytope_dim is not None:
            _check_range("last_polytope_dim", self.last_polytope_dim, 1, self.polytope_dim)
        for name in ("polytope_dim", "last_polytope_dim"):
            size = getattr(self, name)
            if size is not None and size != rotated_dim(size):
                raise ParameterError(f"{name}={size} is not a power of two; try 64, 128, 256 or 512")
        if self.family == "minhash" and self.num_activations > self.dim:
            raise ParameterError(f"num_activations={self.num_activations} is above dim={self.dim}; lower it")
        num_bits = self.bits_per_term + (self.num_tables - 1).bit_length()
        if num_bits > 64:
            raise ParameterError(
                f"num_tables={self.num_tables} with {self.bits_per_term} bits per term needs {num_bits} bits, "
                f"more than 64; lower num_polytopes, polytope_dim, num_planes, num_hashes or num_tables"
            )

    @property
    def bits_per_term(self) -> int:
        """Bits of a bucket; the number of the table stands above them."""
        if self.family == "hyperplane":
            return self.num_planes
        if self.family == "minhash":
            return self.num_hashes * (2 * self.dim - 1).bit_length()
        return sum(size.bit_length() for size in self.polytope_dims)

    @property
    def polytope_dims(self) -> tuple[int, ...]:
        """Dimension of each polytope of a table, in the order of their bits in a bucket, highest first.

        >>> TermParams(num_polytopes=3, polytope_dim=64, last_polytope_dim=16).polytope_dims
        (64, 64, 16)
        """
        last_dim = self.polytope_dim if self.last_polytope_dim is None else self.last_polytope_dim
        return (self.polytope_dim,) * (self.num_polytopes - 1) + (last_dim,)

    @property
    def slice_dim(self) -> int:
        """Most coordinates of a rotation that one choice looks at."""
        return self.num_planes if self.family == "hyperplane" else self.polytope_dim

    def to_json(self) -> dict[str, Any]:
        """Every field by its name, as JSON types; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TermParams:
        """The params that `to_json` wrote; raises ParameterError for missing, unknown or wrong fields."""
        names = {field.name for field in fields(cls)}
        if set(value) != names:
            raise ParameterError(
                f"term parameters have fields {sorted(value)}, expected {sorted(names)}; "
                f"they were written by another version"
            )
        return cls(**value)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ParameterError(f"{name}={value!r} is not an integer; pass one in {low}..{high}")
    if not low <= value <= high:
        raise ParameterError(f"{name}={value} is out of range {low}..{high}")


def terms_for(num_images: int) -> TermParams:
    """What a run without a plan of its own hashes so many images by.

    Each time that a corpus of more than a million doubles, so do the buckets of a table, and 8 more tables make up for
    the pairs that finer buckets part: 0.979 of the pairs of cosine 0.79 to 0.85 are kept at a million images, 0.972 at
    eight, 0.964 from 23 million on (pairs planted in embeddings as dense as real ones), where buckets stay as they are.

    >>> [terms_for(num_images).num_tables for num_images in (1_000, 1_400_000, 1_500_000, 4_000_000, 10**9)]
    [60, 60, 68, 76, 100]
    """
    doublings = min(_MAX_DOUBLINGS, max(0, round(log2(max(1, num_images) / 1_000_000))))
    return TermParams(num_tables=60 + 8 * doublings, num_polytopes=3, polytope_dim=64, last_polytope_dim=2 << doublings)


class TermHasher:
    """Computes the terms of one set of params; holds their rotations, so make one and keep it."""

    def __init__(self, params: TermParams) -> None:
        self.params = params
        if params.family == "minhash":
            self._activations = StrongestActivations(
                dim=params.dim,
                num_activations=params.num_activations,
                num_permutations=params.num_tables * params.num_hashes,
                seed=params.seed,
            )
            return
        rotation_dim = rotated_dim(max(params.dim, params.slice_dim))
        if params.family == "hyperplane":
            num_rotations = -(-params.num_tables // (rotation_dim // params.num_planes))
        else:
            self._places = polytope_places(params)
            num_rotations = -(-sum(params.polytope_dims) * params.num_tables // rotation_dim)
        self._signs = rotation_signs(
            num_rotations=num_rotations, dim=rotation_dim, seed=params.seed, stream=_TERMS_STREAM
        )

    @property
    def signs(self) -> NDArray[np.float32]:
        """The signs `(num_rotations, 3, rotation_dim)` of the rotations."""
        return self._signs

    def terms(self, embeddings: NDArray[np.float32]) -> NDArray[np.uint64]:
        """`(n, dim)` float32 -> `(n, num_tables)` uint64, each `table << bits_per_term | bucket`.

        A row's terms depend on that row alone, bit for bit. Raises ParameterError for another shape, NaN or infinity.
        """
        rows = checked_embeddings(embeddings, dim=self.params.dim)
        if self.params.family == "minhash":
            return _joined(self._activations.min_elements(rows), self.params)
        terms = np.empty((rows.shape[0], self.params.num_tables), dtype=np.uint64)
        if self.params.family == "hyperplane":
            _hyperplane_terms(rows, self._signs, self.params.num_planes, terms)
        else:
            _cross_polytope_terms(rows, self._signs, self._places, np.array(self.params.polytope_dims), terms)
        return terms


def polytope_places(params: TermParams) -> NDArray[np.int64]:
    """Where the coordinates of each polytope begin, `(num_tables * num_polytopes,)`, over all rotations in a row.

    Polytopes of full size come first, table by table; smaller last ones follow, so that none leaves coordinates unused.

    >>> polytope_places(TermParams(num_tables=2, num_polytopes=3, polytope_dim=64, last_polytope_dim=2)).tolist()
    [0, 64, 256, 128, 192, 258]
    """
    dims = np.array(params.polytope_dims * params.num_tables)
    order = np.argsort(dims < params.polytope_dim, kind="stable")
    places = np.empty(dims.size, dtype=np.int64)
    places[order] = np.cumsum(dims[order]) - dims[order]
    return places


def _joined(elements: NDArray[np.uint32], params: TermParams) -> NDArray[np.uint64]:
    """Min-hashes `(n, num_tables * num_hashes)` to terms `(n, num_tables)`, a table's first highest."""
    bits = np.uint64((2 * params.dim - 1).bit_length())
    by_table = elements.reshape(-1, params.num_tables, params.num_hashes)
    terms = np.broadcast_to(np.arange(params.num_tables, dtype=np.uint64), by_table.shape[:2])
    for position in range(params.num_hashes):
        terms = terms << bits | by_table[:, :, position].astype(np.uint64)
    return terms


@njit(cache=True, nogil=True)
def _cross_polytope_terms(
    rows: NDArray[np.float32],
    signs: NDArray[np.float32],
    places: NDArray[np.int64],
    polytope_dims: NDArray[np.int64],
    terms: NDArray[np.uint64],
) -> None:
    """Fills `terms`; `places` say where each polytope begins over all rotations in a row, a table's last one last."""
    dim = signs.shape[2]
    num_polytopes = polytope_dims.size
    order = np.argsort(places)
    lanes, spread = np.empty(dim * LANES, np.float32), np.empty(dim * LANES, np.float32)
    rotated = np.empty(dim * LANES, np.float32)
    largest, vertices = np.empty(LANES, np.float32), np.empty(LANES, np.int32)
    for first_row in range(0, rows.shape[0], LANES):
        num_rows = load_lanes(rows, first_row, lanes)
        spread_lanes(lanes, signs[0], spread)
        rotation = -1
        for polytope in order:
            table, position = polytope // num_polytopes, polytope % num_polytopes
            if places[polytope] // dim != rotation:
                rotation = places[polytope] // dim
                turn_lanes(spread, signs[rotation], rotated)
            first, polytope_dim = places[polytope] % dim, polytope_dims[position]
            _nearest_vertices(rotated[first * LANES : (first + polytope_dim) * LANES], largest, vertices)
            for lane in range(num_rows):
                term = np.uint64(table) if position == 0 else terms[first_row + lane, table]
                terms[first_row + lane, table] = term * np.uint64(2 * polytope_dim) + np.uint64(vertices[lane])


@njit(cache=True, nogil=True)
def _nearest_vertices(rotated: NDArray[np.float32], largest: NDArray[np.float32], vertices: NDArray[np.int32]) -> None:
    """Per lane `2 * axis + is_negative` of the coordinate of largest magnitude, the first one on a tie."""
    largest[:] = -1.0
    for axis in range(rotated.size // LANES):
        values = rotated[axis * LANES : (axis + 1) * LANES]
        for lane in range(LANES):
            magnitude = abs(values[lane])
            vertex = np.int32(2 * axis) + np.int32(values[lane] < 0)
            vertices[lane] = vertex if magnitude > largest[lane] else vertices[lane]
            largest[lane] = max(magnitude, largest[lane])


@njit(cache=True, nogil=True)
def _hyperplane_terms(
    rows: NDArray[np.float32], signs: NDArray[np.float32], num_planes: int, terms: NDArray[np.uint64]
) -> None:
    """Fills `terms`; bit `b` of a bucket is set where coordinate `b` of the table's slice is negative."""
    dim = signs.shape[2]
    slices = dim // num_planes
    lanes, spread = np.empty(dim * LANES, np.float32), np.empty(dim * LANES, np.float32)
    rotated = np.empty(dim * LANES, np.float32)
    for first_row in range(0, rows.shape[0], LANES):
        num_rows = load_lanes(rows, first_row, lanes)
        spread_lanes(lanes, signs[0], spread)
        for table in range(terms.shape[1]):
            if table % slices == 0:
                turn_lanes(spread, signs[table // slices], rotated)
            first = (table % slices) * num_planes
            for lane in range(num_rows):
                bucket = np.uint64(0)
                for plane in range(num_planes):
                    is_negative = rotated[(first + plane) * LANES + lane] < 0
                    bucket |= np.uint64(is_negative) << np.uint64(plane)
                terms[first_row + lane, table] = np.uint64(table) << np.uint64(num_planes) | bucket
