"""Image → affinities of one chunk."""

from __future__ import annotations

from infra.chunk_map import ChunkFunction, Report
from infra.volumes import open_volume
from infra.written import Written
from models.geometry import Chunk
from services.predict import Predictor
from services.run import Run


def predict(run: Run) -> ChunkFunction:
    """The stage's function: the network is loaded once per worker."""
    options = run.options
    predictor = Predictor(
        run.model, runtime=options.runtime, precision=options.precision, threads=run.threads, tta=options.augment
    )
    image = open_volume(run.image)
    affinities = run.volume("affinities.zarr", writable=True)
    ledger = run.ledger("predict")

    def apply(chunk: Chunk) -> Report:
        predicted = predictor.predict_box(image.read, run.volume_shape, chunk.box)
        box = run.local(chunk.box)
        affinities.write(box, predicted)
        ledger.mark(chunk, [Written.voxels(affinities.url, box, predicted)])
        return {}

    return apply
