"""Adapted Rand error: the share of voxel pairs that a segmentation joins or parts wrongly, as SNEMI3D scores it.

I. Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation algorithms for connectomics",
Front. Neuroanat. 9:142 (2015), DOI 10.3389/fnana.2015.00142.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.metrics.contingency import ContingencyTable, PredBackground, with_background


@dataclass(frozen=True)
class AdaptedRand:
    """Adapted Rand error (1 - F score) with precision (1: no mergers) and recall (1: no splits), each from 0 to 1."""

    error: float
    precision: float
    recall: float


def adapted_rand(table: ContingencyTable, *, pred_background: PredBackground = "segment") -> AdaptedRand:
    """Score a contingency table by the pairs of distinct voxels that share a segment.

    Precision is the share of the pairs joined by the prediction that the truth joins too, recall the share of the pairs
    joined by the truth that the prediction joins too. True 0 does not count if the table was made without it (the
    default of `contingency_table`), as in SNEMI3D.

    What a predicted 0 means changes the score, so it is said explicitly (see `PredBackground`). The default, `segment`,
    is what scikit-image computes, so anyone can check a figure, and it is the strict one: voxels left unlabelled in
    several neurons count as merged with each other. The script of the challenge itself uses `singletons`; it also
    counts each voxel as a pair with itself, a difference of the order of one over the size of a segment. The error is
    scikit-image's; of what 0.26 calls precision and recall, each is the other here, and by the definition above.

    Raises `InvalidInput` where no voxel is left to score.
    """
    joint, single = with_background(table, pred_background)
    truth = np.concatenate([joint.truth, single.truth])
    both = _ordered_pairs(joint.counts)
    in_pred = _ordered_pairs(_totals(joint.pred, joint.counts))
    in_truth = _ordered_pairs(_totals(truth, np.concatenate([joint.counts, single.counts])))
    if in_pred + in_truth == 0:  # neither side joins any two voxels: they agree
        return AdaptedRand(0.0, 1.0, 1.0)
    return AdaptedRand(
        error=1 - 2 * both / (in_pred + in_truth),
        precision=both / in_pred if in_pred else 1.0,
        recall=both / in_truth if in_truth else 1.0,
    )


def _totals(ids: NDArray[np.uint64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Voxels per id: exact int64, in the order of the ids."""
    _, inverse = np.unique(ids, return_inverse=True)
    totals = np.zeros(int(inverse.max()) + 1 if inverse.size else 0, dtype=np.int64)
    np.add.at(totals, inverse, counts)
    return totals


def _ordered_pairs(counts: NDArray[np.int64]) -> float:
    """Pairs of distinct voxels within the groups; float64, since squares of large segments leave int64."""
    sizes = counts.astype(np.float64)
    return float((sizes * (sizes - 1)).sum())
