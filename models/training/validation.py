"""How good a network is on a validation volume: loss per edge, and scores of the segmentation from its affinities.

A loss per edge hardly sees the few edges that split or merge neurons, so a run is judged by the segmentation:
watershed, small basins and mean-affinity agglomeration as in the pipeline, at the best of a few thresholds.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from models.errors import InvalidVolume
from models.geometry import NEAREST, Triple
from models.metrics.contingency import ContingencyTable, contingency_table
from models.metrics.rand import adapted_rand
from models.metrics.voi import variation_of_information
from models.segmentation.whole import WholeSegmentation, segment_whole
from models.training.targets import affinity_targets, balance_weights

TILE, MARGIN, VALID_TILE = 128, 16, 256
"""Volumes are predicted in tiles of at most this extent, with this much image around them where there is image.

Networks with a margin have larger tiles, and no more than their margin around them.
"""

THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
WATERSHED_HIGH, BASIN_VOXELS = 254, 300

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Probabilities (c, z, y, x) of an image (z, y, x) in [0, 1] whose extents the network's divisor divides."""


def predict(
    network: Network, image: NDArray[np.uint8], divisor: Triple, margin: Triple = (0, 0, 0)
) -> NDArray[np.float32]:
    """Return the network's probabilities, float32 (c, z, y, x), of a whole uint8 volume (z, y, x).

    `margin`: what the output of the network is smaller than its image; the volume is mirrored at its faces as far.
    """
    seen = np.pad(image, [(m, m) for m in margin], mode="reflect")
    probabilities = np.empty((0, *image.shape), np.float32)
    tile, context = (VALID_TILE, 0) if any(margin) else (TILE, MARGIN)
    for spans in product(*(_spans(extent, tile) for extent in image.shape)):
        read = tuple(slice(max(a - context, 0), b + context) for a, b in spans)
        patch = seen[tuple(slice(r.start, r.stop + 2 * m) for r, m in zip(read, margin, strict=True))]
        missing = [(0, -extent % d) for extent, d in zip(patch.shape, divisor, strict=True)]
        result = network(np.pad(patch.astype(np.float32) / np.float32(255), missing, mode="symmetric"))
        if not len(probabilities):
            probabilities = np.empty((len(result), *image.shape), np.float32)
        kept = tuple(slice(a - r.start, b - r.start) for (a, b), r in zip(spans, read, strict=True))
        probabilities[:, *(slice(a, b) for a, b in spans)] = result[:, *kept]
    return probabilities


def inner(array: NDArray[np.float32], margin: Triple) -> NDArray[np.float32]:
    """A view of an array (…, z, y, x) without `margin` voxels on either side."""
    z, y, x = (slice(m, extent - m) for m, extent in zip(margin, array.shape[-3:], strict=True))
    return array[..., z, y, x]


def edge_scores(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.integer],
    *,
    boundary_voxels: int,
    balance: float,
    offsets: tuple[Triple, ...] = NEAREST,
) -> dict[str, float]:
    """Return `loss`, the weighted cross entropy per edge, and `balanced_error`.

    The latter is the mean over both classes of the fraction of edges on the wrong side of 0.5.
    """
    targets, mask = affinity_targets(labels, offsets, boundary_voxels=boundary_voxels)
    weights = balance_weights(targets, mask, exponent=balance)
    right = np.clip(np.where(targets > 0.5, probabilities, 1 - probabilities), 1e-7, 1)
    wrong = [float((right[(mask > 0) & (targets == value)] < 0.5).mean()) for value in (0, 1)]
    loss = float(-(np.log(right) * weights).sum(dtype=np.float64) / max(float(weights.sum(dtype=np.float64)), 1.0))
    return {"loss": loss, "balanced_error": float(np.mean(wrong))}


