"""Variation of information: how much splitting and how much merging a segmentation did, in bits.

M. Meilă, "Comparing clusterings: an information based distance", J. Multivariate Analysis 98 (2007),
DOI 10.1016/j.jmva.2006.11.013.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.metrics.contingency import ContingencyTable, PredBackground, with_background


@dataclass(frozen=True)
class VOI:
    """Variation of information in bits, both parts 0 or more: `split` = H(pred | truth), `merge` = H(truth | pred)."""

    split: float
    merge: float

    @property
    def total(self) -> float:
        """Split and merge together: the distance of the two segmentations."""
        return self.split + self.merge


def variation_of_information(table: ContingencyTable, *, pred_background: PredBackground = "segment") -> VOI:
    """Score a contingency table; logarithms to base 2.

    `split` grows where one true segment falls into several predicted ones, `merge` where one predicted segment covers
    several true ones. `pred_background` says what a predicted 0 is (see `PredBackground`); the default is what
    scikit-image does.
    Raises `InvalidInput` where no voxel is left to score.
    """
    joint, single = with_background(table, pred_background)
    truth = np.concatenate([joint.truth, single.truth])
    counts = np.concatenate([joint.counts, single.counts]).astype(np.float64)
    voxels = counts.sum()
    in_truth = group_totals(truth, counts)
    in_pred = group_totals(joint.pred, joint.counts.astype(np.float64))
    paired = counts[: joint.counts.size]
    split = float((paired * np.log2(in_truth[: paired.size] / paired)).sum())
    # A singleton shares one voxel with its true segment and is never merged with another.
    split += float((counts[paired.size :] * np.log2(in_truth[paired.size :])).sum())
    merge = float((paired * np.log2(in_pred / paired)).sum())
    return VOI(split / float(voxels), merge / float(voxels))


def group_totals(ids: NDArray[np.uint64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each entry, the sum of `counts` over the entries with the same id (float64, shape (n,))."""
    _, inverse = np.unique(ids, return_inverse=True)
    totals = np.bincount(inverse, weights=counts).astype(np.float64, copy=False)
    return totals[inverse]
