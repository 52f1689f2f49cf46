"""Supervoxels → segments of one chunk."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infra.chunk_map import ChunkFunction, Report
from infra.prefetch import Prefetched
from infra.written import Written
from models.geometry import Chunk
from models.segmentation.hierarchy import IdMap
from models.segmentation.relabel import relabelled
from services.run import Run
from services.stages.node_tables import read_map


def relabel(run: Run) -> ChunkFunction:
    """The stage's function; a chunk reads only its own part of the map."""
    supervoxels = run.volume("supervoxels.zarr")
    segmentation = run.volume("segmentation.zarr", writable=True)
    ledger = run.ledger("relabel")

    def load(chunk: Chunk) -> tuple[IdMap, NDArray[np.uint64]]:
        known = read_map(run.folder, f"agglomeration/segment_of/{chunk.name}")
        return known, supervoxels.read(run.local(chunk.box))

    def work(chunk: Chunk, inputs: tuple[IdMap, NDArray[np.uint64]]) -> Report:
        box, (known, labels) = run.local(chunk.box), inputs
        segments = relabelled(labels, known.keys, known.values)
        segmentation.write(box, segments)
        ledger.mark(chunk, [Written.voxels(segmentation.url, box, segments)])
        return {}

    return Prefetched(load, work)
