"""Scores of boundaries and of affinities against true labels, read block by block with the halo they need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.volumes import open_volume
from models.errors import InvalidInput, InvalidVolume
from models.geometry import NEAREST, Box, Triple, VoxelSize
from models.metrics.affinities import AveragePrecision, EdgeHistogram, average_precision, edge_histogram
from models.metrics.boundary import BoundaryCounts, boundary_counts, boundary_halo
from services.label_pair import LabelPair, Progress, check_labels, placement


@dataclass(frozen=True)
class BoundaryScores:
    """Boundary precision, recall and F-score of a label volume, with voxel size and tolerance."""

    prediction: str
    truth: str
    box: Box
    voxel_size_nm: VoxelSize
    tolerance_nm: float
    counts: BoundaryCounts

    def as_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "prediction": self.prediction,
            "truth": self.truth,
            "box": str(self.box),
            "boundary_f_score": self.counts.f_score,
            "boundary_precision": self.counts.precision,
            "boundary_recall": self.counts.recall,
            "boundary_voxels_predicted": self.counts.pred,
            "boundary_voxels_true": self.counts.truth,
            "conventions": {
                "tolerance_nm": self.tolerance_nm,
                "voxel_size_nm": list(self.voxel_size_nm),
                "boundary": "voxels with a face neighbour of another id, 0 an id like any other",
            },
        }


@dataclass(frozen=True)
class AffinityScores:
    """Average precision of an affinity volume, over all channels and by channel."""

    prediction: str
    truth: str
    box: Box
    offsets: tuple[Triple, ...]
    overall: AveragePrecision
    channels: tuple[AveragePrecision, ...]

    def as_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "prediction": self.prediction,
            "truth": self.truth,
            "box": str(self.box),
            "average_precision_cut": self.overall.cut,
            "average_precision_joined": self.overall.joined,
            "cut_edges": self.overall.cut_edges,
            "joined_edges": self.overall.joined_edges,
            "channels": [
                {"offset": list(offset), "average_precision_cut": found.cut, "average_precision_joined": found.joined}
                for offset, found in zip(self.offsets, self.channels, strict=True)
            ],
            "conventions": {"ignored": "edges of true 0 and edges that leave the box", "affinity": "0 cut, 255 joined"},
        }


def evaluate_boundaries(
    prediction: str,
    truth: str,
    *,
    tolerance_nm: float,
    box: str | Box | None = None,
    voxel_size_nm: VoxelSize | None = None,
    on_progress: Progress | None = None,
) -> BoundaryScores:
    """Boundary F-score of two label volumes; box and errors as in `services.evaluate.evaluate_segmentation`.

    `voxel_size_nm` holds where neither volume knows its own; without any raises `InvalidVolume`.
    """
    if not tolerance_nm >= 0:
        raise InvalidInput(f"tolerance: expected at least 0 nm, got {tolerance_nm}")
    pair = LabelPair.open(prediction, truth, box)
    size = voxel_size_nm or pair.truth.info.voxel_size_nm or pair.pred.info.voxel_size_nm
    if size is None:
        raise InvalidVolume(f"{pair.truth.url}: its voxel size is not known; say it with --voxel-size")
    total, halo = BoundaryCounts(), boundary_halo(tolerance_nm, size)
    for block, around in _blocks(pair, halo, halo, on_progress):
        total += boundary_counts(
            *pair.read(around), voxel_size_nm=size, tolerance_nm=tolerance_nm, counted=block.slices(around.start)
        )
    return BoundaryScores(pair.pred.url, pair.truth.url, pair.box, size, tolerance_nm, total)


def evaluate_affinities(
    affinities: str, truth: str, *, box: str | Box | None = None, on_progress: Progress | None = None
) -> AffinityScores:
    """Average precision of uint8 affinities (c, z, y, x) against true labels.

    Offsets are the volume's own, else those of nearest neighbours. Raises `InvalidVolume` for other arrays,
    `InvalidInput` where there are no edges of both kinds.
    """
    volume, true = open_volume(affinities), open_volume(truth)
    check_labels(true)
    offsets = volume.info.affinity_offsets or NEAREST
    if volume.info.dtype != "uint8" or volume.info.channels != len(offsets):
        raise InvalidVolume(
            f"{volume.url}: expected uint8 affinities of {len(offsets)} channels, got {volume.info.dtype} of shape "
            f"{volume.info.array_shape()}"
        )
    scored, shift = placement(volume, true, Box.parse(box) if isinstance(box, str) else box)
    pair = LabelPair(volume, true, scored, shift)
    before = tuple(max(-offset[axis] for offset in offsets) for axis in range(3))
    found = [EdgeHistogram.empty() for _ in offsets]
    for block, around in _blocks(pair, (before[0], before[1], before[2]), (0, 0, 0), on_progress):
        values, labels = pair.read(around)
        z, y, x = (a - b for a, b in zip(block.start, around.start, strict=True))
        for channel, offset in enumerate(offsets):
            own = values[channel : channel + 1].astype(np.uint8, copy=False)
            found[channel] += edge_histogram(own, labels, offsets=(offset,), halo=(z, y, x))
    overall = average_precision(sum(found, EdgeHistogram.empty()))
    channels = tuple(average_precision(histogram) for histogram in found)
    return AffinityScores(volume.url, true.url, scored, offsets, overall, channels)


def _blocks(pair: LabelPair, before: Triple, after: Triple, on_progress: Progress | None) -> Iterator[tuple[Box, Box]]:
    """Each block with the box to read around it, within what is scored."""
    done = 0
    for block in pair.blocks():
        yield block, block.grown(before, after).intersection(pair.box)
        done += block.size
        if on_progress is not None:
            on_progress(done, pair.box.size)
