"""Agglomeration over the octree gives what one process would that sees the whole volume, merge for merge."""

from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline_runs import merges_of, region_graph_of, run_phase_in_process

from models.geometry import Box, Triple
from models.segmentation.agglomeration import agglomerate
from models.segmentation.merge_tree import MergeTree, cut
from models.segmentation.region_graph import RegionGraph, region_graph, segment_sizes
from models.segmentation.relabel import relabelled
from models.segmentation.segments import Segments
from models.segmentation.small_basins import merge_small_basins
from models.segmentation.union_find import union_find
from models.segmentation.watershed import watershed
from services.pipelines.segment import create_arrays
from services.run import AgglomerationOptions, Run, SegmentOptions, WatershedOptions, stage_keys

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
        keys=stage_keys("given", options, ()),
    )
    create_arrays(run, "predict")
    run.volume("affinities.zarr", writable=True).write(run.domain, affinities)
    for phase in ("watershed", "agglomerate", "relabel"):
        run_phase_in_process(run, phase, rng=rng)
    return run


def collected(run: Run) -> Result:
    arrays = (run.volume(name).read(run.domain) for name in ("supervoxels.zarr", "segmentation.zarr"))
    return Result(*arrays, region_graph_of(run), merges_of(run, "basins"), merges_of(run, "merges"))


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
