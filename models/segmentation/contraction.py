"""Merging two nodes of a graph: lists of half-edges, parallel edges, and nodes with very many edges (hubs).

Every node has a linked list of its half-edges. To merge two nodes, the one with the shorter list is walked and its list
appended to the other's (small to large), so a half-edge moves O(log n) times. A parallel edge is found by marking the
other ends of the longer list, if it is short too; if its node is a hub, by looking through the list of the third node;
and if that is a hub as well, in a hash table of the edges between hubs. Only hubs have queues and table entries: most
nodes have a dozen edges that lie close together, and looking at them all is faster than keeping them in order.

Where two edges become one, the edge with the higher key keeps its number: then a queue that holds that edge holds an
upper bound of the combined key too, because a combined edge is never better than the better of the two.
"""

# ruff: noqa: PLR0917 (compiled functions take their arrays by position)

from __future__ import annotations

import numpy as np

from models.segmentation.edge_rows import (
    FACES,
    FIRST,
    FREE,
    GONE,
    HEAD,
    HUB,
    LARGEST,
    LENGTH,
    NEXT,
    NONE,
    RANK,
    SECOND,
    STATE,
    TAIL,
    TOP,
    TOTAL,
    Limits,
    Links,
    Rows,
)
from models.segmentation.hashing import hash_id
from models.segmentation.hub_queue import put_in
from models.segmentation.jit import Number, kernel
from models.segmentation.ratios import ratio_key, ratio_order

_PAIR, _EDGE = 0, 1  # columns of the table


@kernel
def link_edges(links: Links, nodes: Links) -> None:
    """Make the lists of half-edges of all nodes."""
    nodes[:, HEAD] = nodes[:, TAIL] = NONE
    nodes[:, LENGTH] = 0
    for edge in range(links.shape[0] - 1, -1, -1):
        for end in range(2):
            node = links[edge, FIRST + end]
            links[edge, NEXT + end] = nodes[node, HEAD]
            nodes[node, HEAD] = 2 * edge + end
            if nodes[node, TAIL] == NONE:
                nodes[node, TAIL] = 2 * edge + end
            nodes[node, LENGTH] += 1


@kernel
def key_of(sums: Rows, edge: Number) -> tuple[Number, Number]:
    """Key of an edge: larger is better."""
    return ratio_key(sums[edge, TOTAL], sums[edge, FACES])


@kernel
def order_to_limit(sums: Rows, edge: Number, limits: Limits) -> Number:
    """Negative where the edge is too weak to be merged."""
    return ratio_order(sums[edge, TOTAL], sums[edge, FACES], limits.numerator, limits.denominator)


@kernel
def empty_table() -> Rows:
    """The table of edges between hubs."""
    table = np.empty((64, 2), np.int64)
    table[:, _EDGE] = NONE
    return table


@kernel
def _pair(a: Number, b: Number) -> Number:
    return (np.int64(min(a, b)) << 32) | np.int64(max(a, b))


@kernel
def _slot(table: Rows, pair: Number) -> Number:
    """Slot that holds the pair, or the empty one where it belongs."""
    bits = 0
    while (1 << bits) < table.shape[0]:
        bits += 1
    slot = np.int64(hash_id(np.uint64(pair), np.uint64(64 - bits)))
    while table[slot, _EDGE] != NONE and table[slot, _PAIR] != pair:
        slot = (slot + 1) & (table.shape[0] - 1)
    return slot


@kernel
def _enter(table: Rows, filled: Number, a: Number, b: Number, edge: Number) -> tuple[Rows, Number]:
    """Let the pair of hubs lead to `edge`. Pairs of absorbed nodes stay: nobody asks for them any more."""
    if 2 * filled >= table.shape[0]:
        grown = np.empty((2 * table.shape[0], 2), np.int64)
        grown[:, _EDGE] = NONE
        for row in table:
            if row[_EDGE] != NONE:
                grown[_slot(grown, row[_PAIR])] = row
        table = grown
    slot = _slot(table, _pair(a, b))
    filled += table[slot, _EDGE] == NONE
    table[slot, _PAIR], table[slot, _EDGE] = _pair(a, b), edge
    return table, filled


@kernel
def _parallel(links: Links, nodes: Links, table: Rows, hub: Number, other: Number) -> Number:
    """The edge between a hub and another node, or NONE."""
    if nodes[other, HUB]:
        return table[_slot(table, _pair(hub, other)), _EDGE]
    half = nodes[other, HEAD]
    while half != NONE:
        edge = half >> 1
        if links[edge, FIRST] != GONE and links[edge, FIRST] ^ links[edge, SECOND] ^ other == hub:
            return edge
        half = links[edge, NEXT + (half & 1)]
    return NONE


