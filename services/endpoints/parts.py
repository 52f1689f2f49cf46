"""What pipelines ask of the endpoints by handle: a part of a volume, with what their own workers would compute.

The image comes with its context, as `Predictor.predict_box` reads it, so the affinities are those of the whole volume,
and nothing is read or written here. An answer says what computed it, since one run never mixes engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.runtimes.session import chosen_runtime
from models.geometry import Box, Triple
from services.endpoints.config import ServeConfig
from services.endpoints.worker import Loaded
from services.engine import engine_of
from services.run import Engine


@dataclass(frozen=True)
class Part:
    """A box of a volume of `volume_shape`; `augment` averages over symmetries, as a run's option does."""

    volume_shape: Triple
    box: Box
    augment: bool


@dataclass(frozen=True)
class PartAnswer:
    """Affinities uint8 (c, z, y, x) of a part, None where only the engine was asked for."""

    voxels: NDArray[np.uint8] | None
    engine: Engine


def predicted_part(model: Loaded, config: ServeConfig, part: Part | None, image: NDArray[Any] | None) -> PartAnswer:
    """Affinities of a part from the image of its context (`PatchPlan.context_box`); for no part, the engine alone."""
    engine = engine_of(chosen_runtime(config.runtime), model.full.session)
    if part is None or image is None:
        return PartAnswer(None, engine)
    predictor = model.predictor(model.patches(part.volume_shape, part.box))
    if part.augment:
        predictor = predictor.augmented()
    return PartAnswer(predictor.predict_box(lambda _: image, part.volume_shape, part.box), engine)
