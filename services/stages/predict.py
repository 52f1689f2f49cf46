"""Image → affinities of one chunk."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from infra.chunk_map import ChunkFunction, Report
from infra.prefetch import Prefetched
from infra.registry import fetch
from infra.volumes import open_volume
from infra.written import Written
from models.errors import InvalidModel
from models.geometry import Chunk
from services.engine import check_engine
from services.predict import Predictor
from services.run import Run


def predict(run: Run) -> ChunkFunction:
    """The stage's function: the network is loaded once per worker."""
    engine = run.engine
    model = fetch(run.model)
    if model.card.file.sha256 != run.model_sha256:
        raise InvalidModel(
            f"model {run.model}: the run was begun with SHA-256 {run.model_sha256}, here is {model.card.file.sha256}"
        )
    predictor = Predictor(
        model, runtime=engine.runtime, precision=engine.precision, threads=run.threads, tta=run.options.augment
    )
    check_engine(engine, predictor.session)
    image = open_volume(run.image)
    affinities = run.volume("affinities.zarr", writable=True)
    ledger = run.ledger("predict")

    plan = predictor.plan(run.volume_shape)

    def load(chunk: Chunk) -> NDArray[Any]:
        return image.read(plan.context_box(chunk.box))

    def work(chunk: Chunk, values: NDArray[Any]) -> Report:
        predicted = predictor.predict_box(lambda _: values, run.volume_shape, chunk.box)
        box = run.local(chunk.box)
        affinities.write(box, predicted)
        ledger.mark(chunk, [Written.voxels(affinities.url, box, predicted)])
        return {}

    return Prefetched(load, work)
