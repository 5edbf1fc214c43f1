"""The contrastive loss, with an entropy regulariser that spreads embeddings over the sphere, and the threshold loss.

The contrastive loss asks that the other view come first; a user's one threshold asks more: that the cosines of all
true pairs lie above those of all false ones, whatever photos they are of. That is what the threshold loss asks.

Sources: NT-Xent, Chen et al., arXiv 2002.05709, eq. 1; the KoLeo differential-entropy term,
Sablayrolles et al., arXiv 1806.03198, eq. 2; their sum for copy detection, SSCD, Pizzi et al., arXiv 2202.10261, eq. 5;
the pairwise logistic loss, SigLIP, Zhai et al., arXiv 2303.15343, eq. 1.
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


def threshold_loss(first: Tensor, second: Tensor, *, threshold: float, width: float, false_weight: float) -> Tensor:
    """Scalar logistic loss of all pairs of rows of two views, as in `contrastive_loss`.

    A true pair below `threshold`, or a false one above it, costs its distance from it in units of `width`; cosines
    farther on the wrong side are pulled at with nearly full force. False pairs are summed for each row, not averaged,
    and weigh `false_weight`: a few above the threshold are what spoils the precision.
    """
    n = ops.shape(first)[0]
    rows = ops.concatenate([first, second], axis=0)
    similarity = ops.matmul(rows, ops.transpose(rows))
    itself = ops.eye(2 * n)
    is_false = 1.0 - itself - ops.roll(itself, n, axis=0)
    above = ops.sum(is_false * ops.softplus((similarity - threshold) / width), axis=1)
    below = ops.softplus((threshold - ops.sum(first * second, axis=1)) / width)
    return ops.mean(below) + false_weight * ops.mean(above)


def edited_threshold_loss(
    edited: Tensor, plain: Tensor, *, threshold: float, width: float, false_weight: float
) -> Tensor:
    """Scalar logistic loss of `(n, dim)` edited unit rows against plain ones, row `i` of each from the same photo.

    As `threshold_loss`, but only edited rows are compared with plain ones, and false pairs weigh `false_weight` times
    as much as true ones: summed over a batch of thousands they would push everything apart.
    """
    similarity = ops.matmul(edited, ops.transpose(plain))
    is_false = 1.0 - ops.eye(ops.shape(edited)[0])
    above = ops.sum(is_false * ops.softplus((similarity - threshold) / width), axis=1)
    below = ops.softplus((threshold - ops.sum(edited * plain, axis=1)) / width)
    return ops.mean(below) + false_weight * ops.mean(above)
