"""What meets across a chunk's lower faces: fragments that are one supervoxel, and edges of the region graph."""

from __future__ import annotations

import numpy as np

from infra.chunk_map import ChunkFunction, Report
from models.geometry import Box, Chunk
from models.segmentation.faces import FaceEdges
from models.segmentation.region_graph import face_graph
from models.segmentation.watershed import Face, seam_pairs
from services.run import Run, chunk_before
from services.stages.node_tables import write_faces


def seams(run: Run) -> ChunkFunction:
    """The stage's function; it reads two planes per face.

    Pairs of joined fragments go to seams/pairs/0 (`axis`, `own`, `before`), edges to fragments/faces.
    """
    fragments = run.volume("work/watershed/fragments.zarr")
    ledger = run.ledger("seams")

    def apply(chunk: Chunk) -> Report:
        bundle = run.work("watershed").read_arrays(f"fragments/planes/{chunk.name}.npz")
        pairs = [np.empty((3, 0), np.uint64)]
        faces = []
        for axis in range(3):
            if chunk_before(run.grid, chunk, axis) is None:
                continue
            face = Face(bundle[f"joined_{axis}"], bundle[f"affinity_{axis}"])
            planes = fragments.read(run.local(_two_planes(chunk.box, axis)))
            before, own = (np.ascontiguousarray(planes.take(i, axis)) for i in range(2))
            a, b = seam_pairs(face, own, before)
            pairs.append(np.stack([np.full(a.size, axis, np.uint64), a, b]))
            faces.append(FaceEdges.of_face(axis, face_graph(own, before, face.affinity)))
        axes, own_ids, before_ids = np.concatenate(pairs, axis=1)
        columns = {"axis": axes.astype(np.uint8), "own": own_ids, "before": before_ids}
        outputs = [
            run.work("watershed").write_table(f"seams/pairs/0/{chunk.name}.parquet", columns),
            write_faces(run.work("watershed"), f"fragments/faces/{chunk.name}", FaceEdges.joined(faces)),
        ]
        ledger.mark(chunk, outputs)
        return {"pairs": int(axes.size)}

    return apply


def _two_planes(box: Box, axis: int) -> Box:
    """The last plane before the box on `axis`, and the box's first."""
    start, stop = list(box.start), list(box.stop)
    start[axis], stop[axis] = box.start[axis] - 1, box.start[axis] + 1
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
