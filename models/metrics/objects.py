"""What each true object adds to VOI and Rand error: for intervals over objects, and to find the objects that cost most.

Both scores are functions of sums over true objects once the segmentation around them is held fixed: a voxel's part in
VOI depends on the sizes of its own true and predicted segment only, and every pair of voxels that the prediction joins
can be counted at its first voxel. So resampling objects needs no second look at the volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.metrics.bootstrap import Interval, Terms, bootstrap
from models.metrics.contingency import ContingencyTable, PredBackground, with_background
from models.metrics.voi import group_totals


@dataclass(frozen=True, eq=False)
class ObjectTerms:
    """One row per true object, sorted by id: its share of every sum that the scores are made of.

    `truth`: uint64 ids. `voxels`: counted voxels. `split`, `merge`: bits x voxels; divided by all voxels they are the
    object's part of VOI. `both`, `in_pred`, `in_truth`: ordered pairs of distinct voxels whose first lies in the object
    and which both segmentations, the prediction, the truth join. All float64 of one length.
    """

    truth: NDArray[np.uint64]
    voxels: NDArray[np.float64]
    split: NDArray[np.float64]
    merge: NDArray[np.float64]
    both: NDArray[np.float64]
    in_pred: NDArray[np.float64]
    in_truth: NDArray[np.float64]

    @property
    def matrix(self) -> Terms:
        """Columns in the order of the fields after `truth`, float64 (objects, 6)."""
        return np.stack([self.voxels, self.split, self.merge, self.both, self.in_pred, self.in_truth], axis=1)

    @property
    def voi_cost(self) -> NDArray[np.float64]:
        """Each object's part of the VOI sum in bits; the parts add up to it."""
        cost: NDArray[np.float64] = (self.split + self.merge) / self.voxels.sum()
        return cost


def object_terms(table: ContingencyTable, *, pred_background: PredBackground = "segment") -> ObjectTerms:
    """Divide the scores of a contingency table among its true objects.

    Conventions as in `models.metrics.voi` and `models.metrics.rand`. Raises `InvalidInput` where no voxel is left.
    """
    joint, single = with_background(table, pred_background)
    truth = np.concatenate([joint.truth, single.truth])
    counts = np.concatenate([joint.counts, single.counts]).astype(np.float64)
    paired = joint.counts.size
    in_truth = group_totals(truth, counts)
    in_pred = np.ones_like(counts)  # a singleton's segment has one voxel
    in_pred[:paired] = group_totals(joint.pred, joint.counts.astype(np.float64))
    shared = np.where(np.arange(counts.size) < paired, counts, 1.0)
    ids, inverse = np.unique(truth, return_inverse=True)

    def per_object(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(inverse, weights=values, minlength=ids.size).astype(np.float64, copy=False)

    return ObjectTerms(
        truth=ids,
        voxels=per_object(counts),
        split=per_object(counts * np.log2(in_truth / shared)),
        merge=per_object(counts * np.log2(in_pred / shared)),
        both=per_object(counts * (shared - 1)),
        in_pred=per_object(counts * (in_pred - 1)),
        in_truth=per_object(counts * (in_truth - 1)),
    )


def score_intervals(
    terms: ObjectTerms, *, rng: np.random.Generator, samples: int = 1000, confidence: float = 0.95
) -> dict[str, Interval]:
    """Bootstrap intervals over true objects of voi_split, voi_merge, voi_sum, adapted_rand_error and cremi_score."""
    return bootstrap(
        terms.matrix,
        {
            "voi_split": lambda sums: sums[:, 1] / sums[:, 0],
            "voi_merge": lambda sums: sums[:, 2] / sums[:, 0],
            "voi_sum": _voi_sum,
            "adapted_rand_error": _rand_error,
            "cremi_score": lambda sums: np.sqrt(_voi_sum(sums) * np.maximum(_rand_error(sums), 0)),
        },
        rng=rng,
        samples=samples,
        confidence=confidence,
    )


def _voi_sum(sums: Terms) -> NDArray[np.float64]:
    return (sums[:, 1] + sums[:, 2]) / sums[:, 0]


def _rand_error(sums: Terms) -> NDArray[np.float64]:
    joined = sums[:, 4] + sums[:, 5]
    error: NDArray[np.float64] = 1 - np.divide(2 * sums[:, 3], joined, out=np.ones_like(joined), where=joined > 0)
    return error
