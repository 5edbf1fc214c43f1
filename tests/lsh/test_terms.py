"""Rules of the terms of both families."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasketch import MinHash
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lsh.errors import ParameterError
from lsh.minhash import element_bytes, element_ranks
from lsh.rotations import LANES, load_lanes, rotate_lanes, rotated_dim
from lsh.terms import TermHasher, TermParams

FAMILIES = [
    TermParams(num_tables=5, dim=64, num_polytopes=2, polytope_dim=64),
    TermParams(num_tables=5, dim=60, num_polytopes=3, polytope_dim=16),
    TermParams(num_tables=3, dim=20, num_polytopes=1, polytope_dim=128),
    TermParams(num_tables=5, dim=60, num_polytopes=3, polytope_dim=32, last_polytope_dim=4),
    TermParams(family="hyperplane", num_tables=7, dim=64, num_planes=18),
    TermParams(family="hyperplane", num_tables=2, dim=5, num_planes=40),
]
MINHASH = TermParams(family="minhash", num_tables=5, dim=60, num_activations=7, num_hashes=3)
GOLDEN = [
    (TermParams(num_tables=4), [249328, 517099, 619983, 873967]),
    (TermParams(num_tables=4, seed=7), [58986, 489288, 568689, 1012341]),
    (TermParams(num_tables=4, dim=60, num_polytopes=3, polytope_dim=16), [2865, 32800, 95607, 124374]),
    (TermParams(family="hyperplane", num_tables=4), [261954, 365016, 743427, 889109]),
    (
        TermParams(num_tables=4, num_polytopes=3, polytope_dim=64, last_polytope_dim=8),
        [259955, 431712, 628169, 927497],
    ),
    (TermParams(family="minhash", num_tables=4), [193826, 273186, 715725, 864629]),
]


def random_rows(num: int, dim: int, *, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def slow_terms(params: TermParams, rows: NDArray[np.float32]) -> list[list[int]]:
    """The slow twin: Python integers and one table at a time, on rows rotated by the tested kernel."""
    signs = TermHasher(params)._signs
    dim = signs.shape[2]
    is_hyperplane = params.family == "hyperplane"
    slice_dim = params.num_planes if is_hyperplane else params.polytope_dim
    polytope_dims = params.polytope_dims
    num_full = sum(size == params.polytope_dim for size in polytope_dims)
    result = []
    for row in range(len(rows)):
        lanes, rotated = np.empty(dim * LANES, np.float32), np.empty(dim * LANES, np.float32)
        load_lanes(rows[row : row + 1], 0, lanes)
        values, slices = np.empty(0, np.float32), []
        for rotation_signs in signs:
            rotate_lanes(lanes, rotation_signs, rotated)
            values = np.append(values, of_rotation := rotated.reshape(dim, LANES)[:, 0])
            slices += [of_rotation[i * slice_dim :][:slice_dim].copy() for i in range(dim // slice_dim)]
        terms = []
        for table in range(params.num_tables):
            if is_hyperplane:
                bucket = sum(1 << plane for plane in range(slice_dim) if slices[table][plane] < 0)
                terms.append(table << params.bits_per_term | bucket)
                continue
            polytopes = slices[table * num_full : (table + 1) * num_full]
            if num_full < len(polytope_dims):
                first = params.num_tables * num_full * slice_dim + table * polytope_dims[-1]
                polytopes = [*polytopes, values[first : first + polytope_dims[-1]]]
            bucket = 0
            for polytope in polytopes:
                axis = int(np.argmax(np.abs(polytope)))
                bucket = bucket * 2 * len(polytope) + 2 * axis + int(polytope[axis] < 0)
            terms.append(table << params.bits_per_term | bucket)
        result.append(terms)
    return result


@pytest.mark.parametrize("params", FAMILIES)
def test_terms_equal_their_slow_twin(params: TermParams) -> None:
    """Both families of rotations give the terms that one table at a time in Python integers gives."""
    rows = random_rows(35, params.dim)

    assert TermHasher(params).terms(rows).tolist() == slow_terms(params, rows)


def test_min_hashes_equal_those_of_datasketch() -> None:
    """Each term joins the elements whose hash values datasketch's MinHash of the strongest activations holds."""
    rows = random_rows(20, MINHASH.dim)
    rows[10:] = np.round(rows[10:], 1)  # equal magnitudes
    num_permutations = MINHASH.num_tables * MINHASH.num_hashes
    ranks = element_ranks(dim=MINHASH.dim, num_permutations=num_permutations, seed=MINHASH.seed)
    terms = TermHasher(MINHASH).terms(rows)
    for row, row_terms in zip(rows, terms, strict=True):
        axes = np.argsort(-np.abs(row), kind="stable")[: MINHASH.num_activations]
        minhash = MinHash(num_perm=num_permutations, seed=MINHASH.seed, scheme="affine32")
        minhash.update_batch([element_bytes(2 * int(axis) + int(row[axis] < 0)) for axis in axes])
        elements = [
            int(term) >> shift & 127 for term in row_terms for shift in (14, 7, 0)
        ]  # 2 * 60 elements take 7 bits

        assert [int(ranks[element, i]) for i, element in enumerate(elements)] == minhash.hashvalues.tolist()


