"""Merging by a global queue, and what of it may be done before the whole graph is known.

Both linkages (mean affinity, and small basins by their largest affinity) are reducible: a merge never improves the best
remaining edge of anyone. So two segments that are each other's best partner end up merged by the global queue whatever
happens elsewhere, and a part of the graph may merge them at once, if it knows all edges of both. A segment with
unknown edges is frozen; when the best edge left touches it, the other end has to wait too, and becomes frozen itself.
Merging elsewhere can only make a frozen segment's edges worse, so whoever preferred another partner was right to.

Ties follow the same law: a segment is compared by the largest id in it, the edge with the smaller pair (smaller
comparison id, larger comparison id) wins, and since the comparison id only grows, so does the pair. (Deferring
segments at chunk faces is the idea of Lee et al., arXiv:2106.10795.)
"""

# ruff: noqa: PLR0917 (compiled functions take their arrays by position)

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput, InvalidVolume
from models.segmentation.contraction import (
    FACES,
    FIRST,
    FREE_COLUMN,
    GONE,
    LARGEST,
    MAX_EDGES,
    SECOND,
    TOTAL,
    contraction_of,
    fill_table,
    merge_nodes,
)
from models.segmentation.edge_queue import (
    ENTRY,
    FINE,
    KEY,
    NONE,
    TIE,
    drop_top,
    lower_top,
    meld,
    order_nodes,
    push_node,
    put_in,
    take_first,
    tie_of,
)
from models.segmentation.edge_queue import RANK as QUEUED_RANK
from models.segmentation.jit import Number, kernel
from models.segmentation.merge_tree import MergeTree
from models.segmentation.ratios import MAX_FACES, ratio_key
from models.segmentation.region_graph import RegionGraph
from models.segmentation.relabel import indices_of
from models.segmentation.segments import Segments

_RANK, _LABEL, _SIZE, _FROZEN, _ALIVE, _TOP, _STAMP = range(FREE_COLUMN, FREE_COLUMN + 7)  # columns of a node
Rows = NDArray[np.int64]
_ALWAYS = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Linkage:
    """What a linkage did and what it left.

    `merges`: in merge order. `segments`: those that remain; frozen are the ones that were, and the ones that wait for
    them. `graph`: all edges that remain between them.
    """

    merges: MergeTree
    segments: Segments
    graph: RegionGraph

    @property
    def waiting(self) -> RegionGraph:
        """Edges between two frozen segments. No other edge can ever be merged by this linkage at these limits."""
        frozen = self.segments.frozen
        ends = (frozen[indices_of(ids, self.segments.ids)] for ids in (self.graph.u, self.graph.v))
        return self.graph.selected(np.logical_and(*ends))


class _Limits(NamedTuple):
    by_mean: bool
    key: int
    fine: int
    size: int


def link_by_mean(graph: RegionGraph, segments: Segments, ratio: tuple[int, int]) -> Linkage:
    """Merge by mean affinity down to the ratio (0 to 255 scale)."""
    key, fine = ratio_key(*ratio)
    return _link(graph, segments, _Limits(True, key, fine, _ALWAYS))


def link_small(graph: RegionGraph, segments: Segments, min_affinity: int, size_threshold: int) -> Linkage:
    """Merge by largest affinity down to `min_affinity` while one of the two is smaller than `size_threshold`."""
    return _link(graph, segments, _Limits(False, min_affinity, 0, size_threshold))


