"""Whitening: decorrelated columns of unit variance, and files that are checked before they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embed.errors import EmbedderError
from embed.whitening import Whitening, fit_whitening, principal_rotation, read_whitening, whitening_bytes


def correlated_rows() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    generator = np.random.default_rng(0)
    rows: np.ndarray[tuple[int, int], np.dtype[np.float32]] = (
        generator.standard_normal((500, 6)) @ generator.standard_normal((6, 6)) + 3.0
    ).astype(np.float32)
    return rows


def test_whitened_columns_are_uncorrelated_with_unit_variance() -> None:
    """On the rows it was fitted on, whitening gives mean 0 and the identity as covariance."""
    rows = correlated_rows()
    whitening = fit_whitening(rows, dim=4)

    white = (rows - whitening.mean) @ whitening.projection

    assert whitening.dim == 4
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(white.T), np.eye(4), atol=1e-3)


def test_a_whitening_file_gives_back_what_was_written(tmp_path: Path) -> None:
    """Writing and reading a whitening changes no value."""
    whitening = fit_whitening(correlated_rows(), dim=3)
    (tmp_path / "w.npz").write_bytes(whitening_bytes(whitening))

    read = read_whitening(tmp_path / "w.npz")

    assert np.array_equal(read.mean, whitening.mean)
    assert np.array_equal(read.projection, whitening.projection)


@pytest.mark.parametrize("dim", [0, 7])
def test_dim_out_of_range_is_refused(dim: int) -> None:
    """Six features have one to six principal directions."""
    with pytest.raises(EmbedderError, match=rf"dim={dim} is out of range 1\.\.6"):
        fit_whitening(correlated_rows(), dim=dim)


def test_shapes_that_do_not_fit_are_refused() -> None:
    """A mean and a projection of different widths are an error."""
    with pytest.raises(EmbedderError, match="does not fit together"):
        Whitening(mean=np.zeros(3, np.float32), projection=np.zeros((4, 2), np.float32))


def test_values_that_are_not_finite_are_refused() -> None:
    """A NaN would silently spoil every embedding."""
    with pytest.raises(EmbedderError, match="not finite"):
        Whitening(mean=np.full(3, np.nan, np.float32), projection=np.zeros((3, 2), np.float32))


@pytest.mark.parametrize("damage", ["missing", "text", "cut", "pickled", "lacks an array"])
def test_a_file_that_is_no_whitening_is_refused(tmp_path: Path, damage: str) -> None:
    """Whatever is wrong with the file, the error names it and what it should be; nothing is ever unpickled."""
    path = tmp_path / "w.npz"
    whole = whitening_bytes(fit_whitening(correlated_rows(), dim=3))
    if damage == "text":
        path.write_text("hello")
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "pickled":
        np.savez(path, mean=np.array([{}], dtype=object), projection=np.zeros((1, 1)))
    elif damage == "lacks an array":
        np.savez(path, mean=np.zeros(3))

    with pytest.raises(EmbedderError, match=r"w\.npz is not a whitening file"):
        read_whitening(path)


@pytest.mark.parametrize("place", range(0, 600, 23))
def test_a_flipped_byte_never_escapes_as_another_error(tmp_path: Path, place: int) -> None:
    """A damaged whitening is refused, or the damage lies where the format has slack."""
    whole = bytearray(whitening_bytes(fit_whitening(correlated_rows(), dim=3)))
    whole[place % len(whole)] ^= 0xFF
    (tmp_path / "w.npz").write_bytes(whole)

    try:
        read = read_whitening(tmp_path / "w.npz")
    except EmbedderError as error:
        assert "w.npz" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert read.projection.shape == (6, 3)


def test_a_rotation_keeps_every_cosine() -> None:
    """Lengths and cosines of rotated rows are those of the rows, with fewer rows than dimensions as well."""
    for rows in (correlated_rows(), correlated_rows()[:3]):
        rotation = principal_rotation(rows)
        rotated = (rows - rotation.mean) @ rotation.projection

        np.testing.assert_allclose(rotated @ rotated.T, rows @ rows.T, rtol=1e-4, atol=1e-3)


def test_the_first_columns_of_a_rotation_hold_most() -> None:
    """The energy of the columns descends, so a prefix is the best of its length."""
    rows = correlated_rows()
    energy = np.square(rows @ principal_rotation(rows).projection).sum(axis=0)

    assert (np.diff(energy) <= 1e-3 * energy[0]).all()
    assert energy[0] == energy.max()
