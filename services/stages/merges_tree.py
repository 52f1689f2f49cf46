"""Mean-affinity agglomeration over the octree: basins → merge tree → segments, exactly those of the whole graph.

Up: a chunk begins with its part of the region graph between basins; a node goes on with what its children hand up.
Down: the merges are cut at the threshold. What a threshold needs is kept: each node's merges, and the ids that it
handed up.
"""

from __future__ import annotations

from infra.chunk_map import ChunkFunction, Report
from infra.written import Written
from models.geometry import Chunk
from models.segmentation.agglomeration import agglomerate
from models.segmentation.faces import FaceEdges
from models.segmentation.hierarchy import HandedUp, IdMap, gathered, resolved, single_chunk
from models.segmentation.merge_tree import cut
from models.segmentation.relabel import distinct
from services.run import Run
from services.stages.node_tables import (
    node_faces,
    own_and_upper_faces,
    read_graph,
    read_handed_up,
    read_map,
    read_merges,
    write_faces,
    write_handed_up,
    write_map,
    write_merges,
)
from services.stages.seams_tree import final_above

PLACE = "agglomerate/merges"


def merges_of_chunk(run: Run) -> ChunkFunction:
    """The function for a chunk: its region graph between basins, and the merges that are certain."""
    out, ledger = run.folder, run.ledger("merges", "up_0")

    def apply(chunk: Chunk) -> Report:
        known = IdMap.joined([_basins(run, part) for part in (chunk, *_neighbours(run, chunk))])
        graph = read_graph(out, f"region_graph/edges/{chunk.name}").relabelled(known.keys, known.values)
        own, upper = own_and_upper_faces(run.octree, out / "region_graph/faces", 0, [chunk], chunk)
        own, upper = ([faces.relabelled(known.keys, known.values) for faces in part] for part in (own, upper))
        start = single_chunk(graph, distinct(_basins(run, chunk).values), FaceEdges.joined([*own, *upper]).ids)
        outputs = [write_faces(out / "work" / PLACE, f"faces/0/{chunk.name}", own[0])]
        ledger.mark(chunk, outputs + _merge(run, 0, chunk, start))
        return _figures(start)

    return apply


def merges_up(run: Run, level: int) -> ChunkFunction:
    """The function for a node of `level`, 1 to the root's."""
    tree, work = run.octree, run.folder / "work" / PLACE
    ledger = run.ledger("merges", f"up_{level}")

    def apply(node: Chunk) -> Report:
        inner, lower, touching = node_faces(tree, work / f"faces/{level - 1}", level, node)
        outputs = [write_faces(work, f"faces/{level}/{node.name}", lower)]
        left = [read_handed_up(work, f"left/{level - 1}/{child.name}") for child in tree.children(level, node)]
        start = gathered(left, inner, touching)
        ledger.mark(node, outputs + _merge(run, level, node, start))
        return _figures(start)

    return apply


def cut_down(run: Run, level: int) -> ChunkFunction:
    """The function that cuts the merges of a node of `level` at the run's threshold, and tells its children."""
    ledger = run.ledger("cut", f"down_{level}")

    def apply(node: Chunk) -> Report:
        found = _final(run, level, node)
        ledger.mark(node, [write_map(run.folder / "work" / PLACE, f"final/{level}/{node.name}", found)])
        return {}

    return apply


def segments_of_chunk(run: Run) -> ChunkFunction:
    """The function that ends the way down: supervoxel → segment for all of a chunk."""
    out, ledger = run.folder, run.ledger("cut", "down_0")

    def apply(chunk: Chunk) -> Report:
        basins = _basins(run, chunk)
        table = IdMap(basins.keys, _final(run, 0, chunk).of(basins.values))
        name = f"agglomeration/segment_of/{chunk.name}"
        ledger.mark(chunk, [write_map(out, name, table, key="supervoxel", value="segment")])
        return {}

    return apply


def _merge(run: Run, level: int, node: Chunk, start: HandedUp) -> list[Written]:
    """Merge what is certain; store the merges, and what goes up."""
    linkage = agglomerate(start.edges, run.options.agglomeration.floor, start.segments)
    left, place = HandedUp.of(linkage), f"{level}/{node.name}"
    return [
        write_merges(run.folder, f"agglomeration/merges/{place}", linkage.merges),
        run.folder.write_table(f"agglomeration/handed_up/{place}.parquet", {"id": left.segments.ids}),
        *write_handed_up(run.folder / "work" / PLACE, f"left/{place}", left),
    ]


def _final(run: Run, level: int, node: Chunk) -> IdMap:
    """What became of the ids that a node began with, at the run's threshold."""
    tree = read_merges(run.folder, f"agglomeration/merges/{level}/{node.name}")
    handed_up = run.folder.read_table(f"agglomeration/handed_up/{level}/{node.name}.parquet")["id"]
    own = IdMap(*cut(tree, run.options.agglomeration.threshold))
    return resolved(own, handed_up, final_above(run, PLACE, level, node))


def _figures(start: HandedUp) -> Report:
    segments, edges = len(start.segments), len(start.edges)
    return {"segments": segments, "edges": edges, "largest_segments": segments, "largest_edges": edges}


def _basins(run: Run, chunk: Chunk) -> IdMap:
    return read_map(run.folder, f"agglomeration/basin_of/{chunk.name}")


def _neighbours(run: Run, chunk: Chunk) -> list[Chunk]:
    found = (run.octree.beyond(0, chunk, axis, step) for axis in range(3) for step in (-1, 1))
    return [other for other in found if other is not None]
