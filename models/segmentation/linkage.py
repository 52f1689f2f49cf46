"""Merging by a global queue, and what of it may be done before the whole graph is known.

Linkage by mean affinity is reducible: a merge never improves the best remaining edge of anyone. So two segments that
are each other's best partner end up merged by the global queue whatever happens elsewhere, and a part of the graph may
merge them at once, if it knows all edges of both. A segment with unknown edges is frozen; when the best edge left
touches it, the other end has to wait too, and becomes frozen itself. Merging elsewhere can only make a frozen segment's
edges worse, so whoever preferred another partner was right to.

That also allows any order of work: what runs here is not a queue but a nearest-neighbour chain, and its merges are
sorted into the queue's order at the end.

Ties follow the same law: a segment is compared by the largest id in it, the edge with the smaller pair (smaller
comparison id, larger comparison id) wins, and since the comparison id only grows, so does the pair. (Deferring
segments at chunk faces is the idea of Lee et al., arXiv:2106.10795.)
"""

# ruff: noqa: PLR0917 (compiled functions take their arrays by position)

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput, InvalidVolume
from models.segmentation.contraction import (
    empty_table,
    key_of,
    link_edges,
    make_hub,
    move_edges,
    order_to_limit,
    queue_half,
)
from models.segmentation.edge_rows import (
    ABSORBED,
    FACES,
    FINE,
    FIRST,
    FREE,
    FROZEN,
    GONE,
    HEAD,
    HUB,
    KEY,
    LABEL,
    LARGEST,
    LENGTH,
    MAX_EDGES,
    NEXT,
    NONE,
    QUEUED_RANK,
    RANK,
    SECOND,
    STATE,
    TAIL,
    TOP,
    TOTAL,
    Limits,
    Links,
    Rows,
    edge_rows,
)
from models.segmentation.hub_queue import meld, take_first
from models.segmentation.jit import Number, kernel
from models.segmentation.merge_tree import MergeTree
from models.segmentation.ratios import MAX_FACES, ratio_order
from models.segmentation.region_graph import RegionGraph
from models.segmentation.relabel import distinct, indices_of
from models.segmentation.segments import Segments

HUB_EDGES = 32
"""A node with more edges has a queue. Measured on 0.3 to 1 M edges: 16 and 48 are as good, 96 a fifth slower."""

_A, _B, _SUM, _COUNT, _KEY, _FINE, _TIE = range(7)  # columns of a merge


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


def link_by_mean(graph: RegionGraph, segments: Segments, ratio: tuple[int, int]) -> Linkage:
    """Merge by mean affinity down to the ratio (0 to 255 scale)."""
    limits = Limits(*ratio, HUB_EDGES)
    if len(graph) > MAX_EDGES or len(segments) > MAX_EDGES:
        raise InvalidInput(f"region graph: expected at most {MAX_EDGES} edges and segments, got {len(graph)}")
    if int(graph.face_count.sum()) > MAX_FACES:
        raise InvalidVolume(f"region graph: expected at most {MAX_FACES} faces, got {int(graph.face_count.sum())}")
    sums, links = edge_rows(graph, segments.ids)
    nodes = np.zeros((len(segments), 8), np.int32)
    comparison = distinct(segments.comparison_ids)
    nodes[:, RANK] = indices_of(segments.comparison_ids, comparison)
    nodes[:, LABEL] = np.arange(len(segments))
    nodes[:, STATE] = np.where(segments.frozen, FROZEN, FREE)
    merges = _merge_all(sums, links, nodes, limits)
    merges = merges[np.lexsort((merges[:, _TIE], -merges[:, _FINE], -merges[:, _KEY]))]
    ids = segments.ids
    return Linkage(
        MergeTree(ids[merges[:, _A]], ids[merges[:, _B]], merges[:, _SUM].copy(), merges[:, _COUNT].copy()),
        _segments_left(ids, comparison, nodes),
        _edges_left(ids, sums, links, nodes),
    )


def _segments_left(ids: NDArray[np.uint64], comparison: NDArray[np.uint64], nodes: Links) -> Segments:
    left = np.flatnonzero(nodes[:, STATE] != ABSORBED)
    left = left[np.argsort(nodes[left, LABEL])]
    frozen = nodes[left, STATE] == FROZEN
    return Segments(ids[nodes[left, LABEL]], comparison[nodes[left, RANK]], frozen)


def _edges_left(ids: NDArray[np.uint64], sums: Rows, links: Links, nodes: Links) -> RegionGraph:
    left = np.flatnonzero(links[:, FIRST] != GONE)
    u, v = (ids[nodes[links[left, end], LABEL]] for end in (FIRST, SECOND))
    return RegionGraph.aggregated(u, v, sums[left, TOTAL], sums[left, FACES], links[left, LARGEST].astype(np.uint8))


@kernel
def _best(sums: Rows, links: Links, keys: Rows, nodes: Links, node: Number, limits: Limits) -> Number:
    """The edge that a node would be merged along, or NONE."""
    if nodes[node, HUB]:
        return _best_of_hub(sums, links, keys, nodes, node, limits)
    best, best_other, before = NONE, NONE, NONE
    half = nodes[node, HEAD]
    while half != NONE:
        edge = half >> 1
        following = links[edge, NEXT + (half & 1)]
        if links[edge, FIRST] == GONE:
            _unlink(links, nodes, node, before, half)
        else:
            other = links[edge, FIRST] ^ links[edge, SECOND] ^ node
            if _beats(sums, links, nodes, edge, other, best, best_other, limits):
                best, best_other = edge, other
            before = half
        half = following
    return best


