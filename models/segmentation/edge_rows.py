"""Where everything about the edges and segments of a linkage lies in memory.

An edge is one row of 64 bytes, a cache line, seen as eight 64-bit integers (`sums`) or as sixteen 32-bit ones
(`links`): a merge touches edges all over the memory, and waiting for them is most of its time. Half-edge h is edge
h >> 1 as its end h & 1 sees it. What only a hub's queue needs lies elsewhere, in `keys`, a row per half-edge.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.segmentation.region_graph import RegionGraph
from models.segmentation.relabel import indices_of

Rows = NDArray[np.int64]
Links = NDArray[np.int32]

GONE = -1
NONE = -1
MAX_EDGES = 2**30 - 1
"""Edges per graph; half-edges are numbered with 32 bits."""

TOTAL, FACES = 0, 1  # columns of an edge in `sums`
FIRST, SECOND, LARGEST = 4, 5, 6  # columns of an edge in `links`; FIRST is GONE when it is no more
NEXT, CHILD, SIBLING, QUEUED_RANK = 7, 9, 11, 13  # columns of half-edge 0 in `links`; those of half-edge 1 follow each
KEY, FINE = 0, 1  # columns of a half-edge in `keys`
HEAD, TAIL, LENGTH, RANK, LABEL, TOP, STATE, HUB = range(8)  # columns of a node
FREE, FROZEN, ABSORBED = 0, 1, 2  # states of a node
_LINE = 64


class Limits(NamedTuple):
    """What may be merged: a mean of at least numerator / denominator. Nodes with more than `hub_edges` are hubs."""

    numerator: int
    denominator: int
    hub_edges: int


def edge_rows(graph: RegionGraph, ids: NDArray[np.uint64]) -> tuple[Rows, Links]:
    """`sums` and `links` of a graph whose nodes are the places of their ids in `ids` (sorted), without lists.

    Raises `InvalidInput` for an id of the graph that is not among `ids`.
    """
    count = len(graph)
    memory = np.empty((count + 1) * _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    lines = memory[start : start + count * _LINE]
    sums, links = lines.view(np.int64).reshape(count, 8), lines.view(np.int32).reshape(count, 16)
    sums[:, TOTAL], sums[:, FACES] = graph.affinity_sum, graph.face_count
    links[:, FIRST], links[:, SECOND] = indices_of(graph.u, ids), indices_of(graph.v, ids)
    links[:, LARGEST] = graph.affinity_max
    return sums, links