@pytest.mark.parametrize("params", [*FAMILIES, MINHASH])
def test_terms_carry_their_table_above_the_bucket(params: TermParams) -> None:
    """A term shifted right by `bits_per_term` is the number of its table."""
    terms = TermHasher(params).terms(random_rows(20, params.dim))

    assert terms.dtype == np.uint64
    np.testing.assert_array_equal(
        terms >> np.uint64(params.bits_per_term), np.tile(np.arange(params.num_tables, dtype=np.uint64), (20, 1))
    )


@pytest.mark.parametrize(
    "params",
    [TermParams(num_tables=8), *(TermParams(family=family, num_tables=8) for family in ("hyperplane", "minhash"))],
)
@pytest.mark.parametrize("batch_size", [1, 15, 16, 17, 100])
def test_terms_do_not_depend_on_the_batch(params: TermParams, batch_size: int) -> None:
    """A row has the same terms alone, in any batch, and at any place of it, also near ties of an argmax."""
    rows = random_rows(200, params.dim)
    rows[100:] = np.round(rows[100:], 1)
    hasher = TermHasher(params)
    batches = [hasher.terms(rows[first : first + batch_size]) for first in range(0, 200, batch_size)]

    np.testing.assert_array_equal(np.concatenate(batches), hasher.terms(rows))
    np.testing.assert_array_equal(hasher.terms(rows[::-1])[::-1], hasher.terms(rows))


@pytest.mark.parametrize(("params", "golden"), GOLDEN)
def test_terms_are_golden(params: TermParams, golden: list[int]) -> None:
    """The terms of a fixed embedding never change, on any machine or version."""
    row = np.sin(np.arange(1, params.dim + 1, dtype=np.float64)).astype(np.float32)[None]

    assert TermHasher(params).terms(row)[0].tolist() == golden


def test_an_embedding_of_zeros_has_the_first_bucket() -> None:
    """A row of zeros hashes like any other, to bucket 0 of every table."""
    for params in FAMILIES:
        terms = TermHasher(params).terms(np.zeros((1, params.dim), dtype=np.float32))

        assert (terms[0] & np.uint64((1 << params.bits_per_term) - 1)).tolist() == [0] * params.num_tables


def test_no_embeddings_have_no_terms() -> None:
    """An empty batch gives an empty `(0, num_tables)` array."""
    assert TermHasher(TermParams(num_tables=3)).terms(np.empty((0, 256), dtype=np.float32)).shape == (0, 3)


def test_near_embeddings_share_more_terms_than_far_ones() -> None:
    """The share of equal terms grows with the cosine, and the opposite of an embedding shares none."""
    params = TermParams(num_tables=64, dim=64, polytope_dim=64, num_polytopes=1)
    hasher = TermHasher(params)
    rows, noise = random_rows(200, 64), random_rows(200, 64, seed=1)
    terms = hasher.terms(rows)
    shares = []
    for cosine in (0.95, 0.8, 0.5, 0.0):
        moved = cosine * rows + np.sqrt(1 - cosine**2) * noise
        shares.append(float((hasher.terms(moved.astype(np.float32)) == terms).mean()))

    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.6
    assert shares[-1] < 0.05
    assert not (hasher.terms(-rows) == terms).any()


