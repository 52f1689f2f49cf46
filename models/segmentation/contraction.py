"""A region graph whose segments can be merged: the data structure under both linkages.

Nodes and edges are dense indices. All of an edge, its place in a queue included, is one row of 64 bytes, a cache line,
seen as eight 64-bit integers (`sums`) or as sixteen 32-bit ones (`links`): a merge touches edges all over the memory,
and waiting for them is most of its time.
Every node has a linked list of its half-edges; half-edge h belongs to edge h >> 1. To merge two nodes, the one with the
shorter list is walked and its list appended to the other's (small to large), so a half-edge moves O(log n) times.
Parallel edges meet through a hash table from a pair of nodes to its edge. Entries of absorbed nodes stay in the table,
since their pair is never looked up again, until it is rebuilt in place.

Where two edges become one, the edge with the higher key keeps its number: then a queue that holds that edge holds an
upper bound of the combined key too, because a combined edge is never better than the better of the two.
"""

# ruff: noqa: PLR0917 (compiled functions take their arrays by position)

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.segmentation.hashing import hash_id, table_bits
from models.segmentation.jit import Number, kernel
from models.segmentation.region_graph import RegionGraph
from models.segmentation.relabel import indices_of

GONE = -1
MAX_EDGES = 2**30 - 1
"""Edges per graph; half-edges are numbered with 32 bits."""

TOTAL, FACES, KEY, FINE = 0, 1, 2, 3  # columns of an edge in `sums`; the last two belong to the queue
FIRST, SECOND, LARGEST, _NEXT, RANK, CHILD, SIBLING = 8, 9, 10, 11, 13, 14, 15  # in `links`; FIRST: GONE if no more
_HEAD, _TAIL, _LENGTH, FREE_COLUMN = 0, 1, 2, 3  # columns of a node; the linkage uses those from FREE_COLUMN to 7
_PAIR, _EDGE = 0, 1  # columns of the table
_LINE = 64
Rows = NDArray[np.int64]
Links = NDArray[np.int32]


