"""Size-dependent merging of small basins, before the agglomeration; exact in parts of a graph, too.

A watershed of noisy affinities leaves thousands of basins of a few voxels. Their mean affinities rest on a handful of
faces, so they are merged by single linkage instead, each into the neighbour across its largest affinity, until they
have a size (Zlateski and Seung, arXiv:1505.00249).

Definition: all edges of the region graph, in the order of their largest affinity, ties by (u, v), smaller first; an
edge joins its two basins if one of them still has fewer than `size_threshold` voxels when it is its turn.

In a part of the graph, some supervoxels are open: they may have more voxels and edges outside. Then, in the same order:

- a basin that has nothing open in it, hangs on nothing undecided and is small is certainly small: the edge joins;
- two basins that have the size already stay apart whatever else they consist of;
- everything else is undecided, and both basins hang on it from then on.

What hangs on something goes up to a larger part of the graph, and only that. A basin that hangs takes in certain ones
meanwhile; as long as it is small, when each came decides what comes after, so they go up one by one with their edges
(`joined`); once it has the size, they vanish in it. So what goes up lies within one basin's size of what is open.
"""

# ruff: noqa: PLR0917 (compiled functions take their arrays by position)

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput, InvalidVolume
from models.segmentation.columns import stacked
from models.segmentation.jit import Number, kernel
from models.segmentation.region_graph import RegionGraph
from models.segmentation.relabel import distinct, indices_of
from models.segmentation.union_find import find

Ids = NDArray[np.uint64]
_UNDECIDED, _JOINED, _DONE = 0, 1, 2  # fate of an edge


@dataclass(frozen=True, eq=False)
class Basins:
    """Basins of one part of the graph, one row each, sorted by id.

    `ids`: uint64, the name under which edges and faces know the basin; `labels`: uint64, its smallest supervoxel id so
    far; `voxels`: int64, those known; `open`: bool, whether more of it may lie outside.
    """

    ids: Ids
    labels: Ids
    voxels: NDArray[np.int64]
    open: NDArray[np.bool_]

    def __len__(self) -> int:
        return int(self.ids.size)


