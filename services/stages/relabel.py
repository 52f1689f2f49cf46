"""Fragments → supervoxels and segments of one chunk."""

from __future__ import annotations

from infra.chunk_map import ChunkFunction, Report
from infra.written import Written
from models.geometry import Chunk
from models.segmentation.relabel import relabelled
from services.run import Run


def relabel(run: Run) -> ChunkFunction:
    """The stage's function; a chunk reads the part of the map that holds its own fragments."""
    fragments = run.volume("work/fragments.zarr")
    supervoxels = run.volume("supervoxels.zarr", writable=True)
    segmentation = run.volume("segmentation.zarr", writable=True)
    ledger = run.ledger("relabel")

    def apply(chunk: Chunk) -> Report:
        box = run.local(chunk.box)
        table = run.work.read_table(f"map/{chunk.name}.parquet")
        found = fragments.read(box)
        parts = relabelled(found, table["fragment"], table["supervoxel"])
        segments = relabelled(found, table["fragment"], table["segment"])
        supervoxels.write(box, parts)
        segmentation.write(box, segments)
        outputs = [Written.voxels(supervoxels.url, box, parts), Written.voxels(segmentation.url, box, segments)]
        ledger.mark(chunk, outputs)
        return {}

    return apply