def segmentation_scores(probabilities: NDArray[np.float32], labels: NDArray[np.integer]) -> dict[str, float]:
    """Return `voi`, `voi_split`, `voi_merge`, `adapted_rand_error` and `threshold` at the threshold of lowest VOI.

    Every voxel is labelled; true 0 and background are ignored. `THRESHOLDS`, `WATERSHED_HIGH` and `BASIN_VOXELS` are
    those that are tried.
    """
    whole, truth = _segmented(probabilities), np.maximum(labels, 0).astype(np.uint64)
    scores = (_scores([contingency_table(whole.segments_at(threshold), truth)], threshold) for threshold in THRESHOLDS)
    return min(scores, key=lambda found: found["voi"])


def section_scores(inside: NDArray[np.float32], labels: NDArray[np.integer]) -> dict[str, float]:
    """Return what `segmentation_scores` does, for the segments of each section by itself; means over sections.

    `inside`: (1, z, y, x), how likely a voxel lies inside of an object. One threshold serves all sections. Sections
    without labels do not count. Raises `InvalidVolume` where no section has any.
    """
    tables: dict[float, list[ContingencyTable]] = {threshold: [] for threshold in THRESHOLDS}
    for section in range(inside.shape[1]):
        truth = section_parts(labels[section])[None]
        if truth.any():
            whole = _segmented(affinities_of_inside(inside[:, section : section + 1]))
            for threshold, found in tables.items():
                found.append(contingency_table(whole.segments_at(threshold), truth))
    if not tables[THRESHOLDS[0]]:
        raise InvalidVolume(f"labels: expected objects in one section at least, got none in {labels.shape}")
    return min((_scores(found, threshold) for threshold, found in tables.items()), key=lambda scores: scores["voi"])


def section_parts(labels: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Ids, above 0, of the connected parts of each label of one section (y, x); 0 where labels are not positive."""
    voxel = np.arange(labels.size).reshape(labels.shape)
    same = [labels[1:] == labels[:-1], labels[:, 1:] == labels[:, :-1]]
    ends = [np.concatenate([voxel[1:][same[0]], voxel[:, 1:][same[1]]])]
    ends.append(np.concatenate([voxel[:-1][same[0]], voxel[:, :-1][same[1]]]))
    touching = coo_array((np.ones(ends[0].size, np.bool_), ends), shape=(labels.size, labels.size))
    _, parts = connected_components(touching, directed=False)
    return np.where(labels > 0, parts.reshape(labels.shape).astype(np.uint64) + np.uint64(1), np.uint64(0))


def affinities_of_inside(inside: NDArray[np.float32]) -> NDArray[np.float32]:
    """Nearest-neighbour probabilities (3, z, y, x): an edge is as likely as the less likely of its ends is inside.

    `inside`: (1, z, y, x). What the exported network does, see `models.networks.inference`.
    """
    affinities = np.repeat(inside, 3, axis=0)
    for axis in range(3):
        upper, lower = [slice(None)] * 3, [slice(None)] * 3
        upper[axis], lower[axis] = slice(1, None), slice(None, -1)
        np.minimum(inside[0][*upper], inside[0][*lower], out=affinities[axis][*upper])
    return affinities


def _segmented(probabilities: NDArray[np.float32]) -> WholeSegmentation:
    return segment_whole(
        np.clip(np.rint(probabilities * 255), 1, 255).astype(np.uint8),
        low=1,
        high=WATERSHED_HIGH,
        basin_voxels=BASIN_VOXELS,
        basin_affinity=1,
        floor=min(THRESHOLDS),
    )


def _scores(tables: list[ContingencyTable], threshold: float) -> dict[str, float]:
    voi = [variation_of_information(table) for table in tables]
    return {
        "voi": float(np.mean([v.total for v in voi])),
        "voi_split": float(np.mean([v.split for v in voi])),
        "voi_merge": float(np.mean([v.merge for v in voi])),
        "adapted_rand_error": float(np.mean([adapted_rand(table).error for table in tables])),
        "threshold": threshold,
    }


def _spans(extent: int, tile: int) -> list[tuple[int, int]]:
    """Nearly equal spans of at most `tile` that cover an axis."""
    count = -(-extent // tile)
    edges = [extent * i // count for i in range(count + 1)]
    return list(pairwise(edges))
