"""Watershed, region graph and agglomeration on one core, beside waterz on the same affinities, with both scores.

`PETAVOXEL_DATA=FOLDER pytest -m slow -s tests/benchmarks/test_segmentation_speed.py` prints the table. FOLDER holds
fib25/fib25_train.npz (`neurons`); affinities are made from it: smoothed boundaries with correlated noise, or read from
`PETAVOXEL_AFFINITIES` (an .npy of (3, z, y, x) uint8 over the same voxels).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from models.metrics.contingency import contingency_table
from models.metrics.voi import VOI, variation_of_information
from models.segmentation.agglomeration import agglomerate
from models.segmentation.merge_tree import cut
from models.segmentation.region_graph import region_graph, segment_sizes
from models.segmentation.relabel import relabelled
from models.segmentation.small_basins import BasinEdges, basins_of, merge_small_basins
from models.segmentation.watershed import watershed
from models.segmentation.whole import segment_whole

CROP = (slice(0, 96), slice(None), slice(None))
LOW, HIGH = 10, 254
SMALL = {"basin_voxels": 100, "basin_affinity": 64}
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
Result = TypeVar("Result")


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of this process on the CPU: other load on the machine does not count, apart from the caches."""
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def _affinities(neurons: NDArray[np.uint16]) -> NDArray[np.uint8]:
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(0)
    same = np.zeros((3, *neurons.shape), np.float32)
    for axis in range(3):
        here, there = np.moveaxis(neurons, axis, 0)[1:], np.moveaxis(neurons, axis, 0)[:-1]
        np.moveaxis(same[axis], axis, 0)[1:] = (here == there) & (here > 0)
    inside = ndimage.gaussian_filter(same.min(0), 1.0)

    def noise(sigma: float) -> NDArray[np.float32]:
        smooth = ndimage.gaussian_filter(rng.standard_normal(neurons.shape).astype(np.float32), sigma)
        return smooth / smooth.std()

    wide = noise(2.0)
    result = np.empty(same.shape, np.uint8)
    for axis in range(3):
        value = 0.5 * inside + 0.5 * ndimage.gaussian_filter(same[axis], 0.7)
        logit = 20 * (value - 0.72) + 1.2 * wide + 0.4 * noise(0.8)  # a network's output is smooth from voxel to voxel
        result[axis] = np.round(255 / (1 + np.exp(-logit)))
    return result


@pytest.fixture(scope="module")
def volume() -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    folder = os.environ.get("PETAVOXEL_DATA")
    path = Path(folder or "") / "fib25" / "fib25_train.npz"
    if not folder or not path.exists():
        pytest.skip("set PETAVOXEL_DATA to a folder with fib25/fib25_train.npz")
    with np.load(path) as arrays:
        neurons = arrays["neurons"]
    stored = os.environ.get("PETAVOXEL_AFFINITIES")
    affinities = np.load(stored) if stored else _affinities(neurons)
    return np.ascontiguousarray(affinities[(slice(None), *CROP)]), np.ascontiguousarray(neurons[CROP])


def _score(labels: NDArray[np.integer], truth: NDArray[np.uint16]) -> VOI:
    return variation_of_information(contingency_table(labels, truth))


def _segment(affinities: NDArray[np.uint8], threshold: float, high: int = HIGH) -> NDArray[np.uint64]:
    """The whole way as the pipeline goes it: small basins first, then mean affinity, one map, one relabelling."""
    whole = segment_whole(affinities, low=LOW, high=high, floor=threshold, **SMALL)
    return whole.segments_at(threshold)


def _waterz(affinities: NDArray[np.uint8], truth: NDArray[np.uint16], **options: float) -> tuple[float, float, VOI]:
    """Seconds at the best threshold alone, that threshold, and its score."""
    waterz = pytest.importorskip("waterz")
    floats = affinities.astype(np.float32) / 255
    scores = {}
    limits = sorted(1 - threshold for threshold in THRESHOLDS)
    for limit, labels in zip(limits, waterz.agglomerate(floats, limits, **options), strict=True):
        scores[limit] = _score(labels, truth)
    best = min(scores, key=lambda limit: scores[limit].total)
    seconds = min(_timed(lambda: [None for _ in waterz.agglomerate(floats, [best], **options)])[0] for _ in range(2))
    return seconds, 1 - best, scores[best]