def _link(graph: RegionGraph, segments: Segments, limits: _Limits) -> Linkage:
    if len(graph) > MAX_EDGES or len(segments) > MAX_EDGES:
        raise InvalidInput(f"region graph: expected at most {MAX_EDGES} edges and segments, got {len(graph)}")
    if int(graph.face_count.sum()) > MAX_FACES:
        raise InvalidVolume(f"region graph: expected at most {MAX_FACES} faces, got {int(graph.face_count.sum())}")
    first, second = indices_of(graph.u, segments.ids), indices_of(graph.v, segments.ids)
    columns = (first, second, graph.affinity_sum, graph.face_count, graph.affinity_max.astype(np.int64))
    edges, nodes, table = contraction_of(columns, len(segments))
    comparison, nodes[:, _RANK] = np.unique(segments.comparison_ids, return_inverse=True)
    nodes[:, _LABEL] = np.arange(len(segments))
    nodes[:, _SIZE], nodes[:, _FROZEN] = segments.sizes, segments.frozen
    nodes[:, _ALIVE] = True
    merges = _merge_all(edges, nodes, table, limits)
    return Linkage(
        MergeTree(segments.ids[merges[:, 0]], segments.ids[merges[:, 1]], merges[:, 2].copy(), merges[:, 3].copy()),
        _segments_left(segments.ids, comparison, nodes),
        _edges_left(segments.ids, edges, nodes),
    )


def _segments_left(ids: NDArray[np.uint64], comparison: NDArray[np.uint64], nodes: Rows) -> Segments:
    alive = nodes[nodes[:, _ALIVE] == 1]
    alive = alive[np.argsort(alive[:, _LABEL])]
    return Segments(
        ids[alive[:, _LABEL]], alive[:, _SIZE].copy(), comparison[alive[:, _RANK]], alive[:, _FROZEN].astype(np.bool_)
    )


def _edges_left(ids: NDArray[np.uint64], edges: Rows, nodes: Rows) -> RegionGraph:
    left = edges[edges[:, FIRST] != GONE]
    u, v = (ids[nodes[left[:, end], _LABEL]] for end in (FIRST, SECOND))
    return RegionGraph.aggregated(u, v, left[:, TOTAL], left[:, FACES], left[:, LARGEST].astype(np.uint8))


@kernel
def _key(edges: Rows, edge: Number, limits: _Limits) -> tuple[Number, Number]:
    if limits.by_mean:
        return ratio_key(edges[edge, TOTAL], edges[edge, FACES])
    return edges[edge, LARGEST], 0


@kernel
def _put_edge(edges: Rows, nodes: Rows, waiting: Rows, edge: Number, key: Number, fine: Number) -> Number:
    """Put an edge into the queue of its node of smaller rank; returns that node."""
    owner, other = edges[edge, FIRST], edges[edge, SECOND]
    if nodes[other, _RANK] < nodes[owner, _RANK]:
        owner, other = other, owner
    nodes[owner, _TOP] = put_in(waiting, nodes[owner, _TOP], edge, key, fine, nodes[other, _RANK])
    return owner


@kernel
def _row(nodes: Rows, waiting: Rows, node: Number) -> tuple[Number, Number, Number, Number]:
    """Row of a node in the queue of nodes, from what its first edge was put in under."""
    top = nodes[node, _TOP]
    tie = tie_of(nodes[node, _RANK], waiting[top, QUEUED_RANK])
    return waiting[top, KEY], waiting[top, FINE], tie, (node << 32) | nodes[node, _STAMP]


@kernel
def _fill(edges: Rows, nodes: Rows, limits: _Limits) -> tuple[Rows, Rows, Number]:
    """Queue the edges that may be merged: at the limit or above, and not between two frozen segments."""
    waiting = np.empty((edges.shape[0], 5), np.int64)
    nodes[:, _TOP] = NONE
    for edge in range(edges.shape[0]):
        key, fine = _key(edges, edge, limits)
        waits = nodes[edges[edge, FIRST], _FROZEN] and nodes[edges[edge, SECOND], _FROZEN]
        if not waits and (key, fine) >= (limits.key, limits.fine):
            _put_edge(edges, nodes, waiting, edge, key, fine)
    rows = np.empty((nodes.shape[0] + 1, 4), np.int64)
    size = 0
    for node in range(nodes.shape[0]):
        if nodes[node, _TOP] != NONE:
            rows[size, KEY], rows[size, FINE], rows[size, TIE], rows[size, ENTRY] = _row(nodes, waiting, node)
            size += 1
    order_nodes(rows, size)
    return waiting, rows, size