@kernel
def _unlink(links: Links, nodes: Links, node: Number, before: Number, half: Number) -> None:
    """Take a half-edge out of its node's list; `before` is the one before it."""
    following = links[half >> 1, NEXT + (half & 1)]
    if before == NONE:
        nodes[node, HEAD] = following
    else:
        links[before >> 1, NEXT + (before & 1)] = following
    if following == NONE:
        nodes[node, TAIL] = before
    nodes[node, LENGTH] -= 1


@kernel
def _beats(
    sums: Rows,
    links: Links,
    nodes: Links,
    edge: Number,
    other: Number,
    best: Number,
    best_other: Number,
    limits: Limits,
) -> Number:
    """Whether an edge of a node comes before the best one so far (NONE: before the limit, which counts as reached)."""
    if best == NONE:
        return order_to_limit(sums, edge, limits) >= 0
    order = ratio_order(sums[edge, TOTAL], sums[edge, FACES], sums[best, TOTAL], sums[best, FACES])
    return order > 0 or (order == 0 and nodes[other, RANK] < nodes[best_other, RANK])


@kernel
def _best_of_hub(sums: Rows, links: Links, keys: Rows, nodes: Links, node: Number, limits: Limits) -> Number:
    while nodes[node, TOP] != NONE:
        half = nodes[node, TOP]
        edge = half >> 1
        if links[edge, FIRST] == GONE:
            nodes[node, TOP] = take_first(links, keys, half)
            continue
        other = links[edge, FIRST] ^ links[edge, SECOND] ^ node
        key, fine = key_of(sums, edge)
        rank = links[edge, QUEUED_RANK + (half & 1)]
        if key == keys[half, KEY] and fine == keys[half, FINE] and rank == nodes[other, RANK]:
            return edge
        nodes[node, TOP] = take_first(links, keys, half)
        queue_half(sums, links, keys, nodes, node, half, limits)
    return NONE


@kernel
def _merge_all(sums: Rows, links: Links, nodes: Links, limits: Limits) -> Rows:
    """Merge until nothing is left; returns a row per merge, in the order in which it found them.

    The nearest-neighbour chain: from every node, go to the best partner until two are each other's best, and merge
    them. It stays in one neighbourhood of the volume, and so in the cache, where a global queue jumps about.
    """
    keys = np.empty((2 * links.shape[0], 2), np.int64)
    marks = np.full(nodes.shape[0], NONE, np.int32)
    table, filled = empty_table(), 0
    link_edges(links, nodes)
    for node in range(nodes.shape[0]):
        if nodes[node, LENGTH] > limits.hub_edges:
            table, filled = make_hub(sums, links, keys, nodes, table, filled, node, limits)
    merges = np.empty((nodes.shape[0], 7), np.int64)
    count = 0
    chain = np.empty(1024, np.int32)
    for start in range(nodes.shape[0]):
        chain[0], size = start, 1
        while size > 0:
            a = chain[size - 1]
            if nodes[a, STATE] != FREE:
                size -= 1
                continue
            edge = _best(sums, links, keys, nodes, a, limits)
            while True:
                b = NONE if edge == NONE else links[edge, FIRST] ^ links[edge, SECOND] ^ a
                if b == NONE or nodes[b, STATE] == FROZEN:
                    nodes[a, STATE] = FREE if b == NONE else FROZEN
                    size -= 1
                    break
                answer = _best(sums, links, keys, nodes, b, limits)
                if answer == edge:
                    _record(sums, links, nodes, merges[count], edge, limits)
                    count += 1
                    keep, table, filled = _merge(sums, links, keys, nodes, marks, table, filled, a, b, limits)
                    chain[size - 1] = keep
                    break
                if size == chain.size:
                    chain = np.concatenate((chain, np.empty_like(chain)))
                chain[size] = b
                size += 1
                a, edge = b, answer
    return merges[:count]


@kernel
def _record(sums: Rows, links: Links, nodes: Links, merge: Rows, edge: Number, limits: Limits) -> None:
    first, second = links[edge, FIRST], links[edge, SECOND]
    a, b = nodes[first, LABEL], nodes[second, LABEL]
    merge[_A], merge[_B] = min(a, b), max(a, b)
    merge[_SUM], merge[_COUNT] = sums[edge, TOTAL], sums[edge, FACES]
    merge[_KEY], merge[_FINE] = key_of(sums, edge)
    low, high = min(nodes[first, RANK], nodes[second, RANK]), max(nodes[first, RANK], nodes[second, RANK])
    merge[_TIE] = (np.int64(low) << 32) | np.int64(high)


@kernel
def _merge(
    sums: Rows,
    links: Links,
    keys: Rows,
    nodes: Links,
    marks: Links,
    table: Rows,
    filled: Number,
    a: Number,
    b: Number,
    limits: Limits,
) -> tuple[Number, Rows, Number]:
    """Merge two nodes; returns the one that stays, and the table of hubs."""
    longer = nodes[a, HUB] > nodes[b, HUB] or (nodes[a, HUB] == nodes[b, HUB] and nodes[a, LENGTH] >= nodes[b, LENGTH])
    keep, gone = (a, b) if longer else (b, a)
    table, filled = move_edges(sums, links, keys, nodes, marks, table, filled, gone, keep, limits)
    nodes[keep, RANK] = max(nodes[keep, RANK], nodes[gone, RANK])
    nodes[keep, LABEL] = min(nodes[keep, LABEL], nodes[gone, LABEL])
    nodes[gone, STATE] = ABSORBED
    if nodes[gone, HUB]:
        nodes[keep, TOP] = meld(links, keys, nodes[keep, TOP], nodes[gone, TOP])
    elif not nodes[keep, HUB] and nodes[keep, LENGTH] > limits.hub_edges:
        table, filled = make_hub(sums, links, keys, nodes, table, filled, keep, limits)
    return keep, table, filled
