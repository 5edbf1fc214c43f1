"""The order that puts look-alikes into one batch."""

from __future__ import annotations

import numpy as np

from embed.training.lookalikes import lookalike_order


def test_every_photo_is_visited_once() -> None:
    """The order is a permutation, for any number of rows, equal rows included."""
    for num_rows in (1, 2, 7, 64, 100):
        rows = np.random.default_rng(num_rows).normal(size=(num_rows, 8)).astype(np.float32)
        rows[: num_rows // 2] = rows[0]
        order = lookalike_order(rows, group_size=4, generator=np.random.default_rng(0))
        assert sorted(order.tolist()) == list(range(num_rows))


def test_look_alikes_come_together() -> None:
    """Within groups rows are far more similar than rows picked at random."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(40, 1, 16))
    rows = (centers + 0.3 * generator.normal(size=(40, 8, 16))).reshape(320, 16).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    groups = rows[lookalike_order(rows, group_size=8, generator=generator)].reshape(-1, 5, 16)
    similarity_in_groups = (groups @ groups.transpose(0, 2, 1)).mean()
    assert similarity_in_groups > 0.5 > 5 * (rows @ rows.T).mean()


def test_the_seed_decides_the_order() -> None:
    """The same generator state gives the same order, another one another."""
    rows = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    first, again, other = (
        lookalike_order(rows, group_size=4, generator=np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
