"""Makes a forest of the graph that skeleton fragments form: no cycles, no gaps of a voxel, no ticks at chunk faces.

Fragments meet at shared vertices. Where a segment runs along a face, the slice on the other side gets a path of its
own that joins the first in several places; where it merely touches a face, the target that was set there leaves a short
side branch, a tick. TEASAR itself says what is superfluous: a path claims everything within some distance of it, its
reach, and within that no other path begins. The same rule is applied here, to paths that came from different chunks.
"""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from models.errors import InvalidInput

_Graph = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def clean_forest(
    vertices: NDArray[np.float32],
    edges: NDArray[np.integer],
    radii: NDArray[np.float32],
    *,
    reach_nm: NDArray[np.floating],
    join_nm: float,
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which vertices remain, bool (n,), and the edges of the forest, int64 (m, 2), indices into all vertices.

    `vertices` is (n, 3) in nm without duplicates, `edges` (m, 2), `radii` (n,) in nm, `reach_nm` (n,) the distance
    within which a path through a vertex claims its surroundings. In this order:

    1. Cycles are opened. Paths between branch points are taken from thick to thin (mean radius); one that closes a
       cycle is removed where all of it lies within reach of those taken, and else loses only its thinnest edge.
    2. Parts that come within `join_nm` of each other are joined between their nearest vertices, nearest first.
    3. Side branches no longer than the reach of their branch point are removed, shortest first; a branch that grows
       because its neighbour went is measured anew.
    4. Longer ones that run within reach of the rest are removed too, thinnest first. Both until nothing changes.

    Whole parts are never removed, however short.

    Every tie is decided by the order of the vertices; sort them for a result that does not depend on how they came.
    Raises `InvalidInput` for negative lengths or arrays that do not fit.
    """
    count = len(vertices)
    if join_nm < 0 or (len(reach_nm) and float(reach_nm.min()) < 0):
        raise InvalidInput(f"forest: expected join_nm and reach_nm of at least 0, got {join_nm} and {reach_nm}")
    if len(radii) != count or len(reach_nm) != count:
        raise InvalidInput(
            f"forest: expected a radius and a reach per vertex ({count}), got {len(radii)} and {len(reach_nm)}"
        )
    points, reach = vertices.astype(np.float64), reach_nm.astype(np.float64)
    # Rows sorted, and ends sorted within a row: ties fall the same way in any order of the edges.
    pairs = np.unique(np.sort(edges.astype(np.int64).reshape(-1, 2), axis=1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    alive = np.ones(count, dtype=bool)
    kept = _open_cycles(points, pairs, radii.astype(np.float64), reach, alive)
    if join_nm > 0:
        kept = np.concatenate([kept, _joins(points, kept, alive, join_nm)])
    kept = kept[np.lexsort((kept[:, 1], kept[:, 0]))]
    graph = _neighbours(kept, _lengths(points, kept), count)
    degrees = np.diff(graph[0])
    _prune(graph, degrees, alive, reach)
    while _prune_claimed(graph, degrees, alive, (points, radii, reach)):
        _prune(graph, degrees, alive, reach)
    return alive, kept[alive[kept].all(axis=1)]


def _open_cycles(
    points: NDArray[np.float64],
    edges: NDArray[np.int64],
    radii: NDArray[np.float64],
    reach: NDArray[np.float64],
    alive: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """The edges that remain; clears `alive` for the vertices of removed paths."""
    count = len(points)
    degrees = np.bincount(edges.reshape(-1), minlength=count)
    thickness = radii[edges].min(axis=1)
    _, path = np.unique(_paths(edges, degrees), return_inverse=True)
    rank = np.empty(int(path.max(initial=-1)) + 1, dtype=np.int64)
    means = np.bincount(path, weights=thickness) / np.maximum(np.bincount(path), 1)
    rank[np.argsort(-means, kind="stable")] = np.arange(len(rank))
    order = np.argsort(rank[path], kind="stable")
    edges, thickness = edges[order], thickness[order]
    firsts = np.searchsorted(rank[path][order], np.arange(len(rank) + 1))
    closing = _closing(edges, firsts, degrees, np.arange(count))
    accepted = np.ones(len(edges), dtype=bool)
    for number in np.flatnonzero(closing):
        accepted[firsts[number] : firsts[number + 1]] = False
    claimed = degrees != 2
    claimed[edges[accepted].reshape(-1)] = True
    claimants = np.flatnonzero(claimed)
    tree = cKDTree(points[claimants]) if len(claimants) and closing.any() else None
    for number in np.flatnonzero(closing):
        span = slice(firsts[number], firsts[number + 1])
        inside = np.unique(edges[span])
        inside = inside[~claimed[inside]]
        if tree is not None:
            distance, nearest = tree.query(points[inside])
            if (distance <= reach[claimants[nearest]]).all():
                alive[inside] = False
                continue
        accepted[span] = True
        accepted[firsts[number] + int(np.argmin(thickness[span]))] = False
    return edges[accepted]


def _prune_claimed(
    graph: _Graph,
    degrees: NDArray[np.int64],
    alive: NDArray[np.bool_],
    measures: tuple[NDArray[np.float64], NDArray[np.floating], NDArray[np.float64]],
) -> bool:
    """Clear `alive` for side branches that lie within reach of the rest, thinnest first; whether there was one."""
    points, radii, reach = measures
    found = []
    for leaf in np.flatnonzero(alive & (degrees == 1)):
        trail = _trail(graph, alive, degrees, leaf)
        if degrees[trail[-1]] > 2:
            found.append((float(radii[trail[:-1]].mean()), int(leaf), trail))
    if not found:
        return False
    members = np.flatnonzero(alive)
    tree, farthest = cKDTree(points[members]), float(reach[members].max())
    removed = False
    for _, _, trail in sorted(found, key=lambda item: item[:2]):
        if degrees[trail[-1]] < 3:
            continue  # a neighbour went, so this branch goes on; the next round sees all of it
        branch = trail[:-1]
        alive[branch] = False
        for vertex in branch:  # from the tip on, so that a real branch is left after one look
            near = members[tree.query_ball_point(points[vertex], farthest)]
            near = near[alive[near]]
            if not (np.linalg.norm(points[near] - points[vertex], axis=1) <= reach[near]).any():
                alive[branch] = True
                break
        else:
            degrees[trail[-1]] -= 1
            removed = True
    return removed


def _joins(
    points: NDArray[np.float64], edges: NDArray[np.int64], alive: NDArray[np.bool_], join_nm: float
) -> NDArray[np.int64]:
    """Edges between parts that come within `join_nm` of each other."""
    parents = np.arange(len(points))
    _spanning(edges, parents)
    parts = _roots(parents)
    living = np.flatnonzero(alive)
    if len(np.unique(parts[living])) < 2:
        return np.empty((0, 2), dtype=np.int64)
    near = cKDTree(points[living]).query_pairs(join_nm, output_type="ndarray").reshape(-1, 2)
    pairs = np.sort(living[near], axis=1)
    pairs = np.unique(pairs[parts[pairs[:, 0]] != parts[pairs[:, 1]]], axis=0)
    pairs = pairs[np.argsort(_lengths(points, pairs), kind="stable")]
    chosen: NDArray[np.bool_] = _spanning(pairs, parents)
    return pairs[chosen]


def _lengths(points: NDArray[np.float64], edges: NDArray[np.int64]) -> NDArray[np.float64]:
    squares = (points[edges[:, 0]] - points[edges[:, 1]]) ** 2
    lengths: NDArray[np.float64] = np.sqrt(squares.sum(axis=1))
    return lengths


def _neighbours(edges: NDArray[np.int64], lengths: NDArray[np.float64], count: int) -> _Graph:
    """Adjacency lists: where each vertex's list begins (count + 1), the neighbours, and the lengths of their edges."""
    begins = np.concatenate([edges[:, 0], edges[:, 1]])
    ends = np.concatenate([edges[:, 1], edges[:, 0]])
    order = np.lexsort((ends, begins))
    first = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(begins, minlength=count), out=first[1:])
    return first, ends[order], np.concatenate([lengths, lengths])[order]


