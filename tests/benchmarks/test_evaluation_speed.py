"""Contingency tables of 10^8 voxels in memory and of 10^9 voxels on disk: rate, memory, and what a sweep adds.

`PETAVOXEL_DATA=FOLDER pytest -m slow -s tests/benchmarks/test_evaluation_speed.py` prints the figures. FOLDER holds
fib25/fib25_train.npz; its `neurons` and a published oversegmentation, `supervoxels`, are tiled, each tile with ids of
its own. `PETAVOXEL_BENCH_EXTENTS` names the extents of the volumes on disk, default 1000.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.volumes import VolumeInfo, create_volume
from models.geometry import Box, ChunkGrid
from models.metrics.contingency import ContingencyTable, contingency_table
from models.metrics.objects import object_terms, score_intervals
from models.metrics.sweep import sweep
from models.segmentation.merge_tree import MergeTree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
EXTENTS = [int(n) for n in os.environ.get("PETAVOXEL_BENCH_EXTENTS", "1000").split(",")]

Pair = tuple[NDArray[np.uint64], NDArray[np.uint64]]


@pytest.fixture(scope="module")
def tile() -> Pair:
    """Supervoxels and neurons of the training block, (160, 250, 250)."""
    data = os.environ.get("PETAVOXEL_DATA")
    if not data:
        pytest.skip("needs PETAVOXEL_DATA, the folder with fib25/fib25_train.npz")
    with np.load(Path(data) / "fib25" / "fib25_train.npz") as bundle:
        return bundle["supervoxels"].astype(np.uint64), bundle["neurons"].astype(np.uint64)


def part(labels: NDArray[np.uint64], box: Box) -> NDArray[np.uint64]:
    """A box of the endlessly repeated block; each repetition has ids of its own, background stays 0."""
    grids = np.ix_(*(np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True)))
    number = np.uint64(0)
    for axis, extent in zip(grids, labels.shape, strict=True):
        number = number * np.uint64(1000) + (axis // extent).astype(np.uint64)
    found = labels[tuple(axis % extent for axis, extent in zip(grids, labels.shape, strict=True))]
    return np.where(found == 0, np.uint64(0), found + number * np.uint64(1 << 20))


def test_tables_scores_and_sweeps_in_memory(tile: Pair) -> None:
    box = Box((0, 0, 0), (400, 500, 500))
    pred, truth = (part(labels, box) for labels in tile)
    contingency_table(pred[:8], truth[:8])
    seconds, table = timed(lambda: contingency_table(pred, truth))
    rate = box.size / seconds / 1e6
    print(f"\n{box.size / 1e6:.0f} Mvoxel, {table.counts.size} pairs: table {seconds:.2f} s = {rate:.0f} Mvoxel/s")
    assert rate >= 30
    seconds, points = timed(lambda: sweep(table, chain(table), [i / 50 for i in range(5, 51)]))
    print(f"sweep over {len(points)} thresholds, {np.unique(table.pred).size} supervoxels: {seconds:.2f} s")
    seconds, _ = timed(lambda: score_intervals(object_terms(table), rng=np.random.default_rng(0)))
    print(f"intervals over {np.unique(table.truth).size} objects, 1000 draws: {seconds:.2f} s")


def chain(table: ContingencyTable) -> MergeTree:
    """A merge tree that joins each supervoxel with the next one of its neuron, at scores all over the scale."""
    ids, first = np.unique(table.pred[table.pred != 0], return_index=True)
    owner = table.truth[table.pred != 0][first]
    order = np.lexsort((ids, owner))
    same = owner[order][1:] == owner[order][:-1]
    sums = np.random.default_rng(0).integers(26, 256, int(same.sum()))
    return MergeTree(ids[order][:-1][same], ids[order][1:][same], sums, np.ones_like(sums))


@pytest.mark.parametrize("extent", EXTENTS)
def test_volumes_on_disk_in_bounded_memory(tile: Pair, tmp_path: Path, extent: int) -> None:
    urls = []
    for name, labels in zip(("pred", "truth"), tile, strict=True):
        info = VolumeInfo(
            shape=(extent,) * 3, dtype=np.dtype("uint64"), voxel_size_nm=(10, 10, 10), chunk_shape=(64, 64, 64)
        )
        with create_volume(f"{tmp_path}/{name}.zarr", info) as volume:
            for chunk in ChunkGrid(volume.box, (128, 512, 512)):
                volume.write(chunk.box, part(labels, chunk.box))
            urls.append(volume.url)
    code = (
        "import sys, time\n"
        "from services.evaluate import evaluate_segmentation\n"
        "evaluate_segmentation(*sys.argv[1:], box='0:64,0:64,0:64')\n"  # compiled code is loaded
        "wall, cpu = time.monotonic(), time.process_time()\n"
        "scores = evaluate_segmentation(*sys.argv[1:])\n"
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(time.monotonic() - wall, time.process_time() - cpu, scores.voi.total, peak)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *urls], capture_output=True, text=True, check=True)
    wall, cpu, voi, peak = (float(word) for word in done.stdout.split())
    rates = ", ".join(
        f"{extent**3 / seconds / 1e6:.0f} per {name} second" for name, seconds in (("wall", wall), ("CPU", cpu))
    )
    print(f"\n{extent}^3: {rates} (Mvoxel), VOI {voi:.4f}, largest memory {peak / 1e3:.0f} MB")
    assert peak < 1.5e6
    assert extent**3 / cpu / 1e6 >= 30


def timed(work):  # type: ignore[no-untyped-def]
    """Seconds of this process on the CPU, and the result."""
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result
