"""Linkage by mean affinity against a slow global queue, whole and divided into a hierarchy of parts."""

from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InvalidInput, InvalidVolume
from models.segmentation import linkage
from models.segmentation.agglomeration import agglomerate
from models.segmentation.merge_tree import MergeTree, cut
from models.segmentation.region_graph import RegionGraph
from models.segmentation.relabel import relabelled
from models.segmentation.segments import Segments

BASE = 2**33


@contextmanager
def hubs_beyond(edges):
    """Let nodes with more than so many edges be hubs; small graphs have none otherwise."""
    usual, linkage.HUB_EDGES = linkage.HUB_EDGES, edges
    try:
        yield
    finally:
        linkage.HUB_EDGES = usual


hub_edges = st.sampled_from([0, 1, 3, linkage.HUB_EDGES])


def uint64(values):
    return np.array(list(values), np.uint64)


def graph_of(rows):
    u, v, total, faces, largest = (list(column) for column in zip(*rows, strict=True)) if rows else ([],) * 5
    columns = np.array(total, np.int64), np.array(faces, np.int64), np.array(largest, np.uint8)
    return RegionGraph.aggregated(uint64(u), uint64(v), *columns)


def rows_of(graph):
    columns = (graph.u, graph.v, graph.affinity_sum, graph.face_count, graph.affinity_max)
    return list(zip(*(column.tolist() for column in columns), strict=True))


class GlobalQueue:
    """The definition, in the plainest Python: look at all edges, merge the best, look again."""

    def __init__(self, rows, ids, limit):
        self.edges = {frozenset((u, v)): (total, faces, largest) for u, v, total, faces, largest in rows}
        self.comparison, self.limit, self.merges = {i: i for i in ids}, limit, []

    def run(self):
        while True:
            best = [(-Fraction(edge[0], edge[1]), self.tie(pair), pair) for pair, edge in self.edges.items()]
            best = [entry for entry in best if -entry[0] >= self.limit]
            if not best:
                return self
            a, b = sorted(min(best, key=lambda entry: entry[:2])[2])
            self.merges.append((a, b, *self.edges[frozenset((a, b))][:2]))
            self.merge(a, b)

    def tie(self, pair):
        return sorted(self.comparison[i] for i in pair)

    def merge(self, a, b):
        edges = {}
        for old_pair, edge in self.edges.items():
            pair = frozenset(a if i == b else i for i in old_pair)
            if len(pair) == 2:
                old = edges.get(pair, (0, 0, 0))
                edges[pair] = (old[0] + edge[0], old[1] + edge[1], max(old[2], edge[2]))
        self.edges = edges
        self.comparison[a] = max(self.comparison[a], self.comparison.pop(b))


def mean_queue(rows, ids, threshold):
    return GlobalQueue(rows, ids, Fraction(threshold) * 255).run()


def check(result, queue):
    merges = result.merges
    columns = (merges.a, merges.b, merges.affinity_sum, merges.face_count)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == queue.merges
    left = result.segments
    assert left.ids.tolist() == sorted(queue.comparison)
    assert left.comparison_ids.tolist() == [queue.comparison[i] for i in sorted(queue.comparison)]
    assert {frozenset(row[:2]): row[2:] for row in rows_of(result.graph)} == queue.edges


# A part: (u, v, affinity sum, faces, largest affinity, place in the hierarchy): what one box contributes to an edge.
LEAVES = 4  # places 0 to 3 are leaves, 4 and 5 the seams within their parents, 6 the seam within the root
PARENT = {0: 4, 1: 4, 2: 5, 3: 5, 4: 6, 5: 6}


@st.composite
def parts(draw):
    nodes = draw(st.integers(2, 12))
    levels = draw(st.lists(st.integers(0, 255), min_size=1, max_size=3))
    spread = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    home = rng.integers(0, LEAVES, nodes)
    rows = []
    for _ in range(draw(st.integers(1, 40))):
        u, v = rng.choice(nodes, 2, replace=False)
        faces = int(rng.integers(1, 1 + spread))
        values = rng.choice(levels, faces)
        place = int(home[u]) if home[u] == home[v] or rng.random() < 0.5 else int(rng.integers(0, 7))
        rows.append((BASE + int(u), BASE + int(v), int(values.sum()), faces, int(values.max()), place))
    leaves = [
        (BASE + i, int(home[i]) if rng.random() < 0.7 else int(rng.integers(0, LEAVES)))
        for i in range(nodes)
        for _ in range(int(rng.integers(1, 3)))
    ]
    return rows, leaves


def segments_of(ids, frozen=()):
    return Segments.of(uint64(sorted(ids)), frozen_ids=uint64(sorted(frozen)))


