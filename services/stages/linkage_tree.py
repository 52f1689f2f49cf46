"""Small basins and mean affinity over the octree: supervoxels → basins → merge tree, exactly that of the whole graph.

Both linkages go the same way. A chunk begins with its own edges and those at its faces, in the second linkage under the
ids that the first has given; a node goes on with what its children hand up, and the way down tells them what became of
it. What a threshold needs is kept: the merges of each node, and the ids that it handed up.
"""

from __future__ import annotations

from infra.chunk_map import ChunkFunction, Report
from infra.written import Written
from models.geometry import Chunk
from models.segmentation.agglomeration import agglomerate
from models.segmentation.faces import FaceEdges
from models.segmentation.hierarchy import HandedUp, IdMap, added_up, gathered, resolved, single_chunk
from models.segmentation.linkage import Linkage
from models.segmentation.merge_tree import cut
from models.segmentation.small_basins import merge_small_basins
from models.segmentation.union_find import union_find
from services.run import Run
from services.stages.node_tables import (
    read_faces,
    read_graph,
    read_handed_up,
    read_map,
    read_merges,
    read_sizes,
    write_faces,
    write_handed_up,
    write_map,
    write_merges,
)
from services.stages.seams_tree import final_above

BASINS, MERGES = "basins", "merges"


def chunk_up(run: Run, name: str) -> ChunkFunction:
    """The function for a chunk: bring its part of the region graph up to date, and merge what is certain."""
    out, ledger = run.folder, run.ledger(name, "up_0")

    def apply(chunk: Chunk) -> Report:
        graph = read_graph(out, f"region_graph/edges/{chunk.name}")
        ids, sizes = read_sizes(out, f"region_graph/sizes/{chunk.name}")
        own = read_faces(out, f"region_graph/faces/{chunk.name}")
        after = [(axis, run.octree.beyond(0, chunk, axis, 1)) for axis in range(3)]
        upper = [read_faces(out, f"region_graph/faces/{other.name}", (axis,)) for axis, other in after if other]
        outputs: list[Written] = []
        if name == MERGES:
            known = IdMap.joined([_basins(run, part) for part in (chunk, *_neighbours(run, chunk))])
            graph = graph.relabelled(known.keys, known.values)
            ids, sizes = added_up(known.of(ids), sizes)
            own, *upper = (faces.relabelled(known.keys, known.values) for faces in (own, *upper))
            outputs.append(write_faces(run.work("agglomerate"), f"merges/faces/0/{chunk.name}", own))
        start = single_chunk(graph, ids, sizes, FaceEdges.joined([own, *upper]).ids)
        ledger.mark(chunk, outputs + _link(run, name, 0, chunk, start))
        return _figures(start)

    return apply


def node_up(run: Run, name: str, level: int) -> ChunkFunction:
    """The function for a node of `level`, 1 to the root's."""
    tree = run.octree
    ledger = run.ledger(name, f"up_{level}")

    def apply(node: Chunk) -> Report:
        children = tree.children(level, node)
        left = [read_handed_up(run.work("agglomerate"), f"{name}/left/{level - 1}/{child.name}") for child in children]
        inner, lower = [], []
        for child in children:
            faces = _faces(run, name, level - 1, child)
            inner.append(faces.on(axis for axis in range(3) if child.index[axis] % 2))
            lower.append(faces.on(axis for axis in range(3) if not child.index[axis] % 2))
        own = FaceEdges.joined(lower)
        upper = [
            _faces(run, name, level - 1, other, axis)
            for axis in range(3)
            for other in tree.children_beyond(level, node, axis)
        ]
        start = gathered(left, FaceEdges.joined(inner), FaceEdges.joined([own, *upper]).ids)
        outputs = [write_faces(run.work("agglomerate"), f"{name}/faces/{level}/{node.name}", own)]
        outputs += _link(run, name, level, node, start)
        ledger.mark(node, outputs)
        return _figures(start)

    return apply


def basins_down(run: Run, level: int) -> ChunkFunction:
    """The function that tells what became of the ids of the children of a node of `level`, in small basins."""
    ledger = run.ledger("basins", f"down_{level}")

    def apply(node: Chunk) -> Report:
        found = _resolved(run, "basins", level, node, _all_merges(run, level, node))
        ledger.mark(node, [write_map(run.work("agglomerate"), f"basins/final/{level}/{node.name}", found)])
        return {}

    return apply


