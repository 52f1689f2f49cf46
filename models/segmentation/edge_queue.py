"""Priority queues for linkages that never improve an edge: one small queue per node, and one of all nodes.

Edges are taken by key (larger first), then by tie: the pair (smaller, larger) of the ranks of their two nodes, smaller
first. A node's rank grows when it merges, which would touch the keys of all its edges. So an edge waits in the queue of
one of its nodes under the *other* node's rank, and only the first edge of each node stands in the queue of nodes, under
the full pair: a growing node is moved once, not edge by edge (with one queue of edges, a plateau of equal affinities
cost the square of its edges). An edge belongs to the node of smaller rank when it is put in.

Merging only lowers keys and raises ranks, so what an edge or a node was put in under is an upper bound. The linkage
looks at the first and puts it back where it is out of date.

Node queues are skew heaps (Sleator and Tarjan, doi:10.1137/0215004), which meld when nodes merge; their rows in
`waiting` are (key, finer key, rank, left, right). The queue of nodes is a heap with four children per place; its rows
in `rows` are (key, finer key, tie, entry), the entry being the node and its stamp, which tells outdated rows.
"""

# ruff: noqa: PLR0917 (compiled functions take their arrays by position)

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.segmentation.jit import Number, kernel

KEY, FINE, RANK, LEFT, RIGHT = 0, 1, 2, 3, 4
TIE, ENTRY = 2, 3
NONE = -1
_CHILDREN = 4
Rows = NDArray[np.int64]


@kernel
def meld(waiting: Rows, a: Number, b: Number) -> Number:
    """Join two node queues given by their first edges (NONE: empty); returns the first edge of all."""
    if min(a, b) == NONE:
        return max(a, b)
    if _edge_before(waiting, b, a):
        a, b = b, a
    first = a
    while True:
        right = waiting[a, RIGHT]
        waiting[a, RIGHT] = waiting[a, LEFT]
        if right == NONE:
            waiting[a, LEFT] = b
            return first
        if _edge_before(waiting, b, right):
            right, b = b, right
        waiting[a, LEFT] = right
        a = right


@kernel
def put_in(waiting: Rows, first: Number, edge: Number, key: Number, fine: Number, rank: Number) -> Number:
    """Add an edge to the node queue that begins with `first`; returns the first edge."""
    waiting[edge, KEY], waiting[edge, FINE], waiting[edge, RANK] = key, fine, rank
    waiting[edge, LEFT] = waiting[edge, RIGHT] = NONE
    return meld(waiting, first, edge)


@kernel
def take_first(waiting: Rows, first: Number) -> Number:
    """Remove the first edge of a node queue; returns the next."""
    return meld(waiting, waiting[first, LEFT], waiting[first, RIGHT])


@kernel
def _edge_before(waiting: Rows, a: Number, b: Number) -> Number:
    if waiting[a, KEY] != waiting[b, KEY]:
        return waiting[a, KEY] > waiting[b, KEY]
    if waiting[a, FINE] != waiting[b, FINE]:
        return waiting[a, FINE] > waiting[b, FINE]
    if waiting[a, RANK] != waiting[b, RANK]:
        return waiting[a, RANK] < waiting[b, RANK]
    return a < b


@kernel
def tie_of(a: Number, b: Number) -> Number:
    """The pair of two ranks below 2**31 as one number that sorts like (smaller, larger)."""
    return (min(a, b) << 32) | max(a, b)


@kernel
def order_nodes(rows: Rows, size: Number) -> None:
    """Make a heap of the first `size` rows."""
    for place in range((size - 2) // _CHILDREN, -1, -1):
        _sink(rows, size, place, rows[place, KEY], rows[place, FINE], rows[place, TIE], rows[place, ENTRY])


@kernel
def lower_top(rows: Rows, size: Number, key: Number, fine: Number, tie: Number, entry: Number) -> None:
    """Replace the top row by one that comes later."""
    _sink(rows, size, 0, key, fine, tie, entry)


@kernel
def drop_top(rows: Rows, size: Number) -> Number:
    """Remove the top row; returns the new size."""
    last = size - 1
    if last > 0:
        _sink(rows, last, 0, rows[last, KEY], rows[last, FINE], rows[last, TIE], rows[last, ENTRY])
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
    rows[place, KEY], rows[place, FINE], rows[place, TIE], rows[place, ENTRY] = key, fine, tie, entry
    return rows


@kernel
def _before(rows: Rows, place: Number, key: Number, fine: Number, tie: Number, entry: Number) -> Number:
    if rows[place, KEY] != key:
        return rows[place, KEY] > key
    if rows[place, FINE] != fine:
        return rows[place, FINE] > fine
    if rows[place, TIE] != tie:
        return rows[place, TIE] < tie
    return rows[place, ENTRY] < entry


@kernel
def _sink(rows: Rows, size: Number, place: Number, key: Number, fine: Number, tie: Number, entry: Number) -> None:
    """Put a row at `place` or below it, moving up the rows that come before it."""
    while True:
        child = _CHILDREN * place + 1
        if child >= size:
            break
        best = child
        for other in range(child + 1, min(child + _CHILDREN, size)):
            if _before(rows, other, rows[best, KEY], rows[best, FINE], rows[best, TIE], rows[best, ENTRY]):
                best = other
        if not _before(rows, best, key, fine, tie, entry):
            break
        rows[place, KEY], rows[place, FINE] = rows[best, KEY], rows[best, FINE]
        rows[place, TIE], rows[place, ENTRY] = rows[best, TIE], rows[best, ENTRY]
        place = best
    rows[place, KEY], rows[place, FINE], rows[place, TIE], rows[place, ENTRY] = key, fine, tie, entry
