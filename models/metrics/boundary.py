"""Boundary F-score: how much of the predicted boundaries lies near true ones, and the other way round.

A score of where boundaries are, whatever they join or part: one voxel of a hole merges two neurons and hardly changes
it (D. Martin, C. Fowlkes, J. Malik, "Learning to detect natural image boundaries", PAMI 26 (2004), DOI
10.1109/TPAMI.2004.1273918). Matches are by distance, not one to one. Counts of disjoint boxes add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from models.errors import InvalidInput, InvalidVolume
from models.geometry import Triple, VoxelSize

_ROUNDING = 1e-9
"""Of the tolerance: voxel sizes such as 3.6 nm have multiples that fall short of it by rounding."""


@dataclass(frozen=True)
class BoundaryCounts:
    """Boundary voxels of prediction and truth, and how many of each lie within the tolerance of the other's."""

    pred: int = 0
    pred_matched: int = 0
    truth: int = 0
    truth_matched: int = 0

    def __add__(self, other: BoundaryCounts) -> BoundaryCounts:
        return BoundaryCounts(
            self.pred + other.pred,
            self.pred_matched + other.pred_matched,
            self.truth + other.truth,
            self.truth_matched + other.truth_matched,
        )

    @property
    def precision(self) -> float:
        """Share of predicted boundary voxels near a true one; 1 without any."""
        return self.pred_matched / self.pred if self.pred else 1.0

    @property
    def recall(self) -> float:
        """Share of true boundary voxels near a predicted one; 1 without any."""
        return self.truth_matched / self.truth if self.truth else 1.0

    @property
    def f_score(self) -> float:
        """Harmonic mean of precision and recall, 0 to 1."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def label_boundaries(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether a voxel has one of another id among its face neighbours; bool of the shape of `labels`.

    0 is an id like any other: where it is membrane, the boundary lies on both of its sides.
    """
    found = np.zeros(labels.shape, np.bool_)
    for axis in range(labels.ndim):
        near: list[slice] = [slice(None)] * labels.ndim
        far = list(near)
        near[axis], far[axis] = slice(None, -1), slice(1, None)
        differs = labels[tuple(near)] != labels[tuple(far)]
        found[tuple(near)] |= differs
        found[tuple(far)] |= differs
    return found


def boundary_halo(tolerance_nm: float, voxel_size_nm: VoxelSize) -> Triple:
    """Voxels to read around a chunk so that `boundary_counts` of chunks add up to those of the whole."""
    z, y, x = (int(tolerance_nm * (1 + _ROUNDING) // size) + 1 for size in voxel_size_nm)
    return z, y, x


def boundary_counts(
    pred: NDArray[np.integer],
    truth: NDArray[np.integer],
    *,
    voxel_size_nm: VoxelSize,
    tolerance_nm: float,
    counted: tuple[slice, slice, slice] | None = None,
) -> BoundaryCounts:
    """Count boundary voxels and matches of two label arrays (z, y, x) of one shape.

    A boundary voxel is matched if the centre of one of the other side's lies at most `tolerance_nm` away. `counted`
    names the part whose voxels are counted, the rest is context (see `boundary_halo`). Raises `InvalidVolume` for
    unequal shapes, `InvalidInput` for a negative tolerance.
    """
    if pred.shape != truth.shape or pred.ndim != 3:
        raise InvalidVolume(f"labels: expected two arrays (z, y, x) of one shape, got {pred.shape} and {truth.shape}")
    if not tolerance_nm >= 0:
        raise InvalidInput(f"tolerance: expected at least 0 nm, got {tolerance_nm}")
    part = counted or (slice(None),) * 3
    ours, theirs = label_boundaries(pred), label_boundaries(truth)
    return BoundaryCounts(
        int(ours[part].sum()),
        int((ours & _near(theirs, voxel_size_nm, tolerance_nm))[part].sum()),
        int(theirs[part].sum()),
        int((theirs & _near(ours, voxel_size_nm, tolerance_nm))[part].sum()),
    )


def _near(boundary: NDArray[np.bool_], voxel_size_nm: VoxelSize, tolerance_nm: float) -> NDArray[np.bool_]:
    if not boundary.any():
        return np.zeros(boundary.shape, np.bool_)
    distances = distance_transform_edt(~boundary, sampling=voxel_size_nm)
    near: NDArray[np.bool_] = distances <= tolerance_nm * (1 + _ROUNDING)
    return near
