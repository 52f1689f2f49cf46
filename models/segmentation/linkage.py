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
    FINE,
    FIRST,
    FREE_COLUMN,
    GONE,
    KEY,
    LARGEST,
    MAX_EDGES,
    RANK,
    SECOND,
    TOTAL,
    contraction_of,
    fill_table,
    merge_nodes,
)
from models.segmentation.edge_queue import (
    NODE_ENTRY,
    NODE_FINE,
    NODE_KEY,
    NODE_TIE,
    NONE,
    drop_top,
    lower_top,
    meld,
    order_nodes,
    push_node,
    put_in,
    take_first,
    tie_of,
)
from models.segmentation.jit import Number, kernel
from models.segmentation.merge_tree import MergeTree
from models.segmentation.ratios import MAX_FACES, ratio_key
from models.segmentation.region_graph import RegionGraph
from models.segmentation.relabel import indices_of
from models.segmentation.segments import Segments

_RANK, _LABEL, _TOP, _STAMP, _STATE = range(FREE_COLUMN, FREE_COLUMN + 5)  # columns of a node
_FREE, _FROZEN, _ABSORBED = 0, 1, 2  # its states
Links = NDArray[np.int32]
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
    sums, links, nodes, table = contraction_of(graph, segments.ids)
    comparison, nodes[:, _RANK] = np.unique(segments.comparison_ids, return_inverse=True)
    nodes[:, _LABEL] = np.arange(len(segments))
    nodes[:, _STATE] = np.where(segments.frozen, _FROZEN, _FREE)
    sizes = segments.sizes.copy()
    pairs, scores = _merge_all(sums, links, nodes, sizes, table, limits)
    ids = segments.ids
    return Linkage(
        MergeTree(ids[pairs[:, 0]], ids[pairs[:, 1]], scores[:, 0].copy(), scores[:, 1].copy()),
        _segments_left(ids, comparison, nodes, sizes),
        _edges_left(ids, sums, links, nodes),
    )


def _segments_left(ids: NDArray[np.uint64], comparison: NDArray[np.uint64], nodes: Links, sizes: Rows) -> Segments:
    left = np.flatnonzero(nodes[:, _STATE] != _ABSORBED)
    left = left[np.argsort(nodes[left, _LABEL])]
    frozen = nodes[left, _STATE] == _FROZEN
    return Segments(ids[nodes[left, _LABEL]], sizes[left], comparison[nodes[left, _RANK]], frozen)


def _edges_left(ids: NDArray[np.uint64], sums: Rows, links: Links, nodes: Links) -> RegionGraph:
    left = np.flatnonzero(links[:, FIRST] != GONE)
    u, v = (ids[nodes[links[left, end], _LABEL]] for end in (FIRST, SECOND))
    return RegionGraph.aggregated(u, v, sums[left, TOTAL], sums[left, FACES], links[left, LARGEST].astype(np.uint8))


@kernel
def _key(sums: Rows, links: Links, edge: Number, limits: _Limits) -> tuple[Number, Number]:
    if limits.by_mean:
        return ratio_key(sums[edge, TOTAL], sums[edge, FACES])
    return np.int64(links[edge, LARGEST]), 0


@kernel
def _put_edge(sums: Rows, links: Links, nodes: Links, edge: Number, key: Number, fine: Number) -> Number:
    """Put an edge into the queue of its node of smaller rank; returns that node."""
    owner, other = links[edge, FIRST], links[edge, SECOND]
    if nodes[other, _RANK] < nodes[owner, _RANK]:
        owner, other = other, owner
    nodes[owner, _TOP] = put_in(sums, links, nodes[owner, _TOP], edge, key, fine, nodes[other, _RANK])
    return owner


@kernel
def _row(sums: Rows, links: Links, nodes: Links, node: Number) -> tuple[Number, Number, Number, Number]:
    """Row of a node in the queue of nodes, from what its first edge was put in under."""
    top = nodes[node, _TOP]
    tie = tie_of(nodes[node, _RANK], links[top, RANK])
    return sums[top, KEY], sums[top, FINE], tie, (np.int64(node) << 32) | np.int64(nodes[node, _STAMP])