@njit(cache=True, nogil=True)
def _root(parents, member):  # type: ignore[no-untyped-def]
    while parents[member] != member:
        parents[member] = parents[parents[member]]
        member = parents[member]
    return member


@njit(cache=True, nogil=True)
def _roots(parents):  # type: ignore[no-untyped-def]
    roots = np.empty_like(parents)
    for member in range(parents.size):
        roots[member] = _root(parents, member)
    return roots


@njit(cache=True, nogil=True)
def _united(parents, a, b):  # type: ignore[no-untyped-def]
    """Unite two sets, named by their smallest member; whether they were two."""
    a, b = _root(parents, a), _root(parents, b)
    parents[max(a, b)] = min(a, b)
    return a != b


@njit(cache=True, nogil=True)
def _spanning(edges, parents):  # type: ignore[no-untyped-def]
    """Which edges, taken in order, connect two parts; `parents` is a union-find forest and is updated."""
    chosen = np.zeros(edges.shape[0], dtype=np.bool_)
    for edge in range(edges.shape[0]):
        chosen[edge] = _united(parents, edges[edge, 0], edges[edge, 1])
    return chosen


@njit(cache=True, nogil=True)
def _paths(edges, degrees):  # type: ignore[no-untyped-def]
    """For each edge, the first edge of its path: edges that meet at a vertex of degree 2 are on one path."""
    parents = np.arange(edges.shape[0])
    seen = np.full(degrees.size, -1, dtype=np.int64)
    for edge in range(edges.shape[0]):
        for end in range(2):
            vertex = edges[edge, end]
            if degrees[vertex] == 2 and seen[vertex] >= 0:
                _united(parents, seen[vertex], edge)
            seen[vertex] = edge
    return _roots(parents)


