"""Segmentation from given affinities as the volume grows: cost per voxel, Ray's share, and what reaches each level of
the octree.

`PETAVOXEL_AFFINITIES` names affinities (3, z, y, x) of uint8 in an `.npy`; they are tiled by reflection.
"""

import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from given_maps import PHASES, chosen_affinities, prepared, segment_in_process
from numpy.typing import NDArray
from pipeline_runs import merges_of, run_phase_in_process

from infra.cluster import cluster
from models.segmentation.faces import FaceEdges
from models.segmentation.small_basins import BasinEdges, Basins
from services.pipelines.segment import run_phase
from services.pipelines.stage import Summary
from services.stages.basins_tree import PLACE, basins_of_chunk_up
from services.stages.node_tables import own_and_upper_faces, read_rows, read_sizes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def affinities() -> NDArray[np.uint8]:
    return chosen_affinities()


def test_ten_chunkings_of_a_real_map(affinities: NDArray[np.uint8], tmp_path: Path) -> None:
    shape = tuple(min(250, n) for n in affinities.shape[1:])
    rng = np.random.default_rng(0)
    results = []
    for number, chunk in enumerate([shape, *(tuple(int(n) for n in rng.integers(48, 160, 3)) for _ in range(10))]):
        run = prepared(affinities, shape, chunk, str(tmp_path / f"run{number}"))
        for phase in PHASES:
            run_phase_in_process(run, phase, rng=rng)
        labels = (run.volume(name).read(run.domain) for name in ("supervoxels.zarr", "segmentation.zarr"))
        results.append([*labels, *(getattr(merges_of(run), name) for name in ("a", "b", "affinity_sum"))])
        run.folder.remove("")
        for found, expected in zip(results[-1], results[0], strict=True):
            np.testing.assert_array_equal(found, expected, err_msg=f"chunks {chunk}")
        del results[1:]


@pytest.mark.parametrize(("side", "chunk"), [(128, 64), (256, 64), (512, 64), (256, 128), (512, 128), (1024, 128)])
def test_cost_per_voxel(side: int, chunk: int, affinities: NDArray[np.uint8], tmp_path: Path) -> None:
    """Processor time holds on a machine that does other things too; wall time needs one to itself."""
    run = prepared(affinities, (side, side, side), (chunk, chunk, chunk), str(tmp_path / "out"))
    with cluster():
        ray.get([_warm.remote() for _ in range(4)])
        before, began, summary = processor_time(), time.monotonic(), Summary()
        for phase in PHASES:
            run_phase(run, phase, summary)
        wall, spent = time.monotonic() - began, processor_time() - before
    work = sum(stage.totals.get("cpu_seconds", 0) for stage in summary.stages)
    print(f"\n{side}^3 in {len(run.grid)} chunks of {chunk}^3: {wall:.1f} s of wall time")
    print(
        f"processor time {spent / side**3 * 1e9:.0f} ns per voxel, {work / side**3 * 1e9:.0f} of it in chunk functions"
    )
    print(f"share of everything else (Ray, driver): {1 - work / spent:.1%}")
    held = sum(stage.totals.get("seconds", 0) for stage in summary.stages)
    cores = psutil.cpu_count()
    print(f"of wall time × {cores} processors outside of chunk functions: {1 - held / (wall * cores):.1%}")
    for stage in summary.stages:
        left = {name: value for name, value in stage.totals.items() if name not in ("seconds", "tries")}
        figures = ", ".join(f"{name} {value:.0f}" for name, value in left.items() if name != "cpu_seconds")
        print(f"{stage.stage:14} {stage.chunks:4} {stage.totals.get('cpu_seconds', 0):7.2f} s  {figures}")
    run.folder.remove("")


def test_what_a_chunk_hands_up(affinities: NDArray[np.uint8], tmp_path: Path) -> None:
    """Of a chunk with neighbours on all sides: what of its small basins is undecided."""
    run = prepared(affinities, (384, 384, 384), (128, 128, 128), str(tmp_path / "out"))
    segment_in_process(run, ("watershed",))
    middle = run.grid.chunk((1, 1, 1))
    basins_of_chunk_up(run)(middle)
    ids, _ = read_sizes(run.folder, f"region_graph/sizes/{middle.name}")
    own, upper = own_and_upper_faces(run.octree, run.folder / "region_graph/faces", 0, [middle], middle)
    touching = np.isin(ids, FaceEdges.joined([*own, *upper]).ids)
    work = run.folder / "work" / PLACE
    left = read_rows(work, f"left/0/{middle.name}.basins", Basins)
    edges = read_rows(work, f"left/0/{middle.name}.edges", BasinEdges)
    print(f"\n128^3 within 384^3: {ids.size} supervoxels, {touching.sum()} of them touch a face")
    print(f"handed up for small basins: {len(left)} supervoxels, {len(edges)} edges")
    assert len(left) < ids.size / 2
    run.folder.remove("")


@ray.remote(num_cpus=0)
def _warm() -> int:
    """Bring up a worker with what every worker imports, so that its start is not counted."""
    import services.pipelines.segment

    return len(services.pipelines.segment.PHASES)


def processor_time() -> float:
    """Seconds that this process and all below it have used, of those that live."""
    root, total = psutil.Process(), 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total
