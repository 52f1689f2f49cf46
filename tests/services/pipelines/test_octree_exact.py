"""Agglomeration over the octree gives what one process would that sees the whole volume, merge for merge."""

from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline_runs import given_affinities, merges_of, region_graph_of, run_phase_in_process

from models.geometry import Triple
from models.segmentation.hierarchy import IdMap
from models.segmentation.merge_tree import MergeTree
from models.segmentation.region_graph import RegionGraph
from models.segmentation.whole import segment_whole
from services.pipelines.segment import create_arrays
from services.run import AgglomerationOptions, Run, SegmentOptions, WatershedOptions
from services.stages.node_tables import read_map

Affinities = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Result:
    """What both ways are compared by."""

    supervoxels: NDArray[np.uint64]
    segments: NDArray[np.uint64]
    graph: RegionGraph
    ids: NDArray[np.uint64]
    basins: NDArray[np.uint64]
    merges: MergeTree


def whole(affinities: Affinities, options: SegmentOptions) -> Result:
    low, high = max(1, round(255 * options.watershed.low)), round(255 * options.watershed.high)
    settings = options.agglomeration
    found = segment_whole(
        affinities,
        low=low,
        high=high,
        basin_voxels=settings.basin_voxels,
        basin_affinity=max(1, round(255 * settings.basin_affinity)),
        floor=settings.floor,
    )
    return Result(
        found.supervoxels,
        found.segments_at(settings.threshold),
        found.graph,
        found.ids,
        found.basins,
        MergeTree.joined([found.merges]),
    )


def in_chunks(
    affinities: Affinities, options: SegmentOptions, chunk: Triple, out: str, rng: np.random.Generator
) -> Run:
    z, y, x = affinities.shape[1:]
    run = given_affinities((z, y, x), options, chunk, out)
    create_arrays(run, "predict")
    run.volume("affinities.zarr", writable=True).write(run.domain, affinities)
    for phase in ("watershed", "agglomerate", "relabel"):
        run_phase_in_process(run, phase, rng=rng)
    return run


def collected(run: Run) -> Result:
    arrays = (run.volume(name).read(run.domain) for name in ("supervoxels.zarr", "segmentation.zarr"))
    maps = IdMap.joined([read_map(run.folder, f"agglomeration/basin_of/{chunk.name}") for chunk in run.grid])
    return Result(*arrays, region_graph_of(run), maps.keys, maps.values, merges_of(run))


def assert_same(found: Result, expected: Result) -> None:
    np.testing.assert_array_equal(found.supervoxels, expected.supervoxels)
    assert found.graph == expected.graph
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.basins, expected.basins)
    for field in ("a", "b", "affinity_sum", "face_count"):
        np.testing.assert_array_equal(getattr(found.merges, field), getattr(expected.merges, field))
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
