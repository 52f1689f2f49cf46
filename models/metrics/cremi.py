"""CREMI score: one number for split and merge errors, by which the CREMI challenge ranks (https://cremi.org/metrics)."""

from __future__ import annotations

import math

from models.metrics.rand import AdaptedRand
from models.metrics.voi import VOI


def cremi_score(voi: VOI, rand: AdaptedRand) -> float:
    """The geometric mean of the VOI sum in bits and the adapted Rand error; 0 is perfect.

    It inherits the conventions under which both were computed (true 0 ignored, what a predicted 0 is).
    """
    return math.sqrt(voi.total * max(rand.error, 0.0))
