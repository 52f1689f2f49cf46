"""Skeletons traced on coarser levels of the label pyramid: time and quality beside those of the finest level.

`PETAVOXEL_DATA=FOLDER pytest -m slow -s tests/benchmarks/test_skeleton_levels.py` prints the tables. FOLDER holds
fib25/fib25_train.npz (`neurons`, 10 nm) and pinky40/pinky40_labels.npz (`seg`, 40 x 16 x 16 nm). Distances are from
points every 5 nm of one cable to the nearest of the other, per segment. How much skeletons of the finest level
differ from each other is shown by other chunks: TEASAR chooses other paths through thick places.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from infra.skeletons import PrecomputedSkeletons, Skeleton
from infra.volumes import VolumeInfo, create_pyramid
from models.geometry import Triple, VoxelSize
from models.segmentation.coarsening import most_frequent
from services.pipelines.skeletonize import prepare_skeletons, skeleton_stages
from services.stages.pyramid import pyramid_factors
from services.stages.skeletonize import SkeletonOptions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SPACING_NM = 5.0
VOLUMES: dict[str, tuple[str, str, VoxelSize, tuple[float, ...]]] = {
    "fib25": ("fib25/fib25_train.npz", "neurons", (10.0, 10.0, 10.0), (20, 40, 80)),
    "pinky40": ("pinky40/pinky40_labels.npz", "seg", (40.0, 16.0, 16.0), (32, 80)),
}


@dataclass(frozen=True)
class Traced:
    """Skeletons by segment, and the processor seconds of tracing and of joining."""

    skeletons: dict[int, Skeleton]
    tracing: float
    joining: float

    @property
    def cable_um(self) -> float:
        return sum(skeleton.cable_length_nm for skeleton in self.skeletons.values()) / 1000


@pytest.mark.parametrize("name", VOLUMES)
def test_coarser_levels(name: str, tmp_path: Path) -> None:
    data = os.environ.get("PETAVOXEL_DATA")
    if not data:
        pytest.skip("needs PETAVOXEL_DATA, the folder with the data sets")
    path, field, size, coarser = VOLUMES[name]
    with np.load(Path(data) / path) as bundle:
        labels = bundle[field].astype(np.uint64)
    url = stored(labels, size, str(tmp_path / "labels.zarr"))
    traced(url, str(tmp_path / "warm"), voxel_nm=1e9)
    finest = traced(url, str(tmp_path / "finest"), voxel_nm=0)
    print(
        f"\n{name}, {labels.shape}: level; processor s; cable; objects missing; trees; ends; branches; both distances"
    )
    compare("finest level, chunks of 128", finest, finest)
    compare("finest level, chunks of 96", finest, traced(url, str(tmp_path / "96"), voxel_nm=0, chunk=96))
    for nm in coarser:
        compare(f"up to {nm:g} nm", finest, traced(url, str(tmp_path / f"{nm:g}"), voxel_nm=nm))
    default = traced(url, str(tmp_path / "default"), voxel_nm=SkeletonOptions().voxel_nm)
    assert default.skeletons.keys() == finest.skeletons.keys()
    assert default.tracing < finest.tracing / 2
    assert default.cable_um > 0.85 * finest.cable_um


def stored(labels: NDArray[np.uint64], size: VoxelSize, url: str) -> str:
    """The labels with a pyramid of three more levels, as `petavoxel segment` makes it of a large volume."""
    steps = pyramid_factors((2048, 2048, 2048), size)[:3]
    levels = create_pyramid(url, VolumeInfo(shape=_shape(labels), dtype=labels.dtype, voxel_size_nm=size), steps)
    levels[0].write(levels[0].box, labels)
    for volume, step in zip(levels[1:], steps, strict=True):
        labels = most_frequent(labels, step).astype(np.uint64)
        volume.write(volume.box, labels)
    return levels[0].url


def _shape(labels: NDArray[np.uint64]) -> Triple:
    z, y, x = labels.shape
    return z, y, x


def traced(url: str, out: str, *, voxel_nm: float, chunk: int = 128) -> Traced:
    """All stages of `petavoxel skeletonize` in this process."""
    options = SkeletonOptions(voxel_nm=voxel_nm, chunk_voxels=(chunk, chunk, chunk), swc=False)
    job = prepare_skeletons(url, out, options)
    seconds = {}
    for stage in skeleton_stages(job):
        began, apply = time.process_time(), stage.make(*stage.arguments)
        for part in stage.chunks:
            apply(part)
        seconds[stage.ledger.stage] = time.process_time() - began
    store = PrecomputedSkeletons(f"{out}/precomputed")
    found = {segment: store.read(segment) for segment in store.ids()}
    return Traced(found, seconds.pop("skeletonize"), sum(seconds.values()))


def compare(name: str, reference: Traced, other: Traced) -> None:
    """Print one row."""
    missing = reference.skeletons.keys() - other.skeletons.keys()
    lost_um = sum(reference.skeletons[segment].cable_length_nm for segment in missing) / 1000
    away: tuple[list[NDArray[np.float64]], ...] = ([], [])
    for segment in reference.skeletons.keys() & other.skeletons.keys():
        a, b = points(reference.skeletons[segment]), points(other.skeletons[segment])
        away[0].append(cKDTree(b).query(a)[0])
        away[1].append(cKDTree(a).query(b)[0])
    there, back = (np.concatenate(distances) for distances in away)
    found = other.skeletons.values()
    print(
        f"{name:28} {other.tracing:5.1f} + {other.joining:.1f} s, {other.cable_um:6.0f} um, {len(missing)} missing "
        f"({lost_um:.1f} um), {sum(int(s.components.max()) + 1 for s in found)} trees, "
        f"{sum(len(s.end_points) for s in found)} ends, {sum(int((s.degrees > 2).sum()) for s in found)} branches, "
        f"{_mean_and_95(there)} and {_mean_and_95(back)}"
    )


def _mean_and_95(distances: NDArray[np.float64]) -> str:
    return f"{distances.mean():.0f} / {np.percentile(distances, 95):.0f} nm"


def points(skeleton: Skeleton) -> NDArray[np.float64]:
    """Points along the cable, at most `SPACING_NM` apart, and the vertices."""
    ends = skeleton.vertices.astype(np.float64)[skeleton.edges]
    lengths = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
    counts = np.maximum(1, np.ceil(lengths / SPACING_NM).astype(np.int64))
    edge = np.repeat(np.arange(len(counts)), counts)
    along = ((np.arange(edge.size) - np.repeat(np.cumsum(counts) - counts, counts)) / counts[edge])[:, None]
    between: NDArray[np.float64] = ends[edge, 0] * (1 - along) + ends[edge, 1] * along
    return np.concatenate([skeleton.vertices.astype(np.float64), between])
