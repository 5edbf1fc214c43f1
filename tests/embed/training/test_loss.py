"""The contrastive loss against a numpy twin that follows the papers' sums literally."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

pytestmark = pytest.mark.tensorflow


def unit_rows(n: int, dim: int, seed: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def numpy_loss(
    first: NDArray[np.float32], second: NDArray[np.float32], temperature: float, entropy_weight: float
) -> float:
    """NT-Xent (arXiv 2002.05709, eq. 1) minus weighted KoLeo (arXiv 1806.03198, eq. 2), one term at a time."""
    rows, n = np.concatenate([first, second]), len(first)
    nt_xent, entropy = 0.0, 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = [j for j in range(2 * n) if j != i]
        total = sum(math.exp(float(rows[i] @ rows[j]) / temperature) for j in others)
        nt_xent -= math.log(math.exp(float(rows[i] @ rows[partner]) / temperature) / total)
        entropy += math.log(min(float(np.linalg.norm(rows[i] - rows[j])) for j in others if j != partner))
    return nt_xent / (2 * n) - entropy_weight * entropy / (2 * n)


@pytest.mark.parametrize("entropy_weight", [0.0, 0.5])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_loss_equals_its_numpy_twin(temperature: float, entropy_weight: float) -> None:
    """The vectorised loss is the papers' double sum."""
    from embed.training.loss import contrastive_loss

    first, second = unit_rows(6, 8, 0), unit_rows(6, 8, 1)

    loss = float(contrastive_loss(first, second, temperature=temperature, entropy_weight=entropy_weight))

    assert loss == pytest.approx(numpy_loss(first, second, temperature, entropy_weight), rel=1e-4)


def test_agreeing_views_cost_less_than_strangers() -> None:
    """Views of the same photos that agree have a lower loss than views that do not."""
    from embed.training.loss import contrastive_loss

    first, stranger = unit_rows(16, 8, 0), unit_rows(16, 8, 1)

    agreeing, strange = (
        float(contrastive_loss(first, view, temperature=0.1, entropy_weight=0.5)) for view in (first, stranger)
    )

    assert agreeing < strange


def test_collapse_is_finite() -> None:
    """If all embeddings fall together the loss is large but a number, so training can recover."""
    from embed.training.loss import contrastive_loss

    same = np.tile(unit_rows(1, 8, 0), (4, 1))

    assert math.isfinite(float(contrastive_loss(same, same, temperature=0.06, entropy_weight=0.5)))


def test_threshold_loss_equals_its_numpy_twin() -> None:
    """One pair at a time: softplus of how far each lies on the wrong side, false pairs at their weight."""
    from embed.training.loss import threshold_loss

    first = unit_rows(5, 3, 0)
    second = first + 0.3 * unit_rows(5, 3, 1)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    rows, expected = np.concatenate([first, second]).astype(np.float64), 0.0
    for i in range(10):
        for j in range(10):
            beyond = (rows[i] @ rows[j] - 0.7) / 0.1
            if i == j:
                continue
            is_true = abs(i - j) == 5
            expected += math.log1p(math.exp(-beyond)) if is_true else 2.0 * math.log1p(math.exp(beyond))
    loss = float(threshold_loss(first, second, threshold=0.7, width=0.1, false_weight=2.0))

    assert loss == pytest.approx(expected / 10, rel=1e-4)


def test_threshold_loss_asks_for_one_threshold_for_all_photos() -> None:
    """Two photos whose true pairs are farther apart than the false pair of two others: ranked first, yet costly."""
    from embed.training.loss import threshold_loss

    def at(*degrees: float) -> NDArray[np.float32]:
        angles = np.radians(degrees)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    ranked, separated = (
        float(threshold_loss(first, second, threshold=0.8, width=0.05, false_weight=1.0))
        for first, second in ((at(0, 20, 120), at(5, 25, 165)), (at(0, 60, 120), at(5, 65, 125)))
    )

    assert ranked > 10 * separated


def test_edited_threshold_loss_equals_its_numpy_twin() -> None:
    """Each edited row is compared with its own plain row and, at `false_weight`, with every other one."""
    from embed.training.loss import edited_threshold_loss

    edited, plain = unit_rows(5, 8, 0), unit_rows(5, 8, 1)
    expected = 0.0
    for i in range(5):
        for j in range(5):
            cosine = float(edited[i] @ plain[j])
            expected += math.log1p(math.exp((0.3 - cosine) / 0.2)) if i == j else 0.0
            expected += 0.25 * math.log1p(math.exp((cosine - 0.3) / 0.2)) if i != j else 0.0

    loss = float(edited_threshold_loss(edited, plain, threshold=0.3, width=0.2, false_weight=0.25))

    assert loss == pytest.approx(expected / 5, rel=1e-4)