def test_another_seed_gives_other_terms() -> None:
    """Tables of another seed are independent of those of the first."""
    rows = random_rows(100, 256)
    first, other = (TermHasher(TermParams(num_tables=16, seed=seed)).terms(rows) for seed in (0, 1))

    assert (first == other).mean() < 0.01


def test_terms_of_the_widest_params_fit_in_64_bits() -> None:
    """Tables and buckets that need exactly 64 bits together are packed without loss."""
    params = TermParams(num_tables=1024, dim=8, num_polytopes=6, polytope_dim=256)
    terms = TermHasher(params).terms(random_rows(2, 8))

    assert params.bits_per_term == 54
    assert (terms >> np.uint64(54)).tolist() == [list(range(1024))] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tables": 0}, "num_tables=0 is out of range 1..1024"),
        ({"num_tables": 2.0}, "num_tables=2.0 is not an integer"),
        ({"num_tables": True}, "num_tables=True is not an integer"),
        ({"dim": 0}, "dim=0 is out of range"),
        ({"num_polytopes": 9}, "num_polytopes=9 is out of range 1..8"),
        ({"polytope_dim": 1}, "polytope_dim=1 is out of range"),
        ({"polytope_dim": 100}, "polytope_dim=100 is not a power of two; try 64, 128"),
        ({"num_planes": 49}, "num_planes=49 is out of range 1..48"),
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"last_polytope_dim": 512}, "last_polytope_dim=512 is out of range 1..256"),
        ({"last_polytope_dim": 48}, "last_polytope_dim=48 is not a power of two"),
        ({"family": "minhash", "num_hashes": 9}, "num_hashes=9 is out of range 1..8"),
        ({"family": "minhash", "num_activations": 257}, "num_activations=257 is above dim=256"),
        ({"family": "minhash", "seed": 2**32}, "seed=4294967296 is out of range 0..4294967295"),
        ({"family": "simhash"}, "family='simhash' is unknown; choose one of cross_polytope, hyperplane, minhash"),
        ({"num_polytopes": 8, "polytope_dim": 256}, "needs 78 bits, more than 64"),
    ],
)
def test_bad_params_are_named(changes: dict[str, object], message: str) -> None:
    """A parameter out of range raises ParameterError with its name, value and range."""
    with pytest.raises(ParameterError, match=message):
        TermParams(**changes)  # type: ignore[arg-type]


@given(
    st.builds(
        TermParams,
        family=st.sampled_from(["cross_polytope", "hyperplane"]),
        num_tables=st.integers(1, 64),
        dim=st.integers(1, 512),
        polytope_dim=st.sampled_from([2, 64, 256]),
        last_polytope_dim=st.sampled_from([None, 2]),
        num_planes=st.integers(1, 48),
        seed=st.integers(0, 2**63 - 1),
    )
)
def test_params_survive_json(params: TermParams) -> None:
    """Params written to JSON text and read back are equal."""
    assert TermParams.from_json(json.loads(json.dumps(params.to_json()))) == params


def test_params_of_another_version_are_refused() -> None:
    """Unknown or missing fields raise ParameterError that lists the fields."""
    fields = TermParams().to_json()
    missing = {name: value for name, value in fields.items() if name != "seed"}

    for other in ({**fields, "num_probes": 3}, missing):
        with pytest.raises(ParameterError, match="written by another version"):
            TermParams.from_json(other)


def test_bits_per_term_count_sign_and_axis() -> None:
    """A vertex of a cross-polytope of 256 dimensions takes 9 bits, a hyperplane one."""
    assert TermParams(num_polytopes=2, polytope_dim=256).bits_per_term == 18
    assert TermParams(family="hyperplane", num_planes=20).bits_per_term == 20
    assert rotated_dim(256) == 256
