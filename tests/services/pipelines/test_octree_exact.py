"""Agglomeration over the octree gives what one process would that sees the whole volume, merge for merge."""

from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.geometry import Box, Triple
from models.segmentation.agglomeration import agglomerate
from models.segmentation.merge_tree import MergeTree, cut
from models.segmentation.region_graph import RegionGraph, region_graph, segment_sizes
from models.segmentation.relabel import relabelled
from models.segmentation.segments import Segments
from models.segmentation.small_basins import merge_small_basins
from models.segmentation.union_find import union_find
from models.segmentation.watershed import watershed
from services.pipelines.segment import agglomeration_stages, create_arrays
from services.pipelines.stage import Stage
from services.run import AgglomerationOptions, Run, SegmentOptions, WatershedOptions, stage_keys
from services.stages.node_tables import read_faces, read_graph, read_merges
from services.stages.relabel import relabel
from services.stages.seams import seams
from services.stages.watershed import watershed as watershed_stage

Affinities = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Result:
    """What both ways are compared by."""

    supervoxels: NDArray[np.uint64]
    segments: NDArray[np.uint64]
    graph: RegionGraph
    basins: MergeTree
    merges: MergeTree


def whole(affinities: Affinities, options: SegmentOptions) -> Result:
    low, high = max(1, round(255 * options.watershed.low)), round(255 * options.watershed.high)
    supervoxels = watershed(affinities, low=low, high=high)
    graph = region_graph(affinities, supervoxels)
    ids, sizes = segment_sizes(supervoxels)
    settings = options.agglomeration
    basins = merge_small_basins(
        graph,
        Segments.of(ids, sizes),
        size_threshold=settings.basin_voxels,
        min_affinity=max(1, round(255 * settings.basin_affinity)),
    )
    left = basins.segments
    merges = agglomerate(basins.graph, settings.floor, Segments.of(left.ids, left.sizes)).merges
    basin_of = relabelled(supervoxels, *union_find(basins.merges.a, basins.merges.b), missing="keep")
    segments = relabelled(basin_of, *cut(merges, settings.threshold), missing="keep")
    return Result(supervoxels, segments, graph, MergeTree.joined([basins.merges]), MergeTree.joined([merges]))


def in_chunks(
    affinities: Affinities, options: SegmentOptions, chunk: Triple, out: str, rng: np.random.Generator
) -> Run:
    z, y, x = affinities.shape[1:]
    run = Run(
        image="",
        out=out,
        model="",
        model_name="",
        model_sha256="",
        voxel_size_nm=(10, 10, 10),
        offset_voxels=(0, 0, 0),
        volume_shape=(z, y, x),
        domain=Box.from_shape((z, y, x)),
        chunk_shape=chunk,
        threads=1,
        options=options,
        keys=stage_keys({}, options, chunk, ()),
    )
    create_arrays(run)
    run.volume("affinities.zarr", writable=True).write(run.domain, affinities)
    grid = tuple(run.grid)
    stages = [
        Stage(run.ledger("watershed"), grid, watershed_stage, (run,)),
        Stage(run.ledger("seams"), grid, seams, (run,)),
        *agglomeration_stages(run),
        Stage(run.ledger("relabel"), grid, relabel, (run,)),
    ]
    for stage in stages:
        apply = stage.make(*stage.arguments)
        for i in rng.permutation(len(stage.chunks)):
            apply(stage.chunks[i])
    return run


def collected(run: Run) -> Result:
    nodes = [(level, node) for level in range(run.octree.depth + 1) for node in run.octree.nodes(level)]
    edges = [read_graph(run.folder, f"region_graph/edges/{chunk.name}") for chunk in run.grid]
    faces = [read_faces(run.folder, f"region_graph/faces/{chunk.name}").graph for chunk in run.grid]
    trees = {
        name: MergeTree.joined(
            read_merges(run.folder, f"agglomeration/{name}/{level}/{node.name}") for level, node in nodes
        )
        for name in ("basins", "merges")
    }
    arrays = (run.volume(name).read(run.domain) for name in ("supervoxels.zarr", "segmentation.zarr"))
    return Result(*arrays, RegionGraph.sum_of([*edges, *faces]), trees["basins"], trees["merges"])


def assert_same(found: Result, expected: Result) -> None:
    np.testing.assert_array_equal(found.supervoxels, expected.supervoxels)
    assert found.graph == expected.graph
    for name in ("basins", "merges"):
        for field in ("a", "b", "affinity_sum", "face_count"):
            np.testing.assert_array_equal(getattr(getattr(found, name), field), getattr(getattr(expected, name), field))
    np.testing.assert_array_equal(found.segments, expected.segments)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    extent=st.tuples(*[st.tuples(st.integers(2, 9), st.sampled_from([1, 1, 2, 2, 3]))] * 3),
    levels=st.integers(2, 12),
    basin_voxels=st.integers(0, 30),
    threshold=st.sampled_from([0.05, 0.2, 0.4, 0.6]),
)
def test_random_volumes_with_ties_and_plateaus(
    seed: int, extent: tuple[tuple[int, int], ...], levels: int, basin_voxels: int, threshold: float
) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(n for n, _ in extent)
    chunk = tuple(-(-n // parts) for n, parts in extent)
    affinities = (rng.integers(0, levels, (3, *shape)) * (255 // (levels - 1))).astype(np.uint8)
    affinities[:, rng.random(shape) < 0.1] = 0
    options = SegmentOptions(
        watershed=WatershedOptions(low=0.1, high=0.97),
        agglomeration=AgglomerationOptions(basin_voxels=basin_voxels, threshold=threshold),
        skeletons=None,
    )
    run = in_chunks(affinities, options, chunk, f"memory://octree-{seed}-{rng.integers(2**62)}", rng)
    try:
        assert_same(collected(run), whole(affinities, options))
    finally:
        run.folder.remove("")
