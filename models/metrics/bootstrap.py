"""Confidence intervals of scores by resampling objects.

A volume holds few objects, and neighbouring voxels are anything but independent, so intervals come from drawing whole
objects with replacement (B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7 (1979),
DOI 10.1214/aos/1176344552). They say how far the score would move with other objects of the same kind and the same
segmentation around them; they know nothing of other volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput

Terms = NDArray[np.float64]
Statistic = Callable[[Terms], NDArray[np.float64]]

_BLOCK = 1 << 22  # drawn numbers held at a time


@dataclass(frozen=True)
class Interval:
    """The central `confidence` share of a score's bootstrap distribution (percentiles) over `objects` objects."""

    low: float
    high: float
    confidence: float
    samples: int
    objects: int

    def __str__(self) -> str:
        return f"{self.low:.4f} to {self.high:.4f}"


def bootstrap(
    terms: Terms,
    statistics: Mapping[str, Statistic],
    *,
    rng: np.random.Generator,
    samples: int = 1000,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Percentile intervals of statistics that are functions of sums over objects.

    `terms`: float64 (objects, k), what each object adds to the k sums. Each statistic maps sums (samples, k) to values
    (samples,); sums for which it is NaN are left out. `rng` decides the draws, so equal input gives equal intervals.
    Raises `InvalidInput` for fewer than two objects or samples, or a confidence outside 0 to 1.
    """
    if terms.ndim != 2 or terms.shape[0] < 2:
        raise InvalidInput(f"bootstrap: expected terms (objects, k) of at least two objects, got shape {terms.shape}")
    if samples < 2 or not 0 < confidence < 1:
        raise InvalidInput(
            f"bootstrap: expected at least 2 samples and 0 < confidence < 1, got {samples}, {confidence}"
        )
    count = terms.shape[0]
    sums = np.empty((samples, terms.shape[1]))
    share = np.full(count, 1 / count)
    step = max(1, _BLOCK // count)
    for begin in range(0, samples, step):
        draws = rng.multinomial(count, share, size=min(step, samples - begin))
        sums[begin : begin + len(draws)] = draws.astype(np.float64) @ terms
    tail = (1 - confidence) / 2
    intervals = {}
    for name, statistic in statistics.items():
        low, high = np.nanquantile(statistic(sums), [tail, 1 - tail])
        intervals[name] = Interval(float(low), float(high), confidence, samples, count)
    return intervals
