"""Which edges decide whether a patch is segmented rightly: maximin edges, and how many voxel pairs hang on each.

Two voxels are joined by a threshold segmentation up to the affinity of the weakest edge of their best path, their
maximin edge. A single weak edge in a thin neck splits a neuron, a single strong edge in a membrane merges two; a loss
per voxel hardly sees either. Here every edge gets the share of voxel pairs for which it is the maximin edge, once for
pairs of one object (paths within the object) and once for pairs of different objects (objects whole). Weighting the
loss with both shares trains the connectivity itself.

References: S. Turaga et al., "Maximin affinity learning of image segmentation", arXiv:0911.5372; J. Funke et al.,
arXiv:1709.02974 (two constrained passes).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.errors import InvalidInput


def maximin_weights(
    affinities: NDArray[np.float32],
    targets: NDArray[np.float32],
    mask: NDArray[np.float32],
    objects: NDArray[np.integer[Any]],
) -> NDArray[np.float32]:
    """Return the share of voxel pairs that hang on each nearest-neighbour edge.

    Parameters
    ----------
    affinities, targets, mask
        (3, z, y, x): prediction in [0, 1]; truth 0 or 1; 0 where an edge is unknown. Channel c at p is the edge between
        p and p - 1 on axis c; values where p has no such neighbour are not read.
    objects
        (z, y, x) integers: the object of each voxel, 0 for voxels of none (membrane); target edges join voxels of one
        object.

    Returns
    -------
    float32 (3, z, y, x): over edges of target 1 the shares sum to 1, over edges of target 0 too, or to 0 where there is
    no such pair. Ties go to the edge of smaller index.

    Raises `InvalidInput` for other shapes.
    """
    if affinities.shape != (3, *objects.shape) or targets.shape != affinities.shape or mask.shape != affinities.shape:
        raise InvalidInput(
            f"maximin: expected affinities, targets and mask of shape {(3, *objects.shape)}, "
            f"got {affinities.shape}, {targets.shape}, {mask.shape}"
        )
    levels = np.clip(np.rint(affinities * 65535), 0, 65535).astype(np.uint16)
    joined = (targets > 0.5) & (mask > 0)
    apart = (targets <= 0.5) & (mask > 0)
    for axis in range(3):
        face = (axis, *(0 if i == axis else slice(None) for i in range(3)))
        joined[face] = apart[face] = False
    weights = np.zeros(affinities.size, np.float64)
    nodes = np.arange(objects.size, dtype=np.int64)
    sizes = (objects.reshape(-1) != 0).astype(np.int64)
    strides = np.array([objects[0].size, objects.shape[2], 1], np.int64)
    _join_objects(_descending(levels, joined), nodes, sizes, strides, weights)
    _, compact = np.unique(objects, return_inverse=True)
    background = int((objects == 0).any())
    names = compact.reshape(-1).astype(np.int64) + (1 - background)
    _separate_objects(_descending(levels, apart), nodes, names, strides, weights)
    shares = weights.reshape(affinities.shape)
    for chosen in (joined, apart):
        total = shares[chosen].sum()
        if total > 0:
            shares[chosen] /= total
    return shares.astype(np.float32)


def _descending(levels: NDArray[np.uint16], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Flat indices of the chosen edges, strongest first, then by index."""
    edges = np.flatnonzero(chosen)
    return edges[np.argsort(np.uint16(65535) - levels.reshape(-1)[edges], kind="stable")]


@njit(cache=True, nogil=True)
def _root(nodes: Any, node: int) -> int:
    while nodes[node] != node:
        nodes[node] = nodes[nodes[node]]
        node = nodes[node]
    return node


@njit(cache=True, nogil=True)
def _join_objects(edges: Any, nodes: Any, sizes: Any, strides: Any, weights: Any) -> None:
    """Kruskal within objects; an edge that joins parts of a and b voxels decides a * b pairs."""
    for edge in edges:
        axis, voxel = edge // nodes.size, edge % nodes.size
        a, b = _root(nodes, voxel), _root(nodes, voxel - strides[axis])
        if a != b:
            weights[edge] = float(sizes[a]) * float(sizes[b])
            if sizes[a] < sizes[b]:
                a, b = b, a
            nodes[b] = a
            sizes[a] += sizes[b]


@njit(cache=True, nogil=True)
def _separate_objects(edges: Any, nodes: Any, names: Any, strides: Any, weights: Any) -> None:
    """Kruskal between whole parts; an edge decides the pairs of different names among the two clusters it joins.

    Each root holds a linked list of entries (name, voxels, next); voxels of name 0 count for nothing.
    """
    count = nodes.size
    head = np.full(count, -1, np.int64)
    entries = np.empty((count, 3), np.int64)
    used = 0
    for voxel in range(count):
        if names[voxel] != 0:
            root = _root(nodes, voxel)
            if head[root] < 0:
                head[root] = used
                entries[used] = names[voxel], 0, -1
                used += 1
            entries[head[root], 1] += 1
    place = np.full(names.max() + 1, -1, np.int64)
    for edge in edges:
        axis, voxel = edge // count, edge % count
        a, b = _root(nodes, voxel), _root(nodes, voxel - strides[axis])
        if a == b:
            continue
        if head[a] < 0:
            a, b = b, a
        nodes[b] = a
        if head[b] >= 0:
            weights[edge] = _merge(entries, head[a], head[b], place)


@njit(cache=True, nogil=True)
def _merge(entries: Any, first: int, second: int, place: Any) -> float:
    """Append the list that begins at `second` to that at `first`; the number of pairs of different names between them.

    `place` is -1 for every name, before and after.
    """
    total_a, total_b, same, last = 0, 0, 0.0, first
    item = first
    while item >= 0:
        place[entries[item, 0]] = item
        total_a += entries[item, 1]
        last, item = item, entries[item, 2]
    item = second
    while item >= 0:
        following = entries[item, 2]
        total_b += entries[item, 1]
        held = place[entries[item, 0]]
        if held >= 0:
            same += float(entries[held, 1]) * float(entries[item, 1])
            entries[held, 1] += entries[item, 1]
        else:
            entries[last, 2], entries[item, 2] = item, -1
            last = item
        item = following
    item = first
    while item >= 0:
        place[entries[item, 0]] = -1
        item = entries[item, 2]
    return float(total_a) * float(total_b) - same
