"""Average precision of affinities: how well they order the edges of the voxel grid, before any segmentation.

Affinities are stored as uint8, so two histograms of 256 bins hold all that the score needs; histograms of disjoint
boxes add up, and the score of a volume does not depend on how it was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput, InvalidVolume
from models.geometry import NEAREST, Triple


@dataclass(frozen=True, eq=False)
class EdgeHistogram:
    """Edges by affinity: `joined` within one true object, `cut` between two; int64 (256,) each."""

    joined: NDArray[np.int64]
    cut: NDArray[np.int64]

    def __add__(self, other: EdgeHistogram) -> EdgeHistogram:
        return EdgeHistogram(self.joined + other.joined, self.cut + other.cut)

    @classmethod
    def empty(cls) -> EdgeHistogram:
        """No edges."""
        return cls(np.zeros(256, np.int64), np.zeros(256, np.int64))


def edge_histogram(
    affinities: NDArray[np.uint8],
    truth: NDArray[np.integer],
    *,
    offsets: Sequence[Triple] = NEAREST,
    halo: Triple = (0, 0, 0),
) -> EdgeHistogram:
    """Count edges (p, p + offset) by their affinity and by whether truth joins them.

    `affinities`: uint8 (c, z, y, x), channel c belongs to `offsets[c]` and is anchored at p; `truth`: integers of the
    same spatial shape. Edges of a voxel with true id 0, and edges that leave the array, do not count. The first `halo`
    voxels along z, y, x are only looked up as partners, so chunks read with a halo of the offsets' extent count every
    edge once. Raises `InvalidVolume` for other dtypes or shapes, `InvalidInput` for an offset that is not negative
    or zero throughout.
    """
    if affinities.dtype != np.uint8 or affinities.ndim != 4 or affinities.shape != (len(offsets), *truth.shape):
        raise InvalidVolume(
            f"affinities: expected uint8 of shape {(len(offsets), *truth.shape)} for this truth and "
            f"{len(offsets)} offsets, got {affinities.dtype} of shape {affinities.shape}"
        )
    total = EdgeHistogram.empty()
    for channel, offset in zip(affinities, offsets, strict=True):
        if max(offset) > 0 or min(offset) == 0 == max(offset):
            raise InvalidInput(f"affinity offset: expected one that points back, as {NEAREST[0]}, got {offset}")
        first = [max(-o, h) for o, h in zip(offset, halo, strict=True)]
        if any(f >= n for f, n in zip(first, truth.shape, strict=True)):
            continue
        own = tuple(slice(f, None) for f in first)
        partner = tuple(slice(f + o, n + o) for f, o, n in zip(first, offset, truth.shape, strict=True))
        a, b, values = truth[own], truth[partner], channel[own]
        scored = (a != 0) & (b != 0)
        same = a == b
        total += EdgeHistogram(
            np.bincount(values[scored & same], minlength=256).astype(np.int64),
            np.bincount(values[scored & ~same], minlength=256).astype(np.int64),
        )
    return total


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision, 0 to 1, of finding joined edges by high and cut edges by low affinity; and their numbers."""

    joined: float
    cut: float
    joined_edges: int
    cut_edges: int


def average_precision(histogram: EdgeHistogram) -> AveragePrecision:
    """Both average precisions: the sum over thresholds of precision times the recall that the threshold adds.

    Edges of one affinity enter together, so ties cannot be ordered in the prediction's favour. `cut` is the telling
    one: few edges cross a boundary, and a prediction that joins everything scores their share there. Raises
    `InvalidInput` where there is no edge of one of the two kinds.
    """
    joined, cut = int(histogram.joined.sum()), int(histogram.cut.sum())
    if not joined or not cut:
        raise InvalidInput(f"average precision: expected edges of both kinds, got {joined} joined and {cut} cut")
    return AveragePrecision(
        _average(histogram.joined[::-1], histogram.cut[::-1]), _average(histogram.cut, histogram.joined), joined, cut
    )


def _average(hits: NDArray[np.int64], misses: NDArray[np.int64]) -> float:
    """Bins from the most to the least confident."""
    found, taken = np.cumsum(hits), np.cumsum(hits + misses)
    precision = np.divide(found, taken, out=np.zeros(found.size), where=taken > 0)
    return float((precision * hits).sum() / found[-1])
