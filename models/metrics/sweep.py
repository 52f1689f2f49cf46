"""Scores over thresholds from one contingency table: supervoxel x truth, and the merges in the order of their scores.

What relabelling the volume at a threshold would score is a function of the table in which the supervoxels of a segment
are one row. So the volume is read once, and every threshold costs a pass over a table that shrinks as segments merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.errors import InvalidInput
from models.metrics.contingency import ContingencyTable, PredBackground, merged_predictions
from models.metrics.cremi import cremi_score
from models.metrics.rand import AdaptedRand, adapted_rand
from models.metrics.voi import VOI, variation_of_information
from models.segmentation.merge_tree import MergeTree, cut
from models.segmentation.ratios import Threshold, affinity_ratio
from models.segmentation.relabel import Ids, relabelled
from models.segmentation.union_find import union_find


@dataclass(frozen=True)
class SweepPoint:
    """The scores of the segmentation cut at `threshold`, and how many of its segments touch the truth."""

    threshold: float
    voi: VOI
    rand: AdaptedRand
    segments: int

    @property
    def cremi(self) -> float:
        """CREMI score: geometric mean of VOI sum and adapted Rand error."""
        return cremi_score(self.voi, self.rand)


def sweep(
    table: ContingencyTable,
    tree: MergeTree,
    thresholds: Sequence[Threshold],
    *,
    basins: tuple[Ids, Ids] | None = None,
    pred_background: PredBackground = "segment",
) -> list[SweepPoint]:
    """Score every threshold, the highest first.

    `table`: supervoxels (pred) against truth. `basins`: pairs of supervoxels that the merging of small basins joined,
    whatever the threshold. `tree`: the merges above it. `thresholds`: 0 to 1, see `affinity_ratio`; below the one that
    the tree was made with, scores stay those of the whole tree. Raises `InvalidInput` for thresholds outside 0 to 1 or
    none at all, or where no voxel is left to score.
    """
    if not thresholds:
        raise InvalidInput("sweep: expected at least one threshold")
    for threshold in thresholds:
        affinity_ratio(threshold)
    ordered = sorted(set(thresholds), reverse=True)
    if basins is not None:
        table = merged_predictions(table, *union_find(*basins))
    points = []
    for threshold in ordered:
        keys, roots = cut(tree, threshold)
        if keys.size:
            table, tree = merged_predictions(table, keys, roots), _rest(tree, keys, roots)
        points.append(
            SweepPoint(
                float(threshold),
                variation_of_information(table, pred_background=pred_background),
                adapted_rand(table, pred_background=pred_background),
                int(np.unique(table.pred[table.pred != 0]).size),
            )
        )
    return points


def _rest(tree: MergeTree, keys: Ids, roots: Ids) -> MergeTree:
    """The merges that a cut left, between the segments it made.

    An id is absorbed at most once and only by a smaller one, so the merges that were applied are those whose `b` is no
    root any more.
    """
    left = relabelled(tree.b, keys, roots, missing="keep") == tree.b
    return MergeTree(
        relabelled(tree.a[left], keys, roots, missing="keep"),
        tree.b[left],
        tree.affinity_sum[left],
        tree.face_count[left],
    )