@settings(max_examples=200, deadline=None)
@given(parts(), st.sampled_from([0.0, 0.25, 0.5, 0.9]), hub_edges)
def test_agglomeration_equals_the_slow_queue(case, threshold, hub_edges):
    rows, leaves = case
    graph, ids = graph_of([row[:5] for row in rows]), {i for i, _ in leaves}
    with hubs_beyond(hub_edges):
        result = agglomerate(graph, threshold, segments_of(ids))
    check(result, mean_queue(rows_of(graph), ids, threshold))


def within(place, top):
    while place != top and place in PARENT:
        place = PARENT[place]
    return place == top


def hierarchical(rows, leaves, link, *, only_waiting):
    """Leaves, their parents, the root; each knows the parts in its subtree and freezes what has parts outside."""
    mapping = {i: i for i, _ in leaves}  # supervoxel: its present segment
    comparison = {i: i for i, _ in leaves}
    graphs, merges, kept = {}, [], []
    for place in range(7):
        here = [row[:5] for row in rows if row[5] == place]
        inside = [child for child, parent in PARENT.items() if parent == place]
        keys = uint64(sorted(mapping))
        new = graph_of(here).relabelled(keys, uint64(mapping[i] for i in sorted(mapping)))
        graph = RegionGraph.sum_of([new, *(graphs.pop(child) for child in inside)])
        graph = graph.relabelled(keys, uint64(mapping[i] for i in sorted(mapping)))
        outside = [i for row in rows for i in row[:2] if not within(row[5], place)]
        outside += [i for i, leaf in leaves if not within(leaf, place)]
        ids = sorted(set(graph.ids.tolist()))
        frozen = {mapping[i] for i in outside}
        segments = Segments(
            uint64(ids),
            uint64(max(comparison[j] for j in mapping if mapping[j] == i) for i in ids),
            np.array([i in frozen for i in ids], bool),
        )
        result = link(graph, segments)
        merges.append(result.merges)
        pairs = dict(zip(*(array.tolist() for array in cut(result.merges, 0)), strict=True))
        mapping = {i: pairs.get(segment, segment) for i, segment in mapping.items()}
        graphs[place] = result.waiting if only_waiting else result.graph
        kept.append(result.graph)
    return MergeTree.joined(merges), graphs[6]


@settings(max_examples=400, deadline=None)
@given(parts(), st.sampled_from([0.0, 0.25, 0.5, 0.9]), st.booleans(), hub_edges)
def test_agglomeration_of_a_hierarchy_equals_the_whole(case, threshold, only_waiting, hub_edges):
    rows, leaves = case
    graph = graph_of([row[:5] for row in rows])
    whole = agglomerate(graph, threshold, segments_of({i for i, _ in leaves}))
    with hubs_beyond(hub_edges):
        merges, left = hierarchical(rows, leaves, lambda g, s: agglomerate(g, threshold, s), only_waiting=only_waiting)
    expected = MergeTree.joined([whole.merges])
    for name in ("a", "b", "affinity_sum", "face_count"):
        np.testing.assert_array_equal(getattr(merges, name), getattr(expected, name))
    assert only_waiting or left == whole.graph