def basins_of_chunk(run: Run) -> ChunkFunction:
    """The function that ends the way down of the small basins: supervoxel → basin for all of a chunk."""
    out, ledger = run.folder, run.ledger("basins", "down_0")

    def apply(chunk: Chunk) -> Report:
        found = _resolved(run, "basins", 0, chunk, _all_merges(run, 0, chunk))
        ids, _ = read_sizes(out, f"region_graph/sizes/{chunk.name}")
        table = IdMap(ids, found.of(ids))
        name = f"agglomeration/basin_of/{chunk.name}"
        ledger.mark(chunk, [write_map(out, name, table, key="supervoxel", value="basin")])
        return {}

    return apply


def cut_down(run: Run, level: int) -> ChunkFunction:
    """The function that cuts the merges of a node of `level` at the run's threshold, and tells its children."""
    ledger = run.ledger("cut", f"down_{level}")

    def apply(node: Chunk) -> Report:
        found = _resolved(run, "merges", level, node, _cut(run, level, node))
        ledger.mark(node, [write_map(run.work("agglomerate"), f"merges/final/{level}/{node.name}", found)])
        return {}

    return apply


def segments_of_chunk(run: Run) -> ChunkFunction:
    """The function that ends the way down of the agglomeration: supervoxel → segment for all of a chunk."""
    out, ledger = run.folder, run.ledger("cut", "down_0")

    def apply(chunk: Chunk) -> Report:
        found = _resolved(run, "merges", 0, chunk, _cut(run, 0, chunk))
        basins = _basins(run, chunk)
        table = IdMap(basins.keys, found.of(basins.values))
        name = f"agglomeration/segment_of/{chunk.name}"
        ledger.mark(chunk, [write_map(out, name, table, key="supervoxel", value="segment")])
        return {}

    return apply


def _link(run: Run, name: str, level: int, node: Chunk, start: HandedUp) -> list[Written]:
    """Merge what is certain; store the merges, and what goes up."""
    linkage = _linked(run, name, start)
    left = HandedUp.of(linkage)
    place = f"{level}/{node.name}"
    return [
        write_merges(run.folder, f"agglomeration/{name}/{place}", linkage.merges),
        run.folder.write_table(f"agglomeration/{name}_handed_up/{place}.parquet", {"id": left.segments.ids}),
        *write_handed_up(run.work("agglomerate"), f"{name}/left/{place}", left),
    ]


def _linked(run: Run, name: str, start: HandedUp) -> Linkage:
    options = run.options.agglomeration
    if name == BASINS:
        limit = max(1, round(255 * options.basin_affinity))
        size = options.basin_voxels
        return merge_small_basins(start.edges, start.segments, size_threshold=size, min_affinity=limit)
    return agglomerate(start.edges, options.floor, start.segments)


def _figures(start: HandedUp) -> Report:
    segments, edges = len(start.segments), len(start.edges)
    return {"segments": segments, "edges": edges, "largest_segments": segments, "largest_edges": edges}


def _all_merges(run: Run, level: int, node: Chunk) -> IdMap:
    tree = read_merges(run.folder, f"agglomeration/basins/{level}/{node.name}")
    return IdMap(*union_find(tree.a, tree.b))


def _cut(run: Run, level: int, node: Chunk) -> IdMap:
    tree = read_merges(run.folder, f"agglomeration/merges/{level}/{node.name}")
    return IdMap(*cut(tree, run.options.agglomeration.threshold))


def _resolved(run: Run, name: str, level: int, node: Chunk, own: IdMap) -> IdMap:
    handed_up = run.folder.read_table(f"agglomeration/{name}_handed_up/{level}/{node.name}.parquet")["id"]
    return resolved(own, handed_up, final_above(run, f"agglomerate/{name}", level, node))


def _basins(run: Run, chunk: Chunk) -> IdMap:
    return read_map(run.folder, f"agglomeration/basin_of/{chunk.name}")


def _neighbours(run: Run, chunk: Chunk) -> list[Chunk]:
    found = (run.octree.beyond(0, chunk, axis, step) for axis in range(3) for step in (-1, 1))
    return [other for other in found if other is not None]


def _faces(run: Run, name: str, level: int, node: Chunk, *axes: int) -> FaceEdges:
    if level == 0 and name == BASINS:
        return read_faces(run.folder, f"region_graph/faces/{node.name}", axes or (0, 1, 2))
    return read_faces(run.work("agglomerate"), f"{name}/faces/{level}/{node.name}", axes or (0, 1, 2))
