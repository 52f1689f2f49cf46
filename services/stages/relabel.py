"""Supervoxels → segments of one chunk."""

from __future__ import annotations

from infra.chunk_map import ChunkFunction, Report
from infra.written import Written
from models.geometry import Chunk
from models.segmentation.relabel import relabelled
from services.run import Run
from services.stages.node_tables import read_map


def relabel(run: Run) -> ChunkFunction:
    """The stage's function; a chunk reads only its own part of the map."""
    supervoxels = run.volume("supervoxels.zarr")
    segmentation = run.volume("segmentation.zarr", writable=True)
    ledger = run.ledger("relabel")

    def apply(chunk: Chunk) -> Report:
        box = run.local(chunk.box)
        known = read_map(run.folder, f"agglomeration/segment_of/{chunk.name}")
        segments = relabelled(supervoxels.read(box), known.keys, known.values)
        segmentation.write(box, segments)
        ledger.mark(chunk, [Written.voxels(segmentation.url, box, segments)])
        return {}

    return apply
