"""The contrastive loss with an entropy regulariser that spreads embeddings over the sphere.

Sources: NT-Xent, Chen et al., arXiv 2002.05709, eq. 1; the KoLeo differential-entropy term,
Sablayrolles et al., arXiv 1806.03198, eq. 2; their sum for copy detection, SSCD, Pizzi et al., arXiv 2202.10261, eq. 5.
"""

from __future__ import annotations

from typing import Any

from embed.keras_backend import ops

Tensor = Any


def contrastive_loss(first: Tensor, second: Tensor, *, temperature: float, entropy_weight: float) -> Tensor:
    """Scalar loss of two views, row `i` of each from the same photo; both `(n, dim)` float32 unit rows.

    Every row is asked to find its other view among the `2n - 1` other rows of the batch.
    """
    n = ops.shape(first)[0]
    rows = ops.concatenate([first, second], axis=0)
    similarity = ops.matmul(rows, ops.transpose(rows))
    itself = ops.eye(2 * n)
    logits = similarity / temperature - 1e9 * itself
    positive = ops.sum(first * second, axis=1) / temperature
    info_nce = ops.mean(ops.logsumexp(logits, axis=1)) - ops.mean(positive)

    other_view = ops.roll(itself, n, axis=0)
    nearest = ops.max(similarity - 4.0 * (itself + other_view), axis=1)
    distance = ops.sqrt(ops.maximum(2.0 - 2.0 * nearest, 1e-6))
    entropy = ops.mean(ops.log(distance))
    return info_nce - entropy_weight * entropy
