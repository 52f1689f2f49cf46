"""The region graph as tables: for each chunk the edges between its supervoxels, and those across its lower faces."""

from __future__ import annotations

from infra.chunk_map import ChunkFunction, Report
from models.geometry import Chunk
from models.segmentation.faces import FaceEdges
from models.segmentation.hierarchy import IdMap, added_up
from services.run import Run, chunk_before
from services.stages.node_tables import (
    read_faces,
    read_graph,
    read_map,
    read_sizes,
    write_faces,
    write_graph,
    write_sizes,
)


def region_graph(run: Run) -> ChunkFunction:
    """The stage's function: tables of fragments become tables of supervoxels.

    region_graph/edges: both ends in the chunk; /faces: edges across its lower faces, and supervoxels on both sides;
    /sizes: voxels of each supervoxel in the chunk. Figures of one pair or supervoxel in several tables add up.
    """
    work, out, ledger = run.work("watershed"), run.folder, run.ledger("region_graph")

    def apply(chunk: Chunk) -> Report:
        before = [chunk_before(run.grid, chunk, axis) for axis in range(3)]
        parts = [chunk, *(other for other in before if other is not None)]
        known = IdMap.joined([read_map(work, f"seams/map/{part.name}") for part in parts])
        graph = read_graph(work, f"fragments/edges/{chunk.name}").relabelled(known.keys, known.values)
        ids, voxels = read_sizes(work, f"fragments/sizes/{chunk.name}")
        ids, voxels = added_up(known.of(ids), voxels)
        faces = read_faces(work, f"fragments/faces/{chunk.name}").relabelled(known.keys, known.values)
        outputs = [
            write_graph(out, f"region_graph/edges/{chunk.name}", graph),
            write_sizes(out, f"region_graph/sizes/{chunk.name}", ids, voxels),
            write_faces(
                out, f"region_graph/faces/{chunk.name}", FaceEdges.joined([faces, *_seam_rows(run, chunk, known)])
            ),
        ]
        ledger.mark(chunk, outputs)
        return {"supervoxels": int(ids.size), "edges": len(graph), "face_edges": len(faces)}

    return apply


def _seam_rows(run: Run, chunk: Chunk, known: IdMap) -> list[FaceEdges]:
    """Supervoxels on both sides of the chunk's lower faces."""
    table = run.work("watershed").read_table(f"seams/pairs/0/{chunk.name}.parquet")
    return [FaceEdges.on_both_sides(axis, known.of(table["own"][table["axis"] == axis])) for axis in range(3)]
