"""Union-find over arbitrary 64-bit ids: closes the watershed's seams, and turns merges into segments.

The answer (id, root) is a forest of at most one pair per id with the same components as the pairs that went in, so
answers of parts may go in again as pairs: no process has to hold all pairs of a volume.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidVolume
from models.segmentation.jit import Number, kernel
from models.segmentation.relabel import distinct, indices_of

Ids = NDArray[np.uint64]


def union_find(first: Ids, second: Ids) -> tuple[Ids, Ids]:
    """Components of the graph whose edges are the pairs (first[i], second[i]).

    Both uint64 of one length; pairs may repeat, and an id may be paired with itself. Returns the ids that occur,
    sorted, and for each its root, the smallest id of its component. Raises `InvalidVolume` for other dtypes or shapes.
    """
    if not (first.dtype == second.dtype == np.uint64 and first.ndim == 1 and first.shape == second.shape):
        raise InvalidVolume(
            f"pairs: expected two uint64 arrays of one length, got {first.dtype} of {first.shape} and "
            f"{second.dtype} of {second.shape}"
        )
    ids = distinct(np.concatenate([first, second]))
    roots = _roots(indices_of(first, ids), indices_of(second, ids), ids.size)
    return ids, ids[roots]


@kernel
def _roots(first: NDArray[np.int64], second: NDArray[np.int64], count: Number) -> NDArray[np.int64]:
    parents = np.arange(count)
    for i in range(first.size):
        a, b = find(parents, first[i]), find(parents, second[i])
        if a < b:
            parents[b] = a
        else:
            parents[a] = b
    for i in range(count):
        parents[i] = parents[parents[i]]
    return parents


@kernel
def find(parents: NDArray[np.int64], node: Number) -> Number:
    """The root of a node; compiled, halves the path on its way."""
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node