def contraction_of(graph: RegionGraph, ids: NDArray[np.uint64]) -> tuple[Rows, Links, Links, Rows]:
    """`sums`, `links`, node rows and the table of a graph whose nodes are the places of their ids in `ids` (sorted).

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
    nodes = np.zeros((ids.size, 8), np.int32)
    nodes[:, [_HEAD, _TAIL]] = GONE
    _link(links, nodes)
    return sums, links, nodes, np.empty((1 << table_bits(count), 2), np.int64)


@kernel
def _link(links: Links, nodes: Links) -> None:
    for edge in range(links.shape[0] - 1, -1, -1):
        for end in range(2):
            node = links[edge, FIRST + end]
            links[edge, _NEXT + end] = nodes[node, _HEAD]
            nodes[node, _HEAD] = 2 * edge + end
            if nodes[node, _TAIL] == GONE:
                nodes[node, _TAIL] = 2 * edge + end
            nodes[node, _LENGTH] += 1


@kernel
def fill_table(links: Links, table: Rows) -> Number:
    """Enter the edges that are left into an empty table; returns their number."""
    table[:, _EDGE] = GONE
    filled = 0
    for edge in range(links.shape[0]):
        if links[edge, FIRST] != GONE:
            pair = _pair(links[edge, FIRST], links[edge, SECOND])
            slot = _slot(table, pair, _shift(table))
            table[slot, _PAIR], table[slot, _EDGE] = pair, edge
            filled += 1
    return filled


@kernel
def _pair(a: Number, b: Number) -> Number:
    return (np.int64(min(a, b)) << 32) | np.int64(max(a, b))


@kernel
def _shift(table: Rows) -> Number:
    bits = 0
    while (1 << bits) < table.shape[0]:
        bits += 1
    return np.uint64(64 - bits)


@kernel
def _slot(table: Rows, pair: Number, shift: Number) -> Number:
    """Slot that holds the pair, or the empty one where it belongs."""
    slot = np.int64(hash_id(np.uint64(pair), shift))
    mask = table.shape[0] - 1
    while table[slot, _EDGE] != GONE and table[slot, _PAIR] != pair:
        slot = (slot + 1) & mask
    return slot


@kernel
def _ratio_above(total: Number, count: Number, other_total: Number, other_count: Number) -> Number:
    """Whether total / count > other_total / other_count, exactly, for int64 >= 0 with counts >= 1."""
    if count < 1 << 27 and other_count < 1 << 27:  # totals are at most 255 times the counts
        return total * other_count > other_total * count
    while True:
        whole, other_whole = total // count, other_total // other_count
        if whole != other_whole:
            return whole > other_whole
        total -= whole * count
        other_total -= other_whole * other_count
        if total == 0 or other_total == 0:
            return total > 0
        # both below 1: compare the inverses the other way round
        total, count, other_total, other_count = other_count, other_total, count, total


@kernel
def _higher(sums: Rows, links: Links, edge: Number, other: Number, by_mean: Number) -> Number:
    """Whether `edge` has a higher mean affinity (or largest affinity) than `other`."""
    if not by_mean:
        return links[edge, LARGEST] > links[other, LARGEST]
    return _ratio_above(sums[edge, TOTAL], sums[edge, FACES], sums[other, TOTAL], sums[other, FACES])


@kernel
def merge_nodes(
    sums: Rows, links: Links, nodes: Links, table: Rows, filled: Number, a: Number, b: Number, by_mean: Number
) -> tuple[Number, Number, Number]:
    """Merge two nodes; returns the one that stays, the one that is gone, and how full the table is at most.

    Parallel edges add sums and counts and keep the largest affinity, under the number of the one that is higher.
    """
    keep, gone = (a, b) if nodes[a, _LENGTH] >= nodes[b, _LENGTH] else (b, a)
    filled += nodes[gone, _LENGTH]
    if 4 * filled > 3 * table.shape[0]:
        filled = fill_table(links, table) + nodes[gone, _LENGTH]
    shift = _shift(table)
    half, first, last, moved = nodes[gone, _HEAD], GONE, GONE, 0
    while half != GONE:
        edge = half >> 1
        following = links[edge, _NEXT + (half & 1)]
        if links[edge, FIRST] != GONE and _move_edge(sums, links, table, shift, edge, gone, keep, by_mean):
            if last == GONE:
                first = half
            else:
                links[last >> 1, _NEXT + (last & 1)] = half
            last = half
            moved += 1
        half = following
    if last != GONE:
        links[last >> 1, _NEXT + (last & 1)] = GONE
        tail = nodes[keep, _TAIL]
        if tail == GONE:
            nodes[keep, _HEAD] = first
        else:
            links[tail >> 1, _NEXT + (tail & 1)] = first
        nodes[keep, _TAIL] = last
        nodes[keep, _LENGTH] += moved
    nodes[gone, _HEAD] = nodes[gone, _TAIL] = GONE
    nodes[gone, _LENGTH] = 0
    return keep, gone, filled


@kernel
def _move_edge(
    sums: Rows, links: Links, table: Rows, shift: Number, edge: Number, gone: Number, keep: Number, by_mean: Number
) -> Number:
    """Make an edge of `gone` one of `keep`; returns whether it lives on under its number."""
    other = links[edge, FIRST] ^ links[edge, SECOND] ^ gone
    if other == keep:
        links[edge, FIRST] = GONE
        return False
    pair = _pair(keep, other)
    slot = _slot(table, pair, shift)
    parallel = table[slot, _EDGE]
    stays = edge
    if parallel != GONE:
        stays, ends = (edge, parallel) if _higher(sums, links, edge, parallel, by_mean) else (parallel, edge)
        sums[stays, TOTAL] += sums[ends, TOTAL]
        sums[stays, FACES] += sums[ends, FACES]
        links[stays, LARGEST] = max(links[stays, LARGEST], links[ends, LARGEST])
        links[ends, FIRST] = GONE
    if stays == edge:
        links[edge, FIRST], links[edge, SECOND] = keep, other
    table[slot, _PAIR], table[slot, _EDGE] = pair, stays
    return stays == edge
