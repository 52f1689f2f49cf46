"""Region graphs as values: rules, sums, relabelling; segment sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InvalidVolume
from models.segmentation.region_graph import RegionGraph, face_graph, region_graph, segment_sizes

BIG = 2**40


def graph_of(*edges):
    u, v, total, faces, largest = zip(*edges, strict=True)
    ids = np.array(u, np.uint64), np.array(v, np.uint64)
    return RegionGraph.aggregated(*ids, np.array(total), np.array(faces), np.array(largest, np.uint8))


@st.composite
def graphs(draw):
    affinities = draw(st.lists(st.integers(0, 255), min_size=1, max_size=4))
    pair = st.tuples(st.integers(BIG, BIG + 5), st.integers(BIG, BIG + 5), st.sampled_from(affinities))
    return graph_of(*[(u, v, a, 1, a) for u, v, a in draw(st.lists(pair, min_size=1, max_size=20))])


@settings(max_examples=100, deadline=None)
@given(st.lists(graphs(), max_size=4), st.randoms())
def test_sums_do_not_depend_on_grouping_or_order(parts, random):
    total = RegionGraph.sum_of(parts)
    shuffled = list(parts)
    random.shuffle(shuffled)
    assert RegionGraph.sum_of(shuffled) == total
    half = len(shuffled) // 2
    assert RegionGraph.sum_of([RegionGraph.sum_of(shuffled[:half]), RegionGraph.sum_of(shuffled[half:])]) == total
    assert sum(int(part.face_count.sum()) for part in parts) == int(total.face_count.sum())
    assert sum(int(part.affinity_sum.sum()) for part in parts) == int(total.affinity_sum.sum())


def test_relabelling_drops_inner_edges_and_adds_parallel_ones():
    graph = graph_of((1, 2, 100, 1, 100), (2, BIG, 30, 2, 20), (1, BIG, 50, 1, 50), (BIG, BIG + 1, 9, 1, 9))
    merged = graph.relabelled(np.array([2], np.uint64), np.array([1], np.uint64))
    assert merged == graph_of((1, BIG, 80, 3, 50), (BIG, BIG + 1, 9, 1, 9))
    assert merged.ids.tolist() == [1, BIG, BIG + 1]


def test_face_graph_counts_every_face_once_and_skips_background():
    above = np.array([[BIG, BIG, 5], [0, 5, 5]], np.uint64)
    below = np.array([[BIG, 7, 7], [7, 7, 0]], np.uint64)
    affinities = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    assert face_graph(above, below, affinities) == graph_of((7, BIG, 2, 1, 2), (5, 7, 8, 2, 5))


def test_many_edges_make_the_tables_grow():
    labels = (1 + np.arange(24**3, dtype=np.uint64)).reshape(24, 24, 24)
    affinities = np.full((3, 24, 24, 24), 7, np.uint8)
    graph = region_graph(affinities, labels)
    assert len(graph) == 3 * 23 * 24 * 24
    assert set(graph.affinity_sum.tolist()) == {7}
    ids, sizes = segment_sizes(labels)
    np.testing.assert_array_equal(ids, labels.ravel())
    assert (sizes == 1).all()


def test_region_graph_reads_views_without_a_copy():
    rng = np.random.default_rng(0)
    affinities = rng.integers(0, 256, (3, 6, 7, 8), np.uint8)
    labels = rng.integers(0, 4, (6, 7, 8)).astype(np.uint64)
    inner = (slice(1, 5), slice(2, 7), slice(1, 8))
    view = region_graph(affinities[(slice(None), *inner)], labels[inner])
    assert view == region_graph(affinities[(slice(None), *inner)].copy(), labels[inner].copy())


def test_segment_sizes_leave_background_out():
    labels = np.array([[0, BIG, 3], [3, 3, 0]], np.uint64)
    ids, sizes = segment_sizes(labels)
    assert (ids.tolist(), sizes.tolist()) == ([3, BIG], [3, 1])
    assert segment_sizes(np.zeros((2, 2), np.uint64))[0].size == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": np.array([3, 1], np.uint64)}, "u < v"),
        ({"u": np.array([0, 1], np.uint64)}, "u < v"),
        ({"v": np.array([2, 2], np.uint64)}, "sorted"),
        ({"u": np.array([1, 1], np.int64)}, "uint64"),
        ({"face_count": np.array([1, 0])}, "counts"),
        ({"affinity_sum": np.array([1])}, "shape"),
        ({"affinity_max": np.array([1, 9], np.uint8)}, "max"),
    ],
)
def test_broken_graphs_are_refused(change, message):
    columns = {
        "u": np.array([1, 1], np.uint64),
        "v": np.array([2, 3], np.uint64),
        "affinity_sum": np.array([4, 5]),
        "face_count": np.array([2, 1]),
        "affinity_max": np.array([3, 5], np.uint8),
    }
    assert len(RegionGraph(**columns)) == 2
    with pytest.raises(InvalidVolume, match=message):
        RegionGraph(**(columns | change))


def test_wrong_inputs_are_refused():
    affinities, labels = np.zeros((3, 2, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint64)
    plane = np.zeros((2, 3), np.uint64)
    with pytest.raises(InvalidVolume, match="uint8"):
        region_graph(affinities.astype(np.float32), labels)
    with pytest.raises(InvalidVolume, match=r"\(3, 2, 3, 5\)"):
        region_graph(affinities, np.zeros((2, 3, 5), np.uint64))
    with pytest.raises(InvalidVolume, match="uint64"):
        region_graph(affinities, labels.astype(np.int64))
    with pytest.raises(InvalidVolume, match="one shape"):
        face_graph(plane, plane, np.zeros((3, 2), np.uint8))
    with pytest.raises(InvalidVolume, match="uint8"):
        face_graph(plane, plane, plane)
    with pytest.raises(InvalidVolume, match="uint64"):
        segment_sizes(labels.astype(np.uint32))