@kernel
def _fill(sums: Rows, links: Links, nodes: Links, limits: _Limits) -> tuple[Rows, Number]:
    """Queue the edges that may be merged: at the limit or above, and not between two frozen segments."""
    nodes[:, _TOP] = NONE
    for edge in range(links.shape[0]):
        key, fine = _key(sums, links, edge, limits)
        first, second = nodes[links[edge, FIRST], _STATE], nodes[links[edge, SECOND], _STATE]
        if min(first, second) == _FREE and (key, fine) >= (limits.key, limits.fine):
            _put_edge(sums, links, nodes, edge, key, fine)
    rows = np.empty((nodes.shape[0] + 1, 4), np.int64)
    size = 0
    for node in range(nodes.shape[0]):
        if nodes[node, _TOP] != NONE:
            key, fine, tie, entry = _row(sums, links, nodes, node)
            rows[size, NODE_KEY], rows[size, NODE_FINE] = key, fine
            rows[size, NODE_TIE], rows[size, NODE_ENTRY] = tie, entry
            size += 1
    order_nodes(rows, size)
    return rows, size


@kernel
def _lower_node(sums: Rows, links: Links, nodes: Links, rows: Rows, size: Number, node: Number) -> Number:
    """Let the top row stand for `node` with its present first edge; returns the size of the queue of nodes."""
    if nodes[node, _TOP] == NONE:
        return drop_top(rows, size)
    key, fine, tie, entry = _row(sums, links, nodes, node)
    lower_top(rows, size, key, fine, tie, entry)
    return size


@kernel
def _merge_all(sums: Rows, links: Links, nodes: Links, sizes: Rows, table: Rows, limits: _Limits) -> tuple[Links, Rows]:
    """Merge until nothing is left; returns rows (a, b) and (affinity sum, face count) of the merges."""
    rows, size = _fill(sums, links, nodes, limits)
    filled = fill_table(links, table)
    pairs, scores = np.empty((nodes.shape[0], 2), np.int32), np.empty((nodes.shape[0], 2), np.int64)
    count = 0
    while size > 0:
        node = rows[0, NODE_ENTRY] >> 32
        if nodes[node, _STATE] == _ABSORBED or nodes[node, _STAMP] != rows[0, NODE_ENTRY] & 0xFFFFFFFF:
            size = drop_top(rows, size)
            continue
        edge = nodes[node, _TOP]
        first, second = links[edge, FIRST], links[edge, SECOND]
        if first == GONE:
            nodes[node, _TOP] = take_first(sums, links, edge)
            size = _lower_node(sums, links, nodes, rows, size, node)
            continue
        key, fine = _key(sums, links, edge, limits)
        rank = nodes[first ^ second ^ node, _RANK]
        outdated = key != sums[edge, KEY] or fine != sums[edge, FINE] or rank != links[edge, RANK]
        nodes[node, _TOP] = take_first(sums, links, edge)
        if outdated and (key, fine) >= (limits.key, limits.fine):
            owner = _put_edge(sums, links, nodes, edge, key, fine)
            size = _lower_node(sums, links, nodes, rows, size, node)
            if owner != node and nodes[owner, _TOP] == edge:
                nodes[owner, _STAMP] += 1
                key, fine, tie, entry = _row(sums, links, nodes, owner)
                rows = push_node(rows, size, key, fine, tie, entry)
                size += 1
            continue
        if outdated or min(sizes[first], sizes[second]) >= limits.size:
            size = _lower_node(sums, links, nodes, rows, size, node)
            continue
        if max(nodes[first, _STATE], nodes[second, _STATE]) == _FROZEN:
            nodes[first, _STATE] = nodes[second, _STATE] = _FROZEN
            size = _lower_node(sums, links, nodes, rows, size, node)
            continue
        a, b = nodes[first, _LABEL], nodes[second, _LABEL]
        pairs[count, 0], pairs[count, 1] = min(a, b), max(a, b)
        scores[count, 0], scores[count, 1] = sums[edge, TOTAL], sums[edge, FACES]
        count += 1
        keep, gone, filled = merge_nodes(sums, links, nodes, table, filled, first, second, limits.by_mean)
        sizes[keep] += sizes[gone]
        nodes[keep, _TOP] = meld(sums, links, nodes[keep, _TOP], nodes[gone, _TOP])
        _absorb(nodes, keep, gone)
        size = _lower_node(sums, links, nodes, rows, size, keep)
    return pairs[:count], scores[:count]


@kernel
def _absorb(nodes: Links, keep: Number, gone: Number) -> None:
    nodes[keep, _RANK] = max(nodes[keep, _RANK], nodes[gone, _RANK])
    nodes[keep, _LABEL] = min(nodes[keep, _LABEL], nodes[gone, _LABEL])
    nodes[keep, _STAMP] += 1
    nodes[gone, _STATE] = _ABSORBED
