"""Rules of the pseudo-random rotations."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lsh.errors import ParameterError
from lsh.rotations import (
    LANES,
    NUM_ROUNDS,
    checked_embeddings,
    load_lanes,
    rotate_lanes,
    rotate_row,
    rotation_signs,
    rotations_in_lanes,
)

GOLDEN_SIGNS = [
    "-+-++-+++--+-+++++--+-+--+-++++-",
    "+-+++-----+-+----+-+++----+++---",
    "++--++----+--+---+++--+++-------",
]


def hadamard(dim: int) -> NDArray[np.float64]:
    """Sylvester's construction."""
    matrix = np.ones((1, 1))
    while len(matrix) < dim:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def rotate(rows: NDArray[np.float32], signs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Up to 16 rows through the kernels, as `(n, dim)`."""
    lanes, rotated = np.empty(signs.shape[1] * LANES, np.float32), np.empty(signs.shape[1] * LANES, np.float32)
    num_rows = load_lanes(rows, 0, lanes)
    rotate_lanes(lanes, signs, rotated)
    return rotated.reshape(-1, LANES).T[:num_rows]


@pytest.mark.parametrize("dim", [1, 2, 4, 8, 32, 64, 128, 256, 512])
def test_a_rotation_equals_its_product_of_matrices(dim: int) -> None:
    """A rotation equals the product of its sign and Walsh-Hadamard matrices, at every power of two."""
    rows = np.random.default_rng(dim).standard_normal((5, dim)).astype(np.float32)
    signs = rotation_signs(num_rotations=1, dim=dim, seed=1, stream=1)[0]
    matrix = np.eye(dim)
    for number in range(NUM_ROUNDS):
        matrix = hadamard(dim) @ np.diag(signs[number].astype(np.float64)) @ matrix

    np.testing.assert_allclose(rotate(rows, signs), rows.astype(np.float64) @ matrix.T, rtol=1e-4, atol=1e-3 * dim**1.5)


@pytest.mark.parametrize(("dim", "num_rotations", "width"), [(1, 1, 1), (64, 12, 60), (256, 16, 256), (32, 35, 8)])
def test_all_rotations_of_one_row_are_those_of_many_rows(dim: int, num_rotations: int, width: int) -> None:
    """With rotations in the lanes a row gets, bit for bit, what it gets among fifteen others."""
    rows = np.random.default_rng(dim).standard_normal((16, width)).astype(np.float32)
    signs = rotation_signs(num_rotations=num_rotations, dim=dim, seed=3, stream=1)
    in_lanes = rotations_in_lanes(signs)
    rotated = np.empty((len(in_lanes), dim * LANES), np.float32)
    rotate_row(rows[5], in_lanes, rotated)
    by_rotation = rotated.reshape(-1, dim, LANES).transpose(0, 2, 1).reshape(-1, dim)[:num_rotations]

    np.testing.assert_array_equal(by_rotation, np.stack([rotate(rows, one)[5] for one in signs]))


def test_a_rotation_keeps_angles() -> None:
    """Dot products of rotated rows are those of the rows, times `dim ** 3`."""
    rows = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    rotated = rotate(rows, rotation_signs(num_rotations=1, dim=64, seed=0, stream=1)[0])

    np.testing.assert_allclose(rotated @ rotated.T / 64**3, rows @ rows.T, atol=1e-3)


def test_missing_coordinates_count_as_zeros() -> None:
    """Rows shorter than the rotation are rotated as if padded with zeros."""
    rows = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    signs = rotation_signs(num_rotations=1, dim=64, seed=0, stream=1)[0]

    np.testing.assert_array_equal(rotate(rows, signs), rotate(np.pad(rows, [(0, 0), (0, 14)]), signs))


def test_signs_depend_on_seed_and_stream_alone() -> None:
    """Signs are +1 or -1 in equal parts; equal seed and stream repeat them, another of either shares nothing."""
    signs = rotation_signs(num_rotations=8, dim=256, seed=5, stream=1)
    others = [rotation_signs(num_rotations=8, dim=256, seed=seed, stream=stream) for seed, stream in ((6, 1), (5, 2))]

    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.05
    np.testing.assert_array_equal(signs, rotation_signs(num_rotations=8, dim=256, seed=5, stream=1))
    for other in others:
        assert abs(float((signs * other).mean())) < 0.05


def test_signs_are_golden() -> None:
    """The first signs of seed 0 never change, on any machine or version of numpy."""
    signs = rotation_signs(num_rotations=1, dim=32, seed=0, stream=1)[0]

    assert ["".join("+-"[int(sign < 0)] for sign in row) for row in signs] == GOLDEN_SIGNS


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named(bad: float) -> None:
    """NaN or an infinity anywhere raises ParameterError with the number of the row."""
    rows = np.ones((40, 8), dtype=np.float32)
    rows[33, 7] = bad

    with pytest.raises(ParameterError, match="row 33 holds NaN or infinity"):
        checked_embeddings(rows, dim=8)


@pytest.mark.parametrize("shape", [(8,), (3, 7), (2, 2, 8)])
def test_another_shape_is_named(shape: tuple[int, ...]) -> None:
    """An array that is not `(n, dim)` raises ParameterError with its shape."""
    with pytest.raises(ParameterError, match=r"do not fit dim=8; pass an \(n, 8\) array"):
        checked_embeddings(np.ones(shape, dtype=np.float32), dim=8)
