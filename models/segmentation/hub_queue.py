"""Queues of the edges of one node, for nodes with so many that looking through all of them would take too long.

A pairing heap (Fredman et al., doi:10.1007/BF01840439) of half-edges: two of them meld with one comparison when their
nodes merge. Edges come by key (larger first), then by the rank of the other node (smaller first): for the edges of one
node that is the order of the linkage's ties. Merging only lowers keys and raises ranks, so what a half-edge was put in
under stays an upper bound, and whoever looks at the first puts it back where it is out of date.
"""

# ruff: noqa: PLR0917 (compiled functions take their arrays by position)

from __future__ import annotations

from models.segmentation.edge_rows import CHILD, FINE, FIRST, GONE, KEY, NONE, QUEUED_RANK, SIBLING, Links, Rows
from models.segmentation.jit import Number, kernel


@kernel
def meld(links: Links, keys: Rows, a: Number, b: Number) -> Number:
    """Join two queues given by their first half-edges (NONE: empty); returns the first of all."""
    if min(a, b) == NONE:
        return max(a, b)
    if _before(links, keys, b, a):
        a, b = b, a
    links[b >> 1, SIBLING + (b & 1)] = links[a >> 1, CHILD + (a & 1)]
    links[a >> 1, CHILD + (a & 1)] = b
    return a


@kernel
def put_in(links: Links, keys: Rows, first: Number, half: Number, key: Number, fine: Number, rank: Number) -> Number:
    """Add a half-edge to the queue that begins with `first`; returns the first."""
    keys[half, KEY], keys[half, FINE] = key, fine
    links[half >> 1, QUEUED_RANK + (half & 1)] = rank
    links[half >> 1, CHILD + (half & 1)] = links[half >> 1, SIBLING + (half & 1)] = NONE
    return meld(links, keys, first, half)


@kernel
def take_first(links: Links, keys: Rows, first: Number) -> Number:
    """Remove the first half-edge; returns the next. Edges that are no more are left out on the way."""
    half, odd, pairs = links[first >> 1, CHILD + (first & 1)], NONE, NONE
    while half != NONE:
        following = links[half >> 1, SIBLING + (half & 1)]
        if links[half >> 1, FIRST] == GONE:
            following = _spliced(links, links[half >> 1, CHILD + (half & 1)], following)
        elif odd == NONE:
            odd = half
        else:
            pair = meld(links, keys, odd, half)
            links[pair >> 1, SIBLING + (pair & 1)] = pairs
            pairs, odd = pair, NONE
        half = following
    while pairs != NONE:
        following = links[pairs >> 1, SIBLING + (pairs & 1)]
        odd = meld(links, keys, odd, pairs)
        pairs = following
    return odd


@kernel
def _spliced(links: Links, first: Number, following: Number) -> Number:
    """The list of siblings from `first`, continued by `following`."""
    if first == NONE:
        return following
    last = first
    while links[last >> 1, SIBLING + (last & 1)] != NONE:
        last = links[last >> 1, SIBLING + (last & 1)]
    links[last >> 1, SIBLING + (last & 1)] = following
    return first


@kernel
def _before(links: Links, keys: Rows, a: Number, b: Number) -> Number:
    if keys[a, KEY] != keys[b, KEY]:
        return keys[a, KEY] > keys[b, KEY]
    if keys[a, FINE] != keys[b, FINE]:
        return keys[a, FINE] > keys[b, FINE]
    return links[a >> 1, QUEUED_RANK + (a & 1)] < links[b >> 1, QUEUED_RANK + (b & 1)]