def _peak_bytes(work: Callable[[], object]) -> int:
    """Growth of the peak resident memory during `work` (Linux)."""

    def resident(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def test_kernels_reach_their_rates(volume: tuple[NDArray[np.uint8], NDArray[np.uint16]]) -> None:
    affinities, _ = volume
    voxels = affinities[0].size
    _segment(affinities[:, :4], 0.5)  # compile
    best: dict[str, float] = {}
    for _ in range(3):
        times = {}
        times["watershed"], fragments = _timed(lambda: watershed(affinities, low=LOW, high=HIGH))
        times["region graph"], graph = _timed(lambda labels=fragments: region_graph(affinities, labels))
        times["agglomeration"], tree = _timed(lambda edges=graph: agglomerate(edges, 0.5))
        segments = basins_of(*segment_sizes(fragments), np.empty(0, np.uint64))
        times["small basins"], _ = _timed(
            lambda g=graph, s=segments: merge_small_basins(
                s, BasinEdges.of(g), size_threshold=SMALL["basin_voxels"], min_affinity=SMALL["basin_affinity"]
            )
        )
        keys, values = cut(tree.merges, 0.5)
        times["relabel"], _ = _timed(lambda f=fragments, k=keys, v=values: relabelled(f, k, v, missing="keep"))
        best = {name: min(seconds, best.get(name, np.inf)) for name, seconds in times.items()}
    both = voxels / (best["watershed"] + best["region graph"]) / 1e6
    print(f"\n{voxels / 1e6:.1f} Mvoxel, {len(segments)} supervoxels, {len(graph)} edges")
    for name in ("watershed", "region graph", "relabel"):
        print(f"{name:14} {voxels / best[name] / 1e6:8.1f} Mvoxel/s")
    for name in ("agglomeration", "small basins"):
        print(f"{name:14} {len(graph) / best[name] / 1e6:8.2f} M edges/s")
    print(f"{'peak memory':14} {_peak_bytes(lambda: _segment(affinities, 0.5)) / voxels:8.1f} bytes/voxel")
    print(f"watershed + region graph {both:.1f} Mvoxel/s")
    assert both >= 10


@pytest.mark.parametrize("high", [HIGH, 255])  # 255 is what waterz' default of 0.9999 means for 8-bit affinities
def test_beside_waterz(volume: tuple[NDArray[np.uint8], NDArray[np.uint16]], high: int) -> None:
    """Same affinities, same watershed thresholds, each at its best threshold; the scores are checked, times printed."""
    affinities, truth = volume
    _segment(affinities[:, :4], 0.5)  # compile
    scores = {threshold: _score(_segment(affinities, threshold, high), truth) for threshold in THRESHOLDS}
    threshold = min(scores, key=lambda t: scores[t].total)
    own = scores[threshold]
    seconds = min(_timed(lambda: _segment(affinities, threshold, high))[0] for _ in range(3))
    limits = {"aff_threshold_low": (LOW - 0.5) / 255, "aff_threshold_high": (high - 0.5) / 255}
    other_seconds, other_threshold, other = _waterz(affinities, truth, **limits)
    print(f"\nhigh {high}")
    print(f"petavoxel {seconds:6.2f} s at {threshold:.1f}: VOI {own.total:.4f} (split {own.split:.4f})")
    print(f"waterz    {other_seconds:6.2f} s at {other_threshold:.1f}: VOI {other.total:.4f} (split {other.split:.4f})")
    print(f"waterz takes {other_seconds / seconds:.1f} times as long")
    assert own.total <= other.total + 0.02


def test_beside_mwatershed(volume: tuple[NDArray[np.uint8], NDArray[np.uint16]]) -> None:
    """Mutex watershed on the same nearest-neighbour affinities, at its best bias; it is made for long-range ones."""
    mwatershed = pytest.importorskip("mwatershed")
    affinities, truth = volume
    _segment(affinities[:, :4], 0.5)  # compile
    seconds = min(_timed(lambda: _segment(affinities, 0.3))[0] for _ in range(3))
    offsets = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
    results = {}
    for bias in (0.3, 0.5, 0.7, 0.9):
        values = affinities / 255.0 - bias
        results[bias] = _timed(lambda v=values: mwatershed.agglom(v, offsets))
    best = min(results, key=lambda bias: _score(results[bias][1], truth).total)
    other_seconds, labels = results[best]
    own, other = _score(_segment(affinities, 0.3), truth), _score(labels, truth)
    print(f"\npetavoxel  {seconds:6.2f} s: VOI {own.total:.4f} (split {own.split:.4f})")
    print(f"mwatershed {other_seconds:6.2f} s at bias {best}: VOI {other.total:.4f} (split {other.split:.4f})")
    print(f"mwatershed takes {other_seconds / seconds:.1f} times as long")
    assert own.total <= other.total + 0.02