@njit(cache=True, nogil=True)
def _closing(edges, firsts, degrees, parents):  # type: ignore[no-untyped-def]
    """Which paths close a cycle when paths are taken in order; path i has the edges from firsts[i] to firsts[i + 1]."""
    closing = np.zeros(firsts.size - 1, dtype=np.bool_)
    for path in range(firsts.size - 1):
        a, b = -1, -1
        for edge in range(firsts[path], firsts[path + 1]):
            for end in range(2):
                if degrees[edges[edge, end]] != 2:
                    a, b = b, edges[edge, end]
        # A ring has no branch point; a path has two ends, which may be the same.
        closing[path] = a < 0 or not _united(parents, a, b)
    return closing


@njit(cache=True, nogil=True)
def _step(graph, alive, vertex, before):  # type: ignore[no-untyped-def]
    """The living neighbour of `vertex` that is not `before`, with the length of the edge; -1 without one."""
    first, neighbours, lengths = graph
    for at in range(first[vertex], first[vertex + 1]):
        if alive[neighbours[at]] and neighbours[at] != before:
            return neighbours[at], lengths[at]
    return -1, 0.0


@njit(cache=True, nogil=True)
def _walk(graph, alive, degrees, before, vertex):  # type: ignore[no-untyped-def]
    """Go on from `vertex` until a vertex that is not between two others; return it and the length of the way."""
    length = 0.0
    while True:
        following, step = _step(graph, alive, vertex, before)
        if following < 0:
            return vertex, length
        length += step
        if degrees[following] != 2:
            return following, length
        before, vertex = vertex, following


@njit(cache=True, nogil=True)
def _trail(graph, alive, degrees, leaf):  # type: ignore[no-untyped-def]
    """The vertices from a leaf to the next branch point or end, both included."""
    trail = [leaf]
    before, vertex = -1, leaf
    while len(trail) == 1 or degrees[vertex] == 2:
        following, _ = _step(graph, alive, vertex, before)
        trail.append(following)
        before, vertex = vertex, following
    return np.array(trail)


@njit(cache=True, nogil=True)
def _prune(graph, degrees, alive, reach):  # type: ignore[no-untyped-def]
    """Clear `alive` for side branches no longer than the reach of their branch point, and count `degrees` down."""
    queue = [(0.0, -1)]
    heapq.heappop(queue)
    for leaf in range(degrees.size):
        if alive[leaf] and degrees[leaf] == 1:
            heapq.heappush(queue, (_walk(graph, alive, degrees, -1, leaf)[1], leaf))
    while len(queue) > 0:
        stored, leaf = heapq.heappop(queue)
        junction, length = _walk(graph, alive, degrees, -1, leaf)
        # A branch that grew since it was stored has an entry with its new length.
        if not alive[leaf] or length != stored or degrees[junction] < 3 or length > reach[junction]:
            continue
        vertex = leaf
        while vertex != junction:
            alive[vertex] = False
            vertex, _ = _step(graph, alive, vertex, -1)
        degrees[junction] -= 1
        if degrees[junction] == 2:
            one, _ = _step(graph, alive, junction, -1)
            other, _ = _step(graph, alive, junction, one)
            for side in (one, other):
                end = side if degrees[side] != 2 else _walk(graph, alive, degrees, junction, side)[0]
                if degrees[end] == 1:
                    heapq.heappush(queue, (_walk(graph, alive, degrees, -1, end)[1], end))
