"""Image → affinities of one chunk, by a network in the worker or by running endpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.chunk_map import ChunkFunction, Report
from infra.prefetch import Prefetched
from infra.registry import fetch
from infra.volumes import open_volume
from infra.written import Written
from models.catalog import Model
from models.errors import InvalidModel
from models.geometry import Box, Chunk
from services.engine import check_engine
from services.predict import Predictor, patch_plan
from services.run import Run

Predict = Callable[[NDArray[Any], Box], NDArray[np.uint8]]
"""From the image of a box's context to the box's affinities."""


def predict(run: Run) -> ChunkFunction:
    """The stage's function: the network is loaded once per worker, or found once among the endpoints."""
    model = fetch(run.model)
    if model.card.file.sha256 != run.model_sha256:
        raise InvalidModel(
            f"model {run.model}: the run was begun with SHA-256 {run.model_sha256}, here is {model.card.file.sha256}"
        )
    predicted_box = _here(run, model) if run.endpoints is None else _by_endpoints(run, model, run.endpoints)
    image = open_volume(run.image)
    affinities = run.volume("affinities.zarr", writable=True)
    ledger, plan = run.ledger("predict"), patch_plan(model.card, run.volume_shape)

    def load(chunk: Chunk) -> NDArray[Any]:
        return image.read(plan.context_box(chunk.box))

    def work(chunk: Chunk, values: NDArray[Any]) -> Report:
        predicted = predicted_box(values, chunk.box)
        box = run.local(chunk.box)
        affinities.write(box, predicted)
        ledger.mark(chunk, [Written.voxels(affinities.url, box, predicted)])
        return {}

    return Prefetched(load, work)


def _here(run: Run, model: Model) -> Predict:
    engine = run.engine
    predictor = Predictor(
        model, runtime=engine.runtime, precision=engine.precision, threads=run.threads, tta=run.options.augment
    )
    check_engine(engine, predictor.session)
    return lambda values, box: predictor.predict_box(lambda _: values, run.volume_shape, box)


def _by_endpoints(run: Run, model: Model, app: str) -> Predict:
    from services.served import ServedModel  # with Serve and FastAPI behind it, which nobody else needs here

    served, plan = ServedModel.find(app, model.card, run.engine), patch_plan(model.card, run.volume_shape)
    return lambda values, box: served.predict_box(values, plan, box, augment=run.options.augment)
