"""What meets across a chunk's lower faces: fragments that are one supervoxel, and edges of the region graph."""

from __future__ import annotations

import numpy as np

from infra.chunk_map import ChunkFunction, Report
from models.geometry import Box, Chunk
from models.segmentation.region_graph import RegionGraph, face_graph
from models.segmentation.watershed import Face, seam_pairs
from services.run import Run, chunk_before
from services.stages.graph_tables import write_graph


def seams(run: Run) -> ChunkFunction:
    """The stage's function; it reads two planes per face."""
    fragments = run.volume("work/fragments.zarr")
    ledger = run.ledger("seams")

    def apply(chunk: Chunk) -> Report:
        faces = run.work.read_arrays(f"faces/{chunk.name}.npz")
        pairs, graphs = [], [RegionGraph.empty()]
        for axis in range(3):
            if chunk_before(run.grid, chunk, axis) is None:
                continue
            face = Face(faces[f"joined_{axis}"], faces[f"affinity_{axis}"])
            planes = fragments.read(run.local(_two_planes(chunk.box, axis)))
            before, own = (np.ascontiguousarray(planes.take(i, axis)) for i in range(2))
            pairs.append(np.stack(seam_pairs(face, own, before)))
            graphs.append(face_graph(own, before, face.affinity))
        joined = np.concatenate(pairs, axis=1) if pairs else np.empty((2, 0), np.uint64)
        graph = RegionGraph.sum_of(graphs)
        outputs = [
            run.work.write_table(f"pairs/{chunk.name}.parquet", {"a": joined[0], "b": joined[1]}),
            write_graph(run.work, f"face_graph/{chunk.name}.parquet", graph),
        ]
        ledger.mark(chunk, outputs)
        return {"pairs": int(joined.shape[1])}

    return apply


def _two_planes(box: Box, axis: int) -> Box:
    """The last plane before the box on `axis`, and the box's first."""
    start, stop = list(box.start), list(box.stop)
    start[axis], stop[axis] = box.start[axis] - 1, box.start[axis] + 1
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
