"""Peak memory of a worker that segments one chunk, and memory and time of a large node of the octree.

`PETAVOXEL_AFFINITIES=FILE pytest -m slow -s tests/benchmarks/test_octree_memory.py` prints the tables; FILE holds
affinities (3, z, y, x) of uint8 in an `.npy`. Every figure is `ru_maxrss` of a process of its own.
`PETAVOXEL_BENCH_EDGES` is the number of edges of a large node, default 8 million.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from given_maps import chosen_affinities, prepared, segment_in_process
from node_copies import NODES, compute_root, copy_children
from numpy.typing import NDArray
from peak_memory import peak_of

from services.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
EDGES = int(os.environ.get("PETAVOXEL_BENCH_EDGES", "5000000"))


@pytest.fixture(scope="module")
def affinities() -> NDArray[np.uint8]:
    return chosen_affinities()


def test_memory_of_a_chunk(affinities: NDArray[np.uint8], tmp_path: Path) -> None:
    """All stages from watershed to pyramid, of two neighbours, so that halo and faces count."""
    peaks = {}
    for side in (32, 64, 128, 192, 256):
        run = prepared(affinities, (side, side, 2 * side), (side, side, side), str(tmp_path / str(side)))
        peaks[side] = peak_of(segment_in_process, run).mb
        run.folder.remove("")
        print(f"\nchunks of {side}^3: {peaks[side]:.0f} MB", end="")
    per_voxel = (peaks[256] - peaks[128]) / (256**3 - 128**3) * 1e6
    print(f"\n{per_voxel:.0f} bytes per voxel from 128^3 to 256^3")
    assert per_voxel < 50


@pytest.fixture(scope="module")
def small(affinities: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 256^3 voxels in 64 chunks: a root above eight nodes."""
    run = prepared(affinities, (256, 256, 256), (64, 64, 64), str(tmp_path_factory.mktemp("small")))
    segment_in_process(run, ("watershed", "agglomerate"))
    return run


@pytest.mark.parametrize("step", NODES)
def test_memory_and_time_of_a_large_node(step: str, small: Run, tmp_path: Path) -> None:
    """What reaches the root of the small run, repeated with ids of its own; bytes per row: the slope of two sizes."""
    rows = "pairs" if step == "seams" else "edges"
    each = compute_root(small, step)[rows]
    counts, peaks = [], []
    for wanted in (EDGES / 4, EDGES):
        large = replace(small, out=str(tmp_path / "large"))
        copy_children(small, large, step, max(1, round(wanted / each)))
        peaks.append(peak_of(compute_root, large, step, warm=(small, step)))
        counts.append(peaks[-1].result[rows])
        large.folder.remove("")
    per_row = (peaks[1].mb - peaks[0].mb) * 1e6 / (counts[1] - counts[0])
    sizes = ", ".join(f"{n / 1e6:.2f} M {rows} {peak.mb:.0f} MB" for n, peak in zip(counts, peaks, strict=True))
    print(f"\n{step}: {sizes}; {per_row:.0f} bytes per row")
    print(f"{peaks[1].seconds / counts[1] * 1e6:.2f} s of processor time per million rows")
    assert per_row < 250