@dataclass(frozen=True, eq=False)
class BasinEdges:
    """Edges between basins.

    `first`, `second`: uint64, ids of basins; `u` < `v`: uint64, the supervoxels whose edge it is, which decide ties;
    `affinity`: uint8, its largest affinity; `joined`: bool, whether it is known to join.
    """

    first: Ids
    second: Ids
    u: Ids
    v: Ids
    affinity: NDArray[np.uint8]
    joined: NDArray[np.bool_]

    def __len__(self) -> int:
        return int(self.u.size)

    @classmethod
    def of(cls, graph: RegionGraph) -> BasinEdges:
        """The edges between supervoxels."""
        return cls(graph.u, graph.v, graph.u, graph.v, graph.affinity_max, np.zeros(len(graph), np.bool_))

    def selected(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> BasinEdges:
        """Some of the edges."""
        return BasinEdges(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class SmallBasins:
    """What was decided in a part of the graph, and what was not.

    `keys`, `values`: uint64, keys sorted: for each basin that came in its final label, or the id of the basin that goes
    up in its stead. `basins`, `edges`: what goes up.
    """

    keys: Ids
    values: Ids
    basins: Basins
    edges: BasinEdges


def basins_of(ids: Ids, voxels: NDArray[np.int64], open_ids: Ids) -> Basins:
    """Single supervoxels: `ids` sorted, `voxels` in their order; open are those among `open_ids`."""
    return Basins(ids, ids, voxels, np.isin(ids, open_ids))


def gathered_basins(basins: list[Basins], edges: list[BasinEdges], open_ids: Ids) -> tuple[Basins, BasinEdges]:
    """What several parts hand up, as one part: rows of one basin and of one edge are joined.

    `open_ids`: ids at the faces of the whole, of either side; the basins among them are open, all others no longer.
    Both lists are emptied: what nobody else holds is given back on the way (see `stacked`).
    """
    ids, labels, voxels = stacked(basins, _SUMMED)
    merged = distinct(ids)
    rows = indices_of(ids, merged)
    total = np.zeros(merged.size, np.int64)
    np.add.at(total, rows, voxels)
    smallest = np.full(merged.size, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, rows, labels)
    del ids, labels, voxels, rows
    every = list(stacked(edges, ("joined", "affinity", "v", "u", "second", "first")))
    # The best row of an edge first; an edge between two open supervoxels has one in each part.
    order = _first_rows(np.lexsort((~every[0], 255 - every[1], every[2], every[3])), every[3], every[2])
    joined, affinity, v, u, second, first = (_picked(every, place, order) for place in range(6))
    kept = BasinEdges(first, second, u, v, affinity, joined)
    return Basins(merged, smallest, total, np.isin(merged, open_ids)), kept


def _picked(columns: list[Any], place: int, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of a column, which is given back."""
    column, columns[place] = columns[place], None
    picked: NDArray[Any] = column[rows]
    return picked


@kernel
def _first_rows(order: NDArray[np.int64], u: Ids, v: Ids) -> NDArray[np.int64]:
    """Of rows that follow each other in `order` and have one pair the first; `order` is overwritten."""
    count = 0
    for i in range(order.size):
        row = order[i]
        if count == 0 or u[row] != u[order[count - 1]] or v[row] != v[order[count - 1]]:
            order[count] = row
            count += 1
    return order[:count]


_SUMMED = ("ids", "labels", "voxels")


def merge_small_basins(basins: Basins, edges: BasinEdges, *, size_threshold: int, min_affinity: int) -> SmallBasins:
    """Join basins along the largest affinities while one of the two is small.

    `edges`: sorted by (u, v), each pair once. `size_threshold`: at least 0 voxels; `min_affinity`: 1 to 255. Without
    open basins everything is decided. Raises `InvalidInput` for other limits or an edge of a basin without a row,
    `InvalidVolume` for edges that are not sorted.
    """
    if not (isinstance(size_threshold, int | np.integer) and size_threshold >= 0):
        raise InvalidInput(f"size threshold: expected an integer of at least 0 voxels, got {size_threshold!r}")
    if not (isinstance(min_affinity, int | np.integer) and 1 <= min_affinity <= 255):
        raise InvalidInput(f"min affinity: expected an integer from 1 to 255, got {min_affinity!r}")
    u, v = edges.u, edges.v
    if not _sorted_pairs(u, v):
        raise InvalidVolume("edges: expected them sorted by (u, v), each pair once")
    first, second = (indices_of(ids, basins.ids) for ids in (edges.first, edges.second))
    order = np.flatnonzero(edges.affinity >= min_affinity)
    order = order[np.argsort(255 - edges.affinity[order], kind="stable")]
    groups, places, pending, fates = _join_all(
        order, first, second, edges.joined, basins.voxels, basins.open, np.int64(size_threshold)
    )
    up = pending[groups]
    labels = basins.labels.copy()
    np.minimum.at(labels, np.where(up, places, groups), basins.labels)
    values = np.where(up, basins.ids[places], labels[groups])
    own = np.flatnonzero(up & (places == np.arange(len(basins))))
    voxels = np.zeros(len(basins), np.int64)
    np.add.at(voxels, places, basins.voxels)
    left = Basins(basins.ids[own], labels[own], voxels[own], basins.open[own])
    kept: NDArray[np.int64] = order[fates != _DONE]
    joined = fates[fates != _DONE] == _JOINED
    here, there = (basins.ids[places[side[kept]]] for side in (first, second))
    rest = BasinEdges(here, there, u[kept], v[kept], edges.affinity[kept], joined)
    return SmallBasins(basins.ids, values, left, rest.selected(np.lexsort((rest.v, rest.u))))


@kernel
def _sorted_pairs(u: Ids, v: Ids) -> bool:
    wrong = 0
    for i in range(1, u.size):
        wrong += u[i - 1] > u[i] or (u[i - 1] == u[i] and v[i - 1] >= v[i])
    return wrong == 0


@kernel
def _join_all(
    order: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    joined: NDArray[np.bool_],
    voxels: NDArray[np.int64],
    is_open: NDArray[np.bool_],
    limit: Number,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.uint8]]:
    """Returns for each basin its group and the basin in whose place it stands, which groups hang, and edges' fates.

    A group that hangs on nothing is one place. `anchors`: the place of a group into which others vanish, once the
    group has the size.
    """
    count = voxels.size
    groups, places = np.arange(count), np.arange(count)
    sizes, pending = voxels.copy(), is_open.copy()
    anchors = np.where(voxels >= limit, np.arange(count), -1)
    fates = np.full(order.size, _DONE, np.uint8)
    for i in range(order.size):
        edge = order[i]
        a, b = find(groups, first[edge]), find(groups, second[edge])
        if a == b:
            continue
        # An edge between two open supervoxels may be better than it looks here.
        both_open = is_open[first[edge]] and is_open[second[edge]]
        if both_open and voxels[first[edge]] >= limit and voxels[second[edge]] >= limit:
            continue
        small_a = not pending[a] and (joined[edge] or sizes[a] < limit) and not both_open
        small_b = not pending[b] and (joined[edge] or sizes[b] < limit) and not both_open
        if small_a or small_b:
            x, y = (a, b) if small_a else (b, a)
            if small_a and small_b and sizes[a] > sizes[b]:
                x, y = b, a
            fates[i] = _take_in(groups, places, sizes, pending, anchors, x, y, limit)
        elif sizes[a] < limit or sizes[b] < limit or both_open:
            fates[i] = _UNDECIDED
            pending[a] = pending[b] = True
    for i in range(count):
        groups[i], places[i] = find(groups, i), find(places, i)
    return groups, places, pending, fates


@kernel
def _take_in(
    groups: NDArray[np.int64],
    places: NDArray[np.int64],
    sizes: NDArray[np.int64],
    pending: NDArray[np.bool_],
    anchors: NDArray[np.int64],
    x: Number,
    y: Number,
    limit: Number,
) -> Number:
    """Join group x, which hangs on nothing, to group y; returns the edge's fate."""
    fate = _DONE
    place = find(places, x)
    if not pending[y]:
        places[place] = find(places, y)
    elif anchors[y] >= 0:
        places[place] = find(places, anchors[y])
    else:
        fate = _JOINED
        if sizes[x] + sizes[y] >= limit:
            anchors[y] = place
    groups[x] = y
    sizes[y] += sizes[x]
    if not pending[y] and sizes[y] >= limit:
        anchors[y] = find(places, y)
    return fate
