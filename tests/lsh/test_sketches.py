"""Rules of the 64-bit sketches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsh.errors import ParameterError
from lsh.sketches import expected_distance, hamming_distances, long_sketches, sketches

GOLDEN = 0x1160842221E97FA6
word = st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(word, word), max_size=30))
def test_distances_equal_python_bit_counts(pairs: list[tuple[int, int]]) -> None:
    """The Hamming distance is the number of one bits of the XOR."""
    left, right = np.array(pairs, dtype=np.uint64).reshape(-1, 2).T

    assert hamming_distances(left, right).tolist() == [(a ^ b).bit_count() for a, b in pairs]


def test_distances_of_long_sketches_are_added_over_their_words() -> None:
    """The distance of sketches of several words is the sum of the distances of their words."""
    rows = np.random.default_rng(4).standard_normal((2, 30, 256)).astype(np.float32)
    left, right = (long_sketches(side, num_words=4) for side in rows)
    by_word = [hamming_distances(left[:, word], right[:, word]) for word in range(4)]

    assert hamming_distances(left, right).tolist() == np.sum(by_word, axis=0).tolist()
    assert left[:, 0].tolist() == sketches(rows[0]).tolist()


def test_sketches_do_not_depend_on_the_batch() -> None:
    """A row has the same sketch alone and in any batch."""
    rows = np.random.default_rng(0).standard_normal((50, 256)).astype(np.float32)

    assert [sketches(rows[i : i + 1])[0] for i in range(50)] == sketches(rows).tolist()


@pytest.mark.parametrize("cosine", [0.99, 0.8, 0.5, 0.0])
def test_distances_follow_the_angle(cosine: float) -> None:
    """The mean distance of pairs at one cosine is `64 * acos(cosine) / pi`."""
    rng = np.random.default_rng(1)
    left, noise = np.linalg.qr(rng.standard_normal((4000, 128, 2))).Q.transpose(2, 0, 1).astype(np.float32)
    right = np.float32(cosine) * left + np.float32(np.sqrt(1 - cosine**2)) * noise

    assert abs(hamming_distances(sketches(left), sketches(right)).mean() - expected_distance(cosine)) < 0.3


def test_sketches_are_golden() -> None:
    """The sketch of a fixed embedding never changes, on any machine or version."""
    row = np.sin(np.arange(1, 257, dtype=np.float64)).astype(np.float32)[None]

    assert int(sketches(row)[0]) == GOLDEN


def test_opposite_embeddings_differ_in_every_bit() -> None:
    """Each bit is a sign, so the negated embedding has the inverted sketch, and a longer one the same."""
    rows = np.random.default_rng(2).standard_normal((20, 100)).astype(np.float32)

    assert (hamming_distances(sketches(rows), sketches(-rows)) == 64).all()
    np.testing.assert_array_equal(sketches(rows), sketches(4 * rows))


def test_another_seed_gives_other_sketches() -> None:
    """Sketches of two seeds of one embedding are as far apart as chance."""
    rows = np.random.default_rng(3).standard_normal((500, 64)).astype(np.float32)

    assert abs(hamming_distances(sketches(rows, seed=0), sketches(rows, seed=1)).mean() - 32) < 1


@pytest.mark.parametrize("dim", [1, 3, 64, 300])
def test_any_dim_gives_a_sketch_a_row(dim: int) -> None:
    """Embeddings of fewer or more than 64 dimensions are sketched too, and no rows give no sketches."""
    assert sketches(np.ones((3, dim), dtype=np.float32)).shape == (3,)
    assert sketches(np.ones((0, dim), dtype=np.float32)).shape == (0,)


def test_arrays_that_are_no_embeddings_raise() -> None:
    """Another shape, or sketches of different number, raise ParameterError."""
    with pytest.raises(ParameterError, match="cannot be sketched"):
        sketches(np.ones(8, dtype=np.float32))
    with pytest.raises(ParameterError, match="cannot be compared"):
        hamming_distances(np.zeros(2, dtype=np.uint64), np.zeros(3, dtype=np.uint64))
