"""Image → affinities of one chunk."""

from __future__ import annotations

from infra.chunk_map import ChunkFunction, Report
from infra.ledger import checksum
from infra.volumes import open_volume
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
        affinities.write(run.local(chunk.box), predicted)
        ledger.mark(chunk.name, checksum=checksum([predicted]), report={"box": str(chunk.box)})
        return {}

    return apply
