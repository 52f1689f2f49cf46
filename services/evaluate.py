"""Scores of a segmentation against truth: VOI, adapted Rand error and CREMI score, with intervals over objects."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from models.errors import InvalidInput
from models.geometry import Box
from models.metrics.bootstrap import Interval
from models.metrics.contingency import ContingencyTable, PredBackground
from models.metrics.cremi import cremi_score
from models.metrics.objects import object_terms, score_intervals
from models.metrics.rand import AdaptedRand, adapted_rand
from models.metrics.voi import VOI, variation_of_information
from services.label_pair import LabelPair, Progress

SEED = 0
"""Of the draws of objects: equal tables give equal intervals."""


@dataclass(frozen=True)
class SegmentationScores:
    """Scores with the conventions under which they hold.

    `box` is the part of the truth that was read; `voxels_scored` those that count, `voxels_ignored` those with true id
    0, `voxels_unlabelled` those among the counted that the prediction leaves at 0 (scored as `pred_background` says).
    `intervals`: 95 % bootstrap intervals over true objects by score, none where they were not asked for.
    """

    prediction: str
    truth: str
    box: Box
    voi: VOI
    rand: AdaptedRand
    voxels_scored: int
    voxels_ignored: int
    voxels_unlabelled: int
    pred_background: PredBackground
    intervals: dict[str, Interval]

    @property
    def cremi(self) -> float:
        """CREMI score: geometric mean of VOI sum and adapted Rand error."""
        return cremi_score(self.voi, self.rand)

    def as_json(self) -> dict[str, Any]:
        """One JSON object: flat names, VOI in bits."""
        return {
            "prediction": self.prediction,
            "truth": self.truth,
            "box": str(self.box),
            "voi_split": self.voi.split,
            "voi_merge": self.voi.merge,
            "voi_sum": self.voi.total,
            **{f"adapted_rand_{name}": value for name, value in asdict(self.rand).items()},
            "cremi_score": self.cremi,
            "intervals": {name: [interval.low, interval.high] for name, interval in self.intervals.items()},
            "voxels_scored": self.voxels_scored,
            "voxels_ignored": self.voxels_ignored,
            "voxels_unlabelled": self.voxels_unlabelled,
            "conventions": {
                "ignored_truth": [0],
                "predicted_background": self.pred_background,
                "voi_unit": "bits",
                **interval_convention(self.intervals),
            },
        }


def evaluate_segmentation(
    prediction: str,
    truth: str,
    *,
    box: str | Box | None = None,
    pred_background: PredBackground = "segment",
    samples: int = 0,
    on_progress: Progress | None = None,
) -> SegmentationScores:
    """Compare two label volumes (URLs) voxel by voxel, in this process; true 0 is ignored.

    `box` as in `LabelPair.open`; `samples` draws of objects for the intervals, 0 for none. Raises `NotFound` and the
    other storage errors; `InvalidVolume` for volumes that are not integer labels or do not fit each other;
    `InvalidInput` for a wrong box or where no voxel has a true id.
    """
    check_background(pred_background)
    pair = LabelPair.open(prediction, truth, box)
    return scores_of(pair, pair.table(on_progress=on_progress), pred_background, samples)


def scores_of(
    pair: LabelPair, table: ContingencyTable, pred_background: PredBackground, samples: int
) -> SegmentationScores:
    """All scores of a contingency table; no intervals where there is only one true object."""
    terms = object_terms(table, pred_background=pred_background)
    wanted = samples > 0 and terms.truth.size > 1
    return SegmentationScores(
        prediction=pair.pred.url,
        truth=pair.truth.url,
        box=pair.box,
        voi=variation_of_information(table, pred_background=pred_background),
        rand=adapted_rand(table, pred_background=pred_background),
        voxels_scored=table.voxels - (table.unlabelled if pred_background == "ignore" else 0),
        voxels_ignored=table.ignored,
        voxels_unlabelled=table.unlabelled,
        pred_background=pred_background,
        intervals=score_intervals(terms, rng=np.random.default_rng(SEED), samples=samples) if wanted else {},
    )


def check_background(pred_background: str) -> None:
    """Raise `InvalidInput` for anything but a known convention."""
    if pred_background not in get_args(PredBackground):
        raise InvalidInput(f"pred_background: expected {', '.join(get_args(PredBackground))}, got {pred_background!r}")


def interval_convention(intervals: dict[str, Interval]) -> dict[str, Any]:
    """How intervals were made, for JSON; empty where there are none."""
    if not intervals:
        return {}
    one = next(iter(intervals.values()))
    return {"interval": f"bootstrap over {one.objects} objects, {one.samples} draws, {one.confidence:g}"}
