"""Priority queues for linkages that never improve an edge: one small queue per node, and one of all nodes.

Edges are taken by key (larger first), then by tie: the pair (smaller, larger) of the ranks of their two nodes, smaller
first. A node's rank grows when it merges, which would touch the keys of all its edges. So an edge waits in the queue of
one of its nodes under the *other* node's rank, and only the first edge of each node stands in the queue of nodes, under
the full pair: a growing node is moved once, not edge by edge (with one queue of edges, a plateau of equal affinities
cost the square of its edges). An edge belongs to the node of smaller rank when it is put in.

Merging only lowers keys and raises ranks, so what an edge or a node was put in under is an upper bound. The linkage
looks at the first and puts it back where it is out of date.

Node queues are pairing heaps (Fredman et al., doi:10.1007/BF01840439), which meld with one comparison when nodes merge;
their keys and links are columns of the edge's row, see `models.segmentation.contraction`. The queue of nodes is a heap
with four children per place; its rows are (key, finer key, tie, entry), the entry being the node and its stamp, which
tells outdated rows.
"""

# ruff: noqa: PLR0917 (compiled functions take their arrays by position)

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.segmentation.contraction import CHILD, FINE, FIRST, GONE, KEY, RANK, SIBLING
from models.segmentation.jit import Number, kernel

NODE_KEY, NODE_FINE, NODE_TIE, NODE_ENTRY = 0, 1, 2, 3
NONE = -1
_CHILDREN = 4
Rows = NDArray[np.int64]
Links = NDArray[np.int32]


@kernel
def meld(sums: Rows, links: Links, a: Number, b: Number) -> Number:
    """Join two node queues given by their first edges (NONE: empty); returns the first edge of all."""
    if min(a, b) == NONE:
        return max(a, b)
    if _edge_before(sums, links, b, a):
        a, b = b, a
    links[b, SIBLING] = links[a, CHILD]
    links[a, CHILD] = b
    return a


@kernel
def put_in(sums: Rows, links: Links, first: Number, edge: Number, key: Number, fine: Number, rank: Number) -> Number:
    """Add an edge to the node queue that begins with `first`; returns the first edge."""
    sums[edge, KEY], sums[edge, FINE] = key, fine
    links[edge, RANK], links[edge, CHILD], links[edge, SIBLING] = rank, NONE, NONE
    return meld(sums, links, first, edge)


@kernel
def take_first(sums: Rows, links: Links, first: Number) -> Number:
    """Remove the first edge of a node queue; returns the next. Edges that are no more are left out on the way."""
    edge, odd, pairs = links[first, CHILD], NONE, NONE
    while edge != NONE:
        following = links[edge, SIBLING]
        if links[edge, FIRST] == GONE:
            following = _spliced(links, links[edge, CHILD], following)
        elif odd == NONE:
            odd = edge
        else:
            pair = meld(sums, links, odd, edge)
            links[pair, SIBLING] = pairs
            pairs, odd = pair, NONE
        edge = following
    while pairs != NONE:
        following = links[pairs, SIBLING]
        odd = meld(sums, links, odd, pairs)
        pairs = following
    return odd


@kernel
def _spliced(links: Links, first: Number, following: Number) -> Number:
    """The list of siblings from `first`, continued by `following`."""
    if first == NONE:
        return following
    last = first
    while links[last, SIBLING] != NONE:
        last = links[last, SIBLING]
    links[last, SIBLING] = following
    return first


@kernel
def _edge_before(sums: Rows, links: Links, a: Number, b: Number) -> Number:
    if sums[a, KEY] != sums[b, KEY]:
        return sums[a, KEY] > sums[b, KEY]
    if sums[a, FINE] != sums[b, FINE]:
        return sums[a, FINE] > sums[b, FINE]
    if links[a, RANK] != links[b, RANK]:
        return links[a, RANK] < links[b, RANK]
    return a < b


@kernel
def tie_of(a: Number, b: Number) -> Number:
    """The pair of two ranks below 2**31 as one number that sorts like (smaller, larger)."""
    return (np.int64(min(a, b)) << 32) | np.int64(max(a, b))


@kernel
def order_nodes(rows: Rows, size: Number) -> None:
    """Make a heap of the first `size` rows."""
    for place in range((size - 2) // _CHILDREN, -1, -1):
        _sink(
            rows,
            size,
            place,
            rows[place, NODE_KEY],
            rows[place, NODE_FINE],
            rows[place, NODE_TIE],
            rows[place, NODE_ENTRY],
        )


@kernel
def lower_top(rows: Rows, size: Number, key: Number, fine: Number, tie: Number, entry: Number) -> None:
    """Replace the top row by one that comes later."""
    _sink(rows, size, 0, key, fine, tie, entry)


@kernel
def drop_top(rows: Rows, size: Number) -> Number:
    """Remove the top row; returns the new size."""
    last = size - 1
    if last > 0:
        _sink(rows, last, 0, rows[last, NODE_KEY], rows[last, NODE_FINE], rows[last, NODE_TIE], rows[last, NODE_ENTRY])
    return last


@kernel
def push_node(rows: Rows, size: Number, key: Number, fine: Number, tie: Number, entry: Number) -> Rows:
    """Add a row; returns the rows, which are new where the old ones were full."""
    if size == rows.shape[0]:
        grown = np.empty((2 * size, 4), np.int64)
        grown[:size] = rows
        rows = grown
    place = size
    while place > 0:
        parent = (place - 1) // _CHILDREN
        if _before(rows, parent, key, fine, tie, entry):
            break
        rows[place] = rows[parent]
        place = parent
    rows[place, NODE_KEY], rows[place, NODE_FINE], rows[place, NODE_TIE], rows[place, NODE_ENTRY] = (
        key,
        fine,
        tie,
        entry,
    )
    return rows


@kernel
def _before(rows: Rows, place: Number, key: Number, fine: Number, tie: Number, entry: Number) -> Number:
    if rows[place, NODE_KEY] != key:
        return rows[place, NODE_KEY] > key
    if rows[place, NODE_FINE] != fine:
        return rows[place, NODE_FINE] > fine
    if rows[place, NODE_TIE] != tie:
        return rows[place, NODE_TIE] < tie
    return rows[place, NODE_ENTRY] < entry


@kernel
def _sink(rows: Rows, size: Number, place: Number, key: Number, fine: Number, tie: Number, entry: Number) -> None:
    """Put a row at `place` or below it, moving up the rows that come before it."""
    while True:
        child = _CHILDREN * place + 1
        if child >= size:
            break
        best = child
        for other in range(child + 1, min(child + _CHILDREN, size)):
            if _before(
                rows, other, rows[best, NODE_KEY], rows[best, NODE_FINE], rows[best, NODE_TIE], rows[best, NODE_ENTRY]
            ):
                best = other
        if not _before(rows, best, key, fine, tie, entry):
            break
        rows[place, NODE_KEY], rows[place, NODE_FINE] = rows[best, NODE_KEY], rows[best, NODE_FINE]
        rows[place, NODE_TIE], rows[place, NODE_ENTRY] = rows[best, NODE_TIE], rows[best, NODE_ENTRY]
        place = best
    rows[place, NODE_KEY], rows[place, NODE_FINE], rows[place, NODE_TIE], rows[place, NODE_ENTRY] = (
        key,
        fine,
        tie,
        entry,
    )
