"""Rules of probes: the buckets that lose least, in order, equal to their slow twin."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lsh.errors import ParameterError
from lsh.probes import brute_force_probes, probes
from lsh.terms import TermHasher, TermParams

SMALL = TermParams(num_tables=3, dim=60, num_polytopes=2, polytope_dim=16, last_polytope_dim=2)
CASES = [
    (SMALL, 48),
    (TermParams(num_tables=3, dim=8, num_polytopes=3, polytope_dim=4, last_polytope_dim=1), 60),
    (TermParams(num_tables=20, dim=20, num_polytopes=1, polytope_dim=64), 80),
    (TermParams(num_tables=40, dim=64, num_polytopes=2, polytope_dim=64, last_polytope_dim=8), 100),
]


def random_rows(num: int, dim: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(5).standard_normal((num, dim)).astype(np.float32)
    rows[0] = 0.0
    rows[1] = np.round(rows[1])
    return rows


@pytest.mark.parametrize(("params", "num_probes"), CASES)
def test_probes_equal_their_slow_twin(params: TermParams, num_probes: int) -> None:
    """The heap visits the buckets that sorting all combinations of vertices gives, in that order, ties included."""
    rows = random_rows(12, params.dim)

    np.testing.assert_array_equal(probes(rows, params, num_probes), brute_force_probes(rows, params, num_probes))


@pytest.mark.parametrize(("params", "num_probes"), CASES)
def test_the_first_probes_are_the_terms_of_the_row(params: TermParams, num_probes: int) -> None:
    """Before any other bucket, a query visits its own bucket of every table, in order of tables."""
    rows = random_rows(40, params.dim)

    first = probes(rows, params, num_probes)[:, : params.num_tables]
    np.testing.assert_array_equal(first, TermHasher(params).terms(rows))


@pytest.mark.parametrize(("params", "num_probes"), CASES)
def test_probes_are_distinct(params: TermParams, num_probes: int) -> None:
    """No bucket is visited twice."""
    for terms in probes(random_rows(10, params.dim), params, num_probes):
        assert np.unique(terms).size == num_probes


def test_more_probes_only_add_buckets() -> None:
    """A longer sequence starts with the shorter one."""
    rows = random_rows(10, SMALL.dim)

    np.testing.assert_array_equal(probes(rows, SMALL, 40)[:, :20], probes(rows, SMALL, 20))


def test_probes_find_more_of_the_near_than_twice_the_tables() -> None:
    """Eight probes a table share a bucket with more rows of cosine 0.8 than sixteen tables without probes do."""
    params = TermParams(num_tables=8, dim=64, num_polytopes=2, polytope_dim=64)
    rows = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    noise = np.random.default_rng(1).standard_normal((300, 64)).astype(np.float32)
    noise -= (noise * rows).sum(axis=1, keepdims=True) * rows
    near = 0.8 * rows + 0.6 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    many = TermHasher(TermParams(num_tables=16, dim=64, num_polytopes=2, polytope_dim=64))
    found_by_tables = (many.terms(near) == many.terms(rows)).any(axis=1).mean()
    visited, terms = probes(near, params, 64), TermHasher(params).terms(rows)
    found_by_probes = np.mean([np.isin(terms[i], visited[i]).any() for i in range(300)])

    assert found_by_probes > found_by_tables + 0.1


@pytest.mark.parametrize(
    ("params", "num_probes", "message"),
    [
        (TermParams(family="hyperplane"), 100, "family='hyperplane' has no probes"),
        (SMALL, 2, "num_probes=2 is out of range 3..48"),
        (SMALL, 49, "num_probes=49 is out of range 3..48"),
    ],
)
def test_probes_that_cannot_be_are_refused(params: TermParams, num_probes: int, message: str) -> None:
    """Another family, fewer probes than tables and more than there are buckets raise ParameterError."""
    with pytest.raises(ParameterError, match=message):
        probes(random_rows(2, params.dim), params, num_probes)
