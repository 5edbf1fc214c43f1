"""Batches of look-alikes: photos that the network finds similar become each other's negatives.

In a random batch nearly every negative is easy. Putting groups of similar photos into one batch gives the contrastive
loss the pairs that matter at a high threshold, at no cost but one pass over the photos per epoch.

Source: hard negatives by approximate neighbours, Xiong et al. (ANCE), arXiv 2007.00808; the tree is a random
projection tree, Dasgupta and Freund, STOC 2008.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def lookalike_order(rows: NDArray[np.float32], *, group_size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """A permutation of `rows` `(n, dim)` in which runs of about `group_size` are similar; runs come in random order.

    Each half of a set is split again along the line between two far members, at the median, until it fits a group.
    """
    groups = []
    pending = [np.arange(len(rows))]
    while pending:
        members = pending.pop()
        if len(members) <= group_size:
            groups.append(members)
            continue
        some = rows[members[generator.integers(len(members))]]
        far = rows[members[np.argmin(rows[members] @ some)]]
        order = np.argsort(rows[members] @ (far - some), kind="stable")
        half = len(members) // 2
        pending += [members[order[:half]], members[order[half:]]]
    return np.concatenate([groups[number] for number in generator.permutation(len(groups))])
