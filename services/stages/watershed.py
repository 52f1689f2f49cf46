"""Affinities → fragments, the region graph inside the chunk, and what the chunk's lower faces join."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infra.chunk_map import ChunkFunction, Report
from infra.prefetch import Prefetched
from infra.written import Written
from models.geometry import Chunk
from models.segmentation.region_graph import region_graph, segment_sizes
from models.segmentation.watershed import watershed_chunk
from services.run import Run
from services.stages.node_tables import write_graph, write_sizes

HALO = (1, 1, 1)


def watershed(run: Run) -> ChunkFunction:
    """The stage's function."""
    options = run.options.watershed
    low, high = max(1, round(255 * options.low)), round(255 * options.high)
    affinities = run.volume("affinities.zarr")
    fragments = run.volume("work/watershed/fragments.zarr", writable=True)
    ledger = run.ledger("watershed")

    def load(chunk: Chunk) -> NDArray[np.uint8]:
        return affinities.read(run.local(chunk.box.grown(HALO).intersection(run.domain)))

    def work(chunk: Chunk, values: NDArray[np.uint8]) -> Report:
        read_box = chunk.box.grown(HALO).intersection(run.domain)
        found = watershed_chunk(values, read_box, chunk.box, run.domain, run.volume_shape, low=low, high=high)
        inner = values[(slice(None), *chunk.box.slices(read_box.start))]
        graph = region_graph(inner, found.fragments)
        ids, sizes = segment_sizes(found.fragments)
        faces = {
            f"{kind}_{axis}": getattr(face, kind)
            for axis, face in enumerate(found.faces)
            if face is not None
            for kind in ("joined", "affinity")
        }
        box = run.local(chunk.box)
        fragments.write(box, found.fragments)
        outputs = [
            Written.voxels(fragments.url, box, found.fragments),
            write_graph(run.work("watershed"), f"fragments/edges/{chunk.name}", graph),
            write_sizes(run.work("watershed"), f"fragments/sizes/{chunk.name}", ids, sizes),
            run.work("watershed").write_arrays(f"fragments/planes/{chunk.name}.npz", faces),
        ]
        ledger.mark(chunk, outputs)
        return {"fragments": int(ids.size), "edges": len(graph)}

    return Prefetched(load, work)