@kernel
def _lower_node(nodes: Rows, waiting: Rows, rows: Rows, size: Number, node: Number) -> Number:
    """Let the top row stand for `node` with its present first edge; returns the size of the queue of nodes."""
    if nodes[node, _TOP] == NONE:
        return drop_top(rows, size)
    key, fine, tie, entry = _row(nodes, waiting, node)
    lower_top(rows, size, key, fine, tie, entry)
    return size


@kernel
def _merge_all(edges: Rows, nodes: Rows, table: Rows, limits: _Limits) -> Rows:
    """Merge until nothing is left; returns a row (a, b, affinity sum, face count) for each merge."""
    waiting, rows, size = _fill(edges, nodes, limits)
    filled = fill_table(edges, table)
    merges = np.empty((nodes.shape[0], 4), np.int64)
    count = 0
    while size > 0:
        node = rows[0, ENTRY] >> 32
        if not nodes[node, _ALIVE] or nodes[node, _STAMP] != rows[0, ENTRY] & 0xFFFFFFFF:
            size = drop_top(rows, size)
            continue
        edge = nodes[node, _TOP]
        nodes[node, _TOP] = take_first(waiting, edge)
        if edges[edge, FIRST] == GONE:
            size = _lower_node(nodes, waiting, rows, size, node)
            continue
        first, second = edges[edge, FIRST], edges[edge, SECOND]
        key, fine = _key(edges, edge, limits)
        rank = nodes[first ^ second ^ node, _RANK]
        outdated = key != waiting[edge, KEY] or fine != waiting[edge, FINE] or rank != waiting[edge, QUEUED_RANK]
        if outdated and (key, fine) >= (limits.key, limits.fine):
            owner = _put_edge(edges, nodes, waiting, edge, key, fine)
            size = _lower_node(nodes, waiting, rows, size, node)
            if owner != node and nodes[owner, _TOP] == edge:
                nodes[owner, _STAMP] += 1
                key, fine, tie, entry = _row(nodes, waiting, owner)
                rows = push_node(rows, size, key, fine, tie, entry)
                size += 1
            continue
        if outdated or min(nodes[first, _SIZE], nodes[second, _SIZE]) >= limits.size:
            size = _lower_node(nodes, waiting, rows, size, node)
            continue
        if nodes[first, _FROZEN] or nodes[second, _FROZEN]:
            nodes[first, _FROZEN] = nodes[second, _FROZEN] = True
            size = _lower_node(nodes, waiting, rows, size, node)
            continue
        a, b = nodes[first, _LABEL], nodes[second, _LABEL]
        merges[count, 0], merges[count, 1] = min(a, b), max(a, b)
        merges[count, 2], merges[count, 3] = edges[edge, TOTAL], edges[edge, FACES]
        count += 1
        keep, gone, filled = merge_nodes(edges, nodes, table, filled, first, second, limits.by_mean)
        _absorb(nodes, waiting, keep, gone)
        size = _lower_node(nodes, waiting, rows, size, keep)
    return merges[:count]


@kernel
def _absorb(nodes: Rows, waiting: Rows, keep: Number, gone: Number) -> None:
    nodes[keep, _RANK] = max(nodes[keep, _RANK], nodes[gone, _RANK])
    nodes[keep, _LABEL] = min(nodes[keep, _LABEL], nodes[gone, _LABEL])
    nodes[keep, _SIZE] += nodes[gone, _SIZE]
    nodes[keep, _TOP] = meld(waiting, nodes[keep, _TOP], nodes[gone, _TOP])
    nodes[keep, _STAMP] += 1
    nodes[gone, _ALIVE] = False