@settings(max_examples=150, deadline=None)
@given(parts(), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_scores_never_rise_and_a_cut_equals_its_own_agglomeration(case, threshold):
    graph = graph_of([row[:5] for row in case[0]])
    tree = agglomerate(graph, 0).merges
    scores = [Fraction(int(s), int(n)) for s, n in zip(tree.affinity_sum, tree.face_count, strict=True)]
    assert scores == sorted(scores, reverse=True)
    own = agglomerate(graph, threshold)
    np.testing.assert_array_equal(cut(tree, threshold, graph.ids), cut(own.merges, 0, graph.ids))
    ids, roots = cut(tree, threshold, graph.ids)
    assert np.unique(roots).tolist() == own.segments.ids.tolist()
    assert graph.relabelled(ids, roots) == own.graph


def test_the_mean_is_updated_after_each_merge():
    # 1-2 merges first; the mean of (1,2)-3 is then (200 + 0 + 0) / 3, below the threshold that 2-3 alone would reach
    graph = graph_of([(1, 2, 255, 1, 255), (2, 3, 200, 1, 200), (1, 3, 0, 2, 0), (4, 5, 1, 1, 1)])
    result = agglomerate(graph, 0.5)
    assert result.segments.ids.tolist() == [1, 3, 4, 5]
    assert rows_of(result.graph) == [(1, 3, 200, 3, 200), (4, 5, 1, 1, 1)]
    assert result.merges.scores.tolist() == [1.0]
    assert agglomerate(graph, Fraction(200, 765)).segments.ids.tolist() == [1, 4, 5]


def test_equal_means_of_huge_counts_are_compared_exactly():
    faces = 2**50
    rows = [
        (1, 2, 100 * faces, faces, 255),
        (2, 3, 100 * faces + 1, faces, 255),
        (3, 4, 100 * faces + 2, faces - 1, 255),
    ]
    result = agglomerate(graph_of(rows), 0.3)
    assert result.merges.b.tolist() == [4, 3, 2]
    tied = graph_of([(7, 9, 3 * faces, 2 * faces, 9), (2, 5, 3, 2, 3), (1, 8, 9, 6, 9)])
    assert agglomerate(tied, 0).merges.a.tolist() == [1, 2, 7]


def test_frozen_segments_stay_and_make_their_suitors_wait():
    graph = graph_of([(1, 2, 250, 1, 250), (2, 3, 240, 1, 240), (3, 4, 230, 1, 230), (5, 6, 220, 1, 220)])
    result = agglomerate(graph, 0.5, segments_of(range(1, 7), frozen=[1]))
    assert result.merges.b.tolist() == [6]
    assert result.segments.frozen.tolist() == [True, True, True, True, False]
    assert [row[:2] for row in rows_of(result.waiting)] == [(1, 2), (2, 3), (3, 4)]


def test_a_tie_against_an_open_seam_waits():
    rows = [(1, 2, 100, 1, 100), (2, 3, 100, 1, 100)]
    ids = uint64([1, 2, 3])
    closed = Segments(ids, ids, np.array([False, False, True]))
    assert len(agglomerate(graph_of(rows), 0.1, closed).merges) == 1
    open_seam = Segments(ids, uint64([1, 2, 0]), np.array([False, False, True]))
    assert len(agglomerate(graph_of(rows), 0.1, open_seam).merges) == 0


def test_a_plateau_around_a_hub_takes_no_quadratic_time():
    leaves = 200_000
    v = np.arange(2, 2 + leaves, dtype=np.uint64)
    ones = np.ones(leaves, np.int64)
    graph = RegionGraph(np.ones(leaves, np.uint64), v, 255 * ones, ones, np.full(leaves, 255, np.uint8))
    assert len(agglomerate(graph, 0.5).merges) == leaves  # minutes, were every edge touched at every merge


@pytest.mark.parametrize("seed", range(4))
def test_large_graphs_give_the_same_with_and_without_hubs(seed):
    rng = np.random.default_rng(seed)
    ends = np.minimum(rng.integers(1, 400, (6000, 2)), rng.integers(1, 4000, (6000, 2)))  # few of high degree
    faces = rng.integers(1, 4, 6000)
    values = rng.integers(0, 4, 6000) * 85
    columns = ends[:, 0].astype(np.uint64), ends[:, 1].astype(np.uint64), faces * values, faces
    graph = RegionGraph.aggregated(*columns, values.astype(np.uint8))
    segments = Segments.of(graph.ids, frozen_ids=graph.ids[:: 29 if seed % 2 else 10**6])
    results = []
    for hub_edges in (2, 20, 10**6):
        with hubs_beyond(hub_edges):
            results.append(agglomerate(graph, 0.3, segments))
    one = results[0]
    assert len(one.merges) > 10
    for two in results[1:]:
        np.testing.assert_array_equal(one.merges.a, two.merges.a)
        np.testing.assert_array_equal(one.merges.b, two.merges.b)
        np.testing.assert_array_equal(one.segments.frozen, two.segments.frozen)
        assert one.graph == two.graph


def test_nothing_to_merge():
    assert len(agglomerate(RegionGraph.empty(), 0.5).merges) == 0
    result = agglomerate(RegionGraph.empty(), 0.5, segments_of([5, BASE]))
    assert result.segments.ids.tolist() == [5, BASE]
    assert relabelled(uint64([5]), *cut(result.merges, 1), missing="keep").tolist() == [5]
    assert len(MergeTree.joined([])) == 0


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf"), "high", None])
def test_thresholds_outside_are_refused(threshold):
    with pytest.raises(InvalidInput, match="from 0 to 1"):
        agglomerate(graph_of([(1, 2, 3, 1, 3)]), threshold)


def test_wrong_input_is_refused():
    graph = graph_of([(1, 2, 3, 1, 3)])
    with pytest.raises(InvalidInput, match="2 is not"):
        agglomerate(graph, 0.5, segments_of([1]))
    with pytest.raises(InvalidVolume, match="faces"):
        agglomerate(graph_of([(1, 2, 3, 2**54, 3)]), 0.5)
    ids, ones, free = uint64([1, 2]), np.ones(2, np.int64), np.zeros(2, bool)
    for broken in [(ids[::-1], ids, free), (ids, uint64([2, 2]), free), (ids, ids.astype(np.int64), free)]:
        with pytest.raises(InvalidVolume, match="segments: expected"):
            Segments(*broken)
    with pytest.raises(InvalidVolume, match="a < b"):
        MergeTree(ids, ids, ones, ones)
    with pytest.raises(InvalidVolume, match="uint64"):
        MergeTree(ones, ids, ones, ones)