@kernel
def _mark(links: Links, nodes: Links, marks: Links, node: Number, clear: Number) -> None:
    """Let `marks` of the other ends of a node's edges lead to the edge, or to nothing again."""
    half = nodes[node, HEAD]
    while half != NONE:
        edge = half >> 1
        if links[edge, FIRST] != GONE:
            marks[links[edge, FIRST] ^ links[edge, SECOND] ^ node] = NONE if clear else edge
        half = links[edge, NEXT + (half & 1)]


@kernel
def _higher(sums: Rows, edge: Number, other: Number) -> Number:
    return ratio_order(sums[edge, TOTAL], sums[edge, FACES], sums[other, TOTAL], sums[other, FACES]) > 0


@kernel
def _combined(sums: Rows, links: Links, edge: Number, parallel: Number) -> Number:
    """Make two edges one: sums and counts add, the largest affinity stays. Returns the number it has."""
    stays, ends = (edge, parallel) if _higher(sums, edge, parallel) else (parallel, edge)
    sums[stays, TOTAL] += sums[ends, TOTAL]
    sums[stays, FACES] += sums[ends, FACES]
    links[stays, LARGEST] = max(links[stays, LARGEST], links[ends, LARGEST])
    links[ends, FIRST] = GONE
    return stays


@kernel
def queue_half(sums: Rows, links: Links, keys: Rows, nodes: Links, node: Number, half: Number, limits: Limits) -> None:
    """Put a half-edge into its hub's queue, unless it is too weak."""
    edge = half >> 1
    if order_to_limit(sums, edge, limits) >= 0:
        key, fine = key_of(sums, edge)
        rank = nodes[links[edge, FIRST] ^ links[edge, SECOND] ^ node, RANK]
        nodes[node, TOP] = put_in(links, keys, nodes[node, TOP], half, key, fine, rank)


@kernel
def make_hub(
    sums: Rows, links: Links, keys: Rows, nodes: Links, table: Rows, filled: Number, node: Number, limits: Limits
) -> tuple[Rows, Number]:
    """Make a node with many edges a hub: its edges enter its queue, those to other hubs the table."""
    nodes[node, HUB], nodes[node, TOP] = True, NONE
    half = nodes[node, HEAD]
    while half != NONE:
        edge = half >> 1
        if links[edge, FIRST] != GONE:
            if nodes[node, STATE] == FREE:
                queue_half(sums, links, keys, nodes, node, half, limits)
            other = links[edge, FIRST] ^ links[edge, SECOND] ^ node
            if nodes[other, HUB]:
                table, filled = _enter(table, filled, node, other, edge)
        half = links[edge, NEXT + (half & 1)]
    return table, filled


@kernel
def _append(links: Links, nodes: Links, node: Number, first: Number, last: Number) -> None:
    """Append the half-edges from `first` to `last` (NONE: none) to a node's list."""
    if last == NONE:
        return
    links[last >> 1, NEXT + (last & 1)] = NONE
    tail = nodes[node, TAIL]
    if tail == NONE:
        nodes[node, HEAD] = first
    else:
        links[tail >> 1, NEXT + (tail & 1)] = first
    nodes[node, TAIL] = last


@kernel
def move_edges(
    sums: Rows,
    links: Links,
    keys: Rows,
    nodes: Links,
    marks: Links,
    table: Rows,
    filled: Number,
    gone: Number,
    keep: Number,
    limits: Limits,
) -> tuple[Rows, Number]:
    """Make the edges of `gone` edges of `keep`, which has the longer list; parallel ones become one."""
    hub = nodes[keep, HUB]
    if not hub:
        _mark(links, nodes, marks, keep, False)
    half, first, last = nodes[gone, HEAD], NONE, NONE
    while half != NONE:
        edge = half >> 1
        following = links[edge, NEXT + (half & 1)]
        other = links[edge, FIRST] ^ links[edge, SECOND] ^ gone
        if links[edge, FIRST] == GONE or other == keep:
            links[edge, FIRST] = GONE
            half = following
            continue
        parallel = _parallel(links, nodes, table, keep, other) if hub else marks[other]
        stays = edge if parallel == NONE else _combined(sums, links, edge, parallel)
        if hub and nodes[other, HUB]:
            table, filled = _enter(table, filled, keep, other, stays)
        if stays == edge:
            links[edge, FIRST + (half & 1)] = keep
            if hub and not nodes[gone, HUB]:
                queue_half(sums, links, keys, nodes, keep, half, limits)
            if last == NONE:
                first = half
            else:
                links[last >> 1, NEXT + (last & 1)] = half
            last = half
            nodes[keep, LENGTH] += 1
            if not hub:
                marks[other] = edge
        half = following
    _append(links, nodes, keep, first, last)
    if not hub:
        _mark(links, nodes, marks, keep, True)
        marks[gone] = NONE
    return table, filled
