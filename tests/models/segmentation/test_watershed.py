"""Watershed and region graph: hand-made cases, a slow reference, and equality over random chunkings."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InvalidInput, InvalidVolume
from models.geometry import Box, ChunkGrid
from models.segmentation.region_graph import RegionGraph, face_graph, region_graph
from models.segmentation.relabel import relabelled
from models.segmentation.union_find import union_find
from models.segmentation.watershed import Face, seam_pairs, watershed, watershed_chunk


def reference_watershed(affinities, low, high, origin, volume_shape):
    """Every edge as a tuple (-affinity, number, p, q); Python lists, no cleverness."""
    shape = affinities.shape[1:]
    number = {p: int(np.ravel_multi_index(np.add(p, origin), volume_shape)) for p in np.ndindex(*shape)}
    incident = {p: [] for p in number}
    for p, c in product(number, range(3)):
        if p[c] > 0:
            q = tuple(int(i) for i in np.subtract(p, np.eye(3, dtype=int)[c]))
            edge = (-int(affinities[(c, *p)]), 3 * number[p] + c, p, q)
            incident[p].append(edge)
            incident[q].append(edge)
    component = {p: {p} for p in number}

    def join(p, q):
        if component[p] is not component[q]:
            component[p] |= component[q]
            for r in component[q]:
                component[r] = component[p]

    background = set()
    for p, edges in incident.items():
        if not edges or -min(edges)[0] < low:
            background.add(p)
            continue
        for edge in edges:
            if edge == min(edges) or -edge[0] >= high:
                join(edge[2], edge[3])
    labels = np.zeros(shape, np.uint64)
    for p in number:
        labels[p] = 0 if p in background else 1 + min(number[q] for q in component[p])
    return labels


def reference_graph(affinities, labels):
    edges = {}
    for p, c in product(np.ndindex(*labels.shape), range(3)):
        if p[c] > 0:
            q = tuple(np.subtract(p, np.eye(3, dtype=int)[c]))
            pair = tuple(sorted((int(labels[p]), int(labels[q]))))
            if pair[0] and pair[0] != pair[1]:
                edges.setdefault(pair, []).append(int(affinities[(c, *p)]))
    return [(*pair, sum(a), len(a), max(a)) for pair, a in sorted(edges.items())]


def rows(graph):
    columns = (graph.u, graph.v, graph.affinity_sum, graph.face_count, graph.affinity_max)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def chunked(affinities, chunk_shape, origin, volume_shape, *, low, high):
    """The chunk kernels over a grid, seams closed by union-find: labels and region graph of the whole."""
    domain = Box.from_shape(affinities.shape[1:], origin)
    chunks, graphs, first, second = {}, [], [], []
    for chunk in ChunkGrid(domain, chunk_shape):
        read = chunk.box.grown((1, 1, 1)).intersection(domain)
        part = affinities[(slice(None), *read.slices(origin))]
        result = watershed_chunk(part, read, chunk.box, domain, volume_shape, low=low, high=high)
        chunks[chunk.index] = (chunk.box, result)
        graphs.append(region_graph(affinities[(slice(None), *chunk.box.slices(origin))], result.fragments))
    for index, (_, result) in chunks.items():
        for axis, face in enumerate(result.faces):
            assert (face is None) == (index[axis] == 0)
            if face is None:
                continue
            before = chunks[tuple(i - (a == axis) for a, i in enumerate(index))][1].fragments
            ids, ids_before = result.fragments.take(0, axis), before.take(-1, axis)
            pairs = seam_pairs(face, ids, ids_before)
            first.append(pairs[0])
            second.append(pairs[1])
            graphs.append(face_graph(ids, ids_before, face.affinity))
    none = np.empty(0, np.uint64)
    keys, values = union_find(np.concatenate([none, *first]), np.concatenate([none, *second]))
    labels = np.zeros(domain.shape, np.uint64)
    for box, result in chunks.values():
        labels[box.slices(origin)] = relabelled(result.fragments, keys, values, missing="keep")
    return labels, RegionGraph.sum_of(graph.relabelled(keys, values) for graph in graphs)


@st.composite
def maps(draw, sides=5):
    shape = draw(st.tuples(*[st.integers(1, sides)] * 3))
    levels = draw(st.lists(st.integers(0, 255), min_size=1, max_size=4))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).choice(np.array(levels, np.uint8), size=(3, *shape))


thresholds = st.tuples(st.integers(1, 256), st.integers(1, 256)).map(sorted)


@settings(max_examples=150, deadline=None)
@given(maps(), thresholds, st.tuples(*[st.integers(0, 3)] * 3), st.tuples(*[st.integers(0, 3)] * 3))
def test_watershed_and_graph_equal_the_slow_reference(affinities, limits, origin, beyond):
    volume = tuple(int(n) for n in np.add(np.add(affinities.shape[1:], origin), beyond))
    labels = watershed(affinities, low=limits[0], high=limits[1], origin=origin, volume_shape=volume)
    np.testing.assert_array_equal(labels, reference_watershed(affinities, *limits, origin, volume))
    assert rows(region_graph(affinities, labels)) == reference_graph(affinities, labels)


@settings(max_examples=250, deadline=None)
@given(maps(sides=9), thresholds, st.tuples(*[st.integers(1, 6)] * 3), st.tuples(*[st.integers(0, 2**12)] * 3))
def test_every_chunking_gives_the_same_labels_and_graph(affinities, limits, chunk_shape, origin):
    low, high = limits
    volume = (2**13, 2**14, 2**15)
    whole = watershed(affinities, low=low, high=high, origin=origin, volume_shape=volume)
    labels, graph = chunked(affinities, chunk_shape, origin, volume, low=low, high=high)
    np.testing.assert_array_equal(labels, whole)
    assert graph == region_graph(affinities, whole)


def test_two_basins_meet_at_the_weakest_edge():
    affinities = np.zeros((3, 1, 1, 6), np.uint8)
    affinities[2, 0, 0] = [255, 200, 210, 90, 210, 200]  # the first has no partner
    labels = watershed(affinities, low=50, high=256)
    np.testing.assert_array_equal(labels[0, 0], [1, 1, 1, 4, 4, 4])
    assert rows(region_graph(affinities, labels)) == [(1, 4, 90, 1, 90)]


def test_ids_are_voxel_indices_of_the_volume_beyond_32_bits():
    affinities = np.full((3, 2, 3, 4), 255, np.uint8)
    labels = watershed(affinities, low=1, high=255, origin=(9000, 7, 5), volume_shape=(10000, 1000, 1000))
    assert labels.dtype == np.uint64
    assert set(labels.ravel().tolist()) == {1 + (9000 * 1000 + 7) * 1000 + 5}


def test_a_plateau_of_equal_affinities_follows_edge_numbers():
    affinities = np.full((3, 1, 1, 5), 100, np.uint8)
    # every voxel but the first prefers its own edge (smaller number), so all join
    assert set(watershed(affinities, low=100, high=256).ravel().tolist()) == {1}


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 2), (3, 1, 5)])
def test_weak_edges_leave_background(shape):
    affinities = np.full((3, *shape), 49, np.uint8)
    assert not watershed(affinities, low=50, high=200).any()
    assert len(region_graph(affinities, np.zeros(shape, np.uint64))) == 0


def test_a_voxel_joined_only_across_a_face_is_no_background():
    affinities = np.zeros((3, 2, 1, 1), np.uint8)
    affinities[0, 1] = 200
    labels, _ = chunked(affinities, (1, 1, 1), (0, 0, 0), (2, 1, 1), low=100, high=256)
    assert labels.ravel().tolist() == [1, 1]


BOX = Box((0, 0, 0), (4, 4, 4))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"affinities": np.zeros((3, 4, 4, 4), np.float32)}, "uint8"),
        ({"affinities": np.zeros((2, 4, 4, 4), np.uint8)}, r"\(3, z, y, x\)"),
        ({"affinities": np.zeros((3, 4, 4, 5), np.uint8)}, "extent"),
        ({"core": Box((0, 0, 0), (2, 2, 2))}, "read box"),
        ({"core": Box((1, 1, 1), (1, 1, 1))}, "core"),
        ({"core": Box((3, 0, 0), (5, 4, 4))}, "core"),
        ({"volume_shape": (4, 4, 3)}, "domain"),
        ({"volume_shape": (2**30, 2**20, 2**20)}, "2\\*\\*63"),
        ({"low": 0}, "thresholds"),
        ({"low": 201}, "thresholds"),
        ({"high": 257}, "thresholds"),
        ({"high": 200.5}, "thresholds"),
    ],
)
def test_watershed_refuses_what_does_not_fit(changed, message):
    arguments = {
        "affinities": np.zeros((3, 4, 4, 4), np.uint8),
        "read_box": BOX,
        "core": BOX,
        "domain": BOX,
        "volume_shape": (4, 4, 4),
        "low": 10,
        "high": 200,
    } | changed
    with pytest.raises(InvalidInput, match=message):
        watershed_chunk(**arguments)


def test_seam_pairs_refuses_planes_of_another_face():
    face = Face(np.ones((2, 3), bool), np.zeros((2, 3), np.uint8))
    ids = np.ones((2, 3), np.uint64)
    with pytest.raises(InvalidVolume, match="background"):
        seam_pairs(face, ids, np.zeros((2, 3), np.uint64))
    with pytest.raises(InvalidVolume, match="ids_before"):
        seam_pairs(face, ids, np.ones((3, 2), np.uint64))
    with pytest.raises(InvalidVolume, match="ids:"):
        seam_pairs(face, ids.astype(np.int64), ids)
