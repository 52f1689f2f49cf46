"""Small basins over the octree: supervoxels → basins, exactly those of the whole region graph.

Up: a node joins what is certain and hands on what hangs on something open. Down: it tells its children what became of
what they had handed on.
"""

from __future__ import annotations

import numpy as np

from infra.chunk_map import ChunkFunction, Report
from infra.written import Written
from models.geometry import Chunk
from models.segmentation.faces import FaceEdges
from models.segmentation.hierarchy import IdMap, resolved
from models.segmentation.small_basins import BasinEdges, Basins, basins_of, gathered_basins, merge_small_basins
from services.run import Run
from services.stages.node_tables import (
    node_faces,
    own_and_upper_faces,
    read_graph,
    read_map,
    read_rows,
    read_sizes,
    write_faces,
    write_map,
    write_rows,
)
from services.stages.seams_tree import final_above

PLACE = "agglomerate/basins"


def basins_of_chunk_up(run: Run) -> ChunkFunction:
    """The function for a chunk."""
    out, ledger = run.folder, run.ledger("basins", "up_0")

    def apply(chunk: Chunk) -> Report:
        graph = read_graph(out, f"region_graph/edges/{chunk.name}")
        own, upper = own_and_upper_faces(run.octree, out / "region_graph/faces", 0, [chunk], chunk)
        ids, voxels = read_sizes(out, f"region_graph/sizes/{chunk.name}")
        touching = FaceEdges.joined([*own, *upper]).ids
        basins, edges = basins_of(ids, voxels, touching), BasinEdges.of(graph)
        ledger.mark(chunk, _decide(run, 0, chunk, basins, edges))
        return _figures(basins, edges)

    return apply


def basins_up(run: Run, level: int) -> ChunkFunction:
    """The function for a node of `level`, 1 to the root's."""
    tree, work = run.octree, run.folder / "work" / PLACE
    faces_below = run.folder / "region_graph/faces" if level == 1 else work / f"faces/{level - 1}"
    ledger = run.ledger("basins", f"up_{level}")

    def apply(node: Chunk) -> Report:
        inner, lower, touching = node_faces(tree, faces_below, level, node)
        outputs = [write_faces(work, f"faces/{level}/{node.name}", lower)]
        below = [f"left/{level - 1}/{child.name}" for child in tree.children(level, node)]
        parts = [read_rows(work, f"{name}.basins", Basins) for name in below]
        edges_of_parts = [*(read_rows(work, f"{name}.edges", BasinEdges) for name in below), BasinEdges.of(inner.graph)]
        del inner, lower  # a large node needs their memory
        basins, edges = gathered_basins(parts, edges_of_parts, touching)
        ledger.mark(node, outputs + _decide(run, level, node, basins, edges))
        return _figures(basins, edges)

    return apply


def basins_down(run: Run, level: int) -> ChunkFunction:
    """The function that tells what became of the basins of the children of a node of `level`."""
    work, ledger = run.folder / "work" / PLACE, run.ledger("basins", f"down_{level}")

    def apply(node: Chunk) -> Report:
        ledger.mark(node, [write_map(work, f"final/{level}/{node.name}", _final(run, level, node))])
        return {}

    return apply


def basins_of_chunk_down(run: Run) -> ChunkFunction:
    """The function that ends the way down: supervoxel → basin for all of a chunk."""
    out, ledger = run.folder, run.ledger("basins", "down_0")

    def apply(chunk: Chunk) -> Report:
        ids, _ = read_sizes(out, f"region_graph/sizes/{chunk.name}")
        table = IdMap(ids, _final(run, 0, chunk).of(ids))
        name = f"agglomeration/basin_of/{chunk.name}"
        ledger.mark(chunk, [write_map(out, name, table, key="supervoxel", value="basin")])
        return {}

    return apply


def _decide(run: Run, level: int, node: Chunk, basins: Basins, edges: BasinEdges) -> list[Written]:
    """Join what is certain; store what became of each basin, and what goes up."""
    options, work = run.options.agglomeration, run.folder / "work" / PLACE
    limit = max(1, round(255 * options.basin_affinity))
    done = merge_small_basins(basins, edges, size_threshold=options.basin_voxels, min_affinity=limit)
    place = f"{level}/{node.name}"
    return [
        write_map(work, f"own/{place}", IdMap(done.keys, done.values)),
        write_rows(work, f"left/{place}.basins", done.basins),
        write_rows(work, f"left/{place}.edges", done.edges),
    ]


def _final(run: Run, level: int, node: Chunk) -> IdMap:
    own = read_map(run.folder / "work" / PLACE, f"own/{level}/{node.name}")
    return resolved(own, np.empty(0, np.uint64), final_above(run, PLACE, level, node))


def _figures(basins: Basins, edges: BasinEdges) -> Report:
    return {
        "segments": len(basins),
        "edges": len(edges),
        "largest_segments": len(basins),
        "largest_edges": len(edges),
    }
