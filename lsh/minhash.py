"""The strongest activations of an embedding as a set, and its min-hashes.

An embedding is the set of its `num_activations` coordinates of largest magnitude, each with its sign: element
`2 * axis + is_negative` of `2 * dim`. A random permutation's min-hash is the element that comes first in it; two sets
have the same one with probability equal to their Jaccard overlap. The permutations are datasketch's, so our min-hash
is the element whose hash value datasketch's `MinHash` of the set holds. One family of `terms`; hashing costs a
twentieth of a rotation's, but a set knows less of an angle than a vertex does.

Source: Broder, "On the resemblance and containment of documents", 1997; datasketch, https://ekzhu.com/datasketch.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

SCHEME = "affine32"
MAX_SEED = (1 << 32) - 1


class StrongestActivations:
    """Min-hashes under one set of permutations; holds a rank for each element, so make one and keep it."""

    def __init__(self, *, dim: int, num_activations: int, num_permutations: int, seed: int) -> None:
        self._num_activations = num_activations
        self._ranks = element_ranks(dim=dim, num_permutations=num_permutations, seed=seed)

    def min_elements(self, rows: NDArray[np.float32]) -> NDArray[np.uint32]:
        """`(n, dim)` float32 -> `(n, num_permutations)` uint32: the element that each permutation puts first."""
        elements = np.empty((rows.shape[0], self._ranks.shape[1]), dtype=np.uint32)
        _min_elements(rows, self._num_activations, self._ranks, elements)
        return elements


def element_ranks(*, dim: int, num_permutations: int, seed: int) -> NDArray[np.uint32]:
    """Where each permutation puts each element, `(2 * dim, num_permutations)` uint32: datasketch's hash values."""
    # Loading datasketch takes a second, which the other families need not wait for.
    from datasketch import MinHash  # noqa: PLC0415

    ranks = np.empty((2 * dim, num_permutations), dtype=np.uint32)
    empty = MinHash(num_perm=num_permutations, seed=seed, scheme=SCHEME)
    for element in range(2 * dim):
        minhash = empty.copy()
        minhash.update(element_bytes(element))
        ranks[element] = minhash.hashvalues
    return ranks


def element_bytes(element: int) -> bytes:
    """What datasketch hashes for an element: four little-endian bytes."""
    return element.to_bytes(4, "little")


@njit(cache=True, nogil=True)
def _min_elements(
    rows: NDArray[np.float32], num_activations: int, ranks: NDArray[np.uint32], elements: NDArray[np.uint32]
) -> None:
    """Fills `elements`; of equal ranks the smaller element is first."""
    strongest = np.empty(num_activations, np.int64)
    magnitudes = np.empty(num_activations, np.float32)
    least = np.empty(ranks.shape[1], np.uint32)
    for row in range(rows.shape[0]):
        _strongest(rows[row], strongest, magnitudes)
        least[:] = ranks[strongest[0]]
        elements[row, :] = np.uint32(strongest[0])
        for i in range(1, num_activations):
            element, rank, first = np.uint32(strongest[i]), ranks[strongest[i]], elements[row]
            for k in range(least.size):
                is_less = rank[k] < least[k] or (rank[k] == least[k] and element < first[k])
                first[k] = element if is_less else first[k]
                least[k] = min(rank[k], least[k])


@njit(cache=True, nogil=True)
def _strongest(row: NDArray[np.float32], strongest: NDArray[np.int64], magnitudes: NDArray[np.float32]) -> None:
    """Fills `strongest` with the elements of largest magnitude, descending; of equal ones the smaller axis."""
    num_kept = 0
    for axis in range(row.size):
        magnitude = abs(row[axis])
        if num_kept == strongest.size and magnitude <= magnitudes[num_kept - 1]:
            continue
        position = min(num_kept, strongest.size - 1)
        while position > 0 and magnitudes[position - 1] < magnitude:
            magnitudes[position], strongest[position] = magnitudes[position - 1], strongest[position - 1]
            position -= 1
        magnitudes[position], strongest[position] = magnitude, 2 * axis + np.int64(row[axis] < 0)
        num_kept = min(num_kept + 1, strongest.size)
