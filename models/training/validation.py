"""How good a network is on a validation volume: loss per edge, and scores of the segmentation from its affinities.

A loss per edge hardly sees the few edges that split or merge neurons, so a run is judged by the segmentation:
watershed, small basins and mean-affinity agglomeration as in the pipeline, at the best of a few thresholds.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from models.geometry import NEAREST, Triple
from models.metrics.contingency import contingency_table
from models.metrics.rand import adapted_rand
from models.metrics.voi import variation_of_information
from models.segmentation.whole import segment_whole
from models.training.targets import affinity_targets, balance_weights

TILE, MARGIN = 128, 16
"""Volumes are predicted in tiles of at most this extent, with this much image around them where there is image."""

THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
WATERSHED_HIGH, BASIN_VOXELS = 254, 300

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Probabilities (3, z, y, x) of an image (z, y, x) in [0, 1] whose extents the network's divisor divides."""


def predict(network: Network, image: NDArray[np.uint8], divisor: Triple) -> NDArray[np.float32]:
    """Return nearest-neighbour probabilities, float32 (3, z, y, x), of a whole uint8 volume (z, y, x)."""
    probabilities = np.empty((3, *image.shape), np.float32)
    grids = [_spans(extent) for extent in image.shape]
    for spans in product(*grids):
        read = tuple(slice(max(a - MARGIN, 0), b + MARGIN) for a, b in spans)
        patch = image[read].astype(np.float32) / np.float32(255)
        missing = [(0, -extent % d) for extent, d in zip(patch.shape, divisor, strict=True)]
        result = network(np.pad(patch, missing, mode="symmetric"))
        kept = tuple(slice(a - r.start, b - r.start) for (a, b), r in zip(spans, read, strict=True))
        probabilities[:, *(slice(a, b) for a, b in spans)] = result[:, *kept]
    return probabilities


def edge_scores(
    probabilities: NDArray[np.float32], labels: NDArray[np.integer], *, boundary_voxels: int, balance: float
) -> dict[str, float]:
    """Return `loss`, the weighted cross entropy per edge, and `balanced_error`.

    The latter is the mean over both classes of the fraction of edges on the wrong side of 0.5.
    """
    targets, mask = affinity_targets(labels, NEAREST, boundary_voxels=boundary_voxels)
    weights = balance_weights(targets, mask, exponent=balance)
    right = np.clip(np.where(targets > 0.5, probabilities, 1 - probabilities), 1e-7, 1)
    wrong = [float((right[(mask > 0) & (targets == value)] < 0.5).mean()) for value in (0, 1)]
    loss = float(-(np.log(right) * weights).sum(dtype=np.float64) / max(float(weights.sum(dtype=np.float64)), 1.0))
    return {"loss": loss, "balanced_error": float(np.mean(wrong))}


def segmentation_scores(probabilities: NDArray[np.float32], labels: NDArray[np.integer]) -> dict[str, float]:
    """Return `voi`, `voi_split`, `voi_merge`, `adapted_rand_error` and `threshold` at the threshold of lowest VOI.

    Every voxel is labelled; true 0 is ignored. `THRESHOLDS`, `WATERSHED_HIGH` and `BASIN_VOXELS` are those that are
    tried.
    """
    affinities = np.clip(np.rint(probabilities * 255), 1, 255).astype(np.uint8)
    whole = segment_whole(
        affinities,
        low=1,
        high=WATERSHED_HIGH,
        basin_voxels=BASIN_VOXELS,
        basin_affinity=1,
        floor=min(THRESHOLDS),
    )
    truth = labels.astype(np.uint64)
    best: dict[str, float] = {}
    for threshold in THRESHOLDS:
        table = contingency_table(whole.segments_at(threshold), truth)
        voi = variation_of_information(table)
        if not best or voi.total < best["voi"]:
            best = {
                "voi": voi.total,
                "voi_split": voi.split,
                "voi_merge": voi.merge,
                "adapted_rand_error": adapted_rand(table).error,
                "threshold": threshold,
            }
    return best


def _spans(extent: int) -> list[tuple[int, int]]:
    """Nearly equal spans of at most `TILE` that cover an axis."""
    count = -(-extent // TILE)
    edges = [extent * i // count for i in range(count + 1)]
    return list(pairwise(edges))
