"""Small basins against a slow definition, whole and divided into a hierarchy of parts."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InvalidInput, InvalidVolume
from models.segmentation.region_graph import RegionGraph
from models.segmentation.small_basins import BasinEdges, Basins, basins_of, gathered_basins, merge_small_basins


def uint64(values):
    return np.array(list(values), np.uint64)


def slow(sizes, edges, size_threshold, min_affinity):
    """The definition: a map of ids, from sizes {id: voxels} and edges {(u, v): affinity}."""
    root = {i: i for i in sizes}
    sizes = dict(sizes)

    def find(i):
        while root[i] != i:
            i = root[i]
        return i

    for (u, v), affinity in sorted(edges.items(), key=lambda edge: (-edge[1], edge[0])):
        a, b = sorted((find(u), find(v)))
        if affinity >= min_affinity and a != b and min(sizes[a], sizes[b]) < size_threshold:
            root[b] = a
            sizes[a] += sizes[b]
    return {i: find(i) for i in root}


class Line:
    """Supervoxels in a line of cells: some lie in several, edges lie in one cell or across the border of two."""

    def __init__(self, rng, nodes, cells, levels):
        self.ids = [int(i) for i in np.sort(rng.choice(2**40, nodes, replace=False)) + 1]
        first = rng.integers(0, cells, nodes)
        last = np.minimum(first + rng.choice([0, 0, 0, 1, 2], nodes), cells - 1)
        self.voxels = [{} for _ in range(cells)]
        self.inside, self.across = [{} for _ in range(cells)], [{} for _ in range(cells)]
        self.both = [set() for _ in range(cells + 1)]
        for i, a, b in zip(self.ids, first, last, strict=True):
            for cell in range(a, b + 1):
                self.voxels[cell][i] = int(rng.integers(1, 9))
            for border in range(a + 1, b + 1):
                self.both[border].add(i)
        for _ in range(int(rng.integers(0, 4 * nodes))):
            cell = int(rng.integers(0, cells))
            here = sorted(self.voxels[cell])
            before = sorted(self.voxels[cell - 1]) if cell and rng.random() < 0.4 else None
            if not here or (before is not None and not before):
                continue
            u, v = sorted((int(rng.choice(here)), int(rng.choice(here if before is None else before))))
            edges = self.inside[cell] if before is None else self.across[cell]
            if u != v:
                edges[u, v] = max(edges.get((u, v), 0), int(rng.integers(1, levels + 1)))

    def whole(self):
        sizes, edges = defaultdict(int), {}
        for cell in self.voxels:
            for i, voxels in cell.items():
                sizes[i] += voxels
        for part in self.inside + self.across:
            for pair, affinity in part.items():
                edges[pair] = max(edges.get(pair, 0), affinity)
        return sizes, edges

    def border(self, cell):
        if not 0 < cell < len(self.voxels):
            return set()
        return self.both[cell] | {i for pair in self.across[cell] for i in pair}


def edges_of(edges):
    pairs = sorted(edges)
    u, v = uint64(pair[0] for pair in pairs), uint64(pair[1] for pair in pairs)
    return BasinEdges(u, v, u, v, np.array([edges[p] for p in pairs], np.uint8), np.zeros(len(pairs), np.bool_))


def up(line, first, stop, limits):
    """What the cells from first to stop make of it: the result, and those of its two halves."""
    open_ids = uint64(sorted(line.border(first) | line.border(stop)))
    if stop - first == 1:
        voxels = line.voxels[first]
        basins = basins_of(uint64(sorted(voxels)), np.array([voxels[i] for i in sorted(voxels)], np.int64), open_ids)
        return merge_small_basins(basins, edges_of(line.inside[first]), **limits), ()
    middle = (first + stop + 1) // 2
    halves = up(line, first, middle, limits), up(line, middle, stop, limits)
    edges = [*(half[0].edges for half in halves), edges_of(line.across[middle])]
    basins, joined = gathered_basins([half[0].basins for half in halves], edges, open_ids)
    return merge_small_basins(basins, joined, **limits), halves


def down(node, above, found):
    result, halves = node
    pairs = zip(result.keys.tolist(), result.values.tolist(), strict=True)
    final = {key: above.get(value, value) for key, value in pairs}
    for half in halves:
        down(half, final, found)
    if not halves:
        for key, value in final.items():
            assert found.setdefault(key, value) == value
    return found


lines = {
    "seed": st.integers(0, 2**32 - 1),
    "nodes": st.integers(1, 40),
    "cells": st.integers(1, 9),
    "levels": st.integers(1, 5),
    "size_threshold": st.integers(0, 30),
    "min_affinity": st.integers(1, 3),
}


@settings(max_examples=500)
@given(**lines)
def test_parts_decide_as_the_whole_would(*, seed, nodes, cells, levels, size_threshold, min_affinity):
    line = Line(np.random.default_rng(seed), nodes, cells, levels)
    root = up(line, 0, cells, {"size_threshold": size_threshold, "min_affinity": min_affinity})
    assert len(root[0].basins) == len(root[0].edges) == 0
    sizes, edges = line.whole()
    assert down(root, {}, {}) == slow(sizes, edges, size_threshold, min_affinity)


def graph_of(rows):
    u, v, affinity = (list(column) for column in zip(*rows, strict=True))
    ones, largest = np.ones(len(rows), np.int64), np.array(affinity, np.uint8)
    return RegionGraph.aggregated(uint64(u), uint64(v), largest.astype(np.int64), ones, largest)


def test_a_small_basin_joins_across_its_largest_affinity():
    graph = graph_of([(1, 2, 120), (2, 3, 110), (1, 3, 100)])
    basins = basins_of(uint64([1, 2, 3]), np.array([50, 3, 40]), uint64([]))
    done = merge_small_basins(basins, BasinEdges.of(graph), size_threshold=10, min_affinity=50)
    assert done.values.tolist() == [1, 1, 3]
    assert len(done.basins) == 0


def test_what_hangs_on_something_open_goes_up_and_nothing_else():
    # 1 is open and small; 2 joins it whatever it is; 4 has the size, so it takes in 5; 6 and 7 are far from it all
    graph = graph_of([(1, 2, 250), (2, 4, 240), (4, 5, 230), (6, 7, 220)])
    basins = basins_of(uint64([1, 2, 4, 5, 6, 7]), np.array([2, 3, 90, 4, 5, 6]), uint64([1, 99]))
    done = merge_small_basins(basins, BasinEdges.of(graph), size_threshold=10, min_affinity=1)
    assert done.basins.ids.tolist() == [1, 2, 4]
    assert done.basins.voxels.tolist() == [2, 3, 94]
    assert done.basins.open.tolist() == [True, False, False]
    assert done.edges.joined.tolist() == [True, False]
    assert dict(zip(done.keys.tolist(), done.values.tolist(), strict=True)) == {1: 1, 2: 2, 4: 4, 5: 4, 6: 6, 7: 6}


def test_a_smaller_id_that_vanishes_in_an_open_basin_is_its_label_in_the_end():
    basins = basins_of(uint64([3, 8]), np.array([2, 90]), uint64([8]))
    low = merge_small_basins(basins, BasinEdges.of(graph_of([(3, 8, 9)])), size_threshold=10, min_affinity=1)
    assert (low.values.tolist(), low.basins.ids.tolist(), low.basins.labels.tolist()) == ([8, 8], [8], [3])
    basins, edges = gathered_basins([low.basins], [low.edges], uint64([]))
    assert merge_small_basins(basins, edges, size_threshold=10, min_affinity=1).values.tolist() == [3]


def test_a_plateau_around_a_hub_takes_no_quadratic_time():
    leaves = 300_000
    ids = np.arange(1, 2 + leaves, dtype=np.uint64)
    ones = np.ones(leaves, np.int64)
    graph = RegionGraph(np.ones(leaves, np.uint64), ids[1:], 255 * ones, ones, np.full(leaves, 255, np.uint8))
    basins = basins_of(ids, np.ones(leaves + 1, np.int64), uint64([]))
    done = merge_small_basins(basins, BasinEdges.of(graph), size_threshold=2, min_affinity=1)
    assert (done.values == 1).all()


def test_wrong_input_is_refused():
    basins = basins_of(uint64([1, 2]), np.array([1, 1]), uint64([]))
    edges = BasinEdges.of(graph_of([(1, 2, 3)]))
    with pytest.raises(InvalidInput, match="min affinity"):
        merge_small_basins(basins, edges, size_threshold=1, min_affinity=0)
    with pytest.raises(InvalidInput, match="size threshold"):
        merge_small_basins(basins, edges, size_threshold=-1, min_affinity=1)
    with pytest.raises(InvalidInput, match="3 is not"):
        merge_small_basins(basins, BasinEdges.of(graph_of([(1, 3, 3)])), size_threshold=1, min_affinity=1)
    twice = edges.selected(np.array([0, 0]))
    with pytest.raises(InvalidVolume, match="sorted"):
        merge_small_basins(basins, twice, size_threshold=1, min_affinity=1)
    nothing = merge_small_basins(
        Basins(uint64([]), uint64([]), np.empty(0, np.int64), np.empty(0, np.bool_)),
        edges.selected(np.zeros(1, np.bool_)),
        size_threshold=1,
        min_affinity=1,
    )
    assert nothing.keys.size == 0
