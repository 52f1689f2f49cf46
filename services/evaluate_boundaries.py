"""Scores of boundaries and of affinities against true labels, read block by block with the halo they need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.objects import Arrays
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
    """Average precision of affinities, over all channels and by channel, None where one lacks a kind of edge."""

    prediction: str
    truth: str
    box: Box
    offsets: tuple[Triple, ...]
    overall: AveragePrecision
    channels: tuple[AveragePrecision | None, ...]

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
                {
                    "offset": list(offset),
                    "average_precision_cut": found and found.cut,
                    "average_precision_joined": found and found.joined,
                }
                for offset, found in zip(self.offsets, self.channels, strict=True)
            ],
            "conventions": {"ignored": "edges of true 0 and edges that leave the box", "affinity": "0 cut, 255 joined"},
        }


@dataclass(frozen=True)
class BoundaryMeasure:
    """Boundary counts of any box of a pair of label volumes; counts of disjoint boxes add up. Picklable."""

    pair: LabelPair
    voxel_size_nm: VoxelSize
    tolerance_nm: float

    @classmethod
    def open(
        cls,
        prediction: str,
        truth: str,
        *,
        tolerance_nm: float,
        box: str | Box | None = None,
        voxel_size_nm: VoxelSize | None = None,
    ) -> BoundaryMeasure:
        """Open both volumes; `box` and errors as in `LabelPair.open`.

        `voxel_size_nm` holds where neither volume knows its own; without any raises `InvalidVolume`.
        """
        if not tolerance_nm >= 0:
            raise InvalidInput(f"tolerance: expected at least 0 nm, got {tolerance_nm}")
        pair = LabelPair.open(prediction, truth, box)
        size = voxel_size_nm or pair.truth.info.voxel_size_nm or pair.pred.info.voxel_size_nm
        if size is None:
            raise InvalidVolume(f"{pair.truth.url}: its voxel size is not known; say it with --voxel-size")
        return cls(pair, size, tolerance_nm)

    @property
    def box(self) -> Box:
        """What is scored."""
        return self.pair.box

    def described(self) -> dict[str, Any]:
        """What decides the counts."""
        return {
            "score": "boundaries",
            **self.pair.described(),
            "voxel_size_nm": list(self.voxel_size_nm),
            "tolerance_nm": self.tolerance_nm,
        }

    def measured(self, box: Box, on_progress: Progress | None = None) -> Arrays:
        """The counts of `box`, as an array of their fields."""
        total, halo = BoundaryCounts(), boundary_halo(self.tolerance_nm, self.voxel_size_nm)
        for block, around in _blocks(self.pair, box, (halo, halo), on_progress):
            total += boundary_counts(
                *self.pair.read(around),
                voxel_size_nm=self.voxel_size_nm,
                tolerance_nm=self.tolerance_nm,
                counted=block.slices(around.start),
            )
        return {"counts": np.array([total.pred, total.pred_matched, total.truth, total.truth_matched], np.int64)}

    def scores(self, parts: Iterable[Arrays]) -> BoundaryScores:
        """The scores of what was measured in disjoint boxes."""
        total = BoundaryCounts()
        for part in parts:
            total += BoundaryCounts(*(int(count) for count in part["counts"]))
        pair = self.pair
        return BoundaryScores(pair.pred.url, pair.truth.url, pair.box, self.voxel_size_nm, self.tolerance_nm, total)


@dataclass(frozen=True)
class AffinityMeasure:
    """Histograms of the edges of any box of an affinity volume; those of disjoint boxes add up. Picklable."""

    pair: LabelPair
    offsets: tuple[Triple, ...]

    @classmethod
    def open(cls, affinities: str, truth: str, *, box: str | Box | None = None) -> AffinityMeasure:
        """Open uint8 affinities (c, z, y, x) and true labels; offsets are the volume's own, else nearest neighbours.

        Raises `InvalidVolume` for other arrays, and as `LabelPair.open`.
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
        return cls(LabelPair(volume, true, scored, shift), offsets)

    @property
    def box(self) -> Box:
        """What is scored."""
        return self.pair.box

    def described(self) -> dict[str, Any]:
        """What decides the histograms."""
        return {"score": "affinities", **self.pair.described(), "offsets": [list(offset) for offset in self.offsets]}

    def measured(self, box: Box, on_progress: Progress | None = None) -> Arrays:
        """Histograms of the edges that `box` owns, int64 (channels, 256) for joined and for cut ones."""
        z, y, x = (max(-offset[axis] for offset in self.offsets) for axis in range(3))
        found = [EdgeHistogram.empty() for _ in self.offsets]
        for block, around in _blocks(self.pair, box, ((z, y, x), (0, 0, 0)), on_progress):
            values, labels = self.pair.read(around)
            halo = [a - b for a, b in zip(block.start, around.start, strict=True)]
            for channel, offset in enumerate(self.offsets):
                own = values[channel : channel + 1].astype(np.uint8, copy=False)
                found[channel] += edge_histogram(own, labels, offsets=(offset,), halo=(halo[0], halo[1], halo[2]))
        return {"joined": np.stack([h.joined for h in found]), "cut": np.stack([h.cut for h in found])}

    def scores(self, parts: Iterable[Arrays]) -> AffinityScores:
        """The scores of what was measured; raises `InvalidInput` where no channel has edges of both kinds."""
        found = [EdgeHistogram.empty() for _ in self.offsets]
        for part in parts:
            for channel in range(len(found)):
                found[channel] += EdgeHistogram(part["joined"][channel], part["cut"][channel])
        overall = average_precision(sum(found, EdgeHistogram.empty()))
        channels = tuple(average_precision(one) if one.joined.any() and one.cut.any() else None for one in found)
        pair = self.pair
        return AffinityScores(pair.pred.url, pair.truth.url, pair.box, self.offsets, overall, channels)


def _blocks(
    pair: LabelPair, box: Box, halo: tuple[Triple, Triple], on_progress: Progress | None
) -> Iterator[tuple[Box, Box]]:
    """Each block of `box` with the box to read around it, within all that is scored."""
    done = 0
    for block in pair.blocks(box):
        yield block, block.grown(*halo).intersection(pair.box)
        done += block.size
        if on_progress is not None:
            on_progress(done, box.size)
