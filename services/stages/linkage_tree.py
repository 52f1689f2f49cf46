"""Small basins and mean affinity over the octree: supervoxels → basins → merge tree, exactly that of the whole graph.

Both linkages go the same way. A chunk begins with its own edges and those at its faces, under the ids that the step
before has given; a node goes on with what its children hand up. `Step` says which tables that are.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    write_graph,
    write_handed_up,
    write_map,
    write_merges,
    write_sizes,
)
from services.stages.seams_tree import final_above


@dataclass(frozen=True)
class Step:
    """One linkage: where its input lies and which map brings it up to date; all below the run's folder.

    `source` and `graph` hold edges/, faces/ and sizes/ per chunk: before and after the map.
    """

    name: str
    source: str
    map: str
    graph: str


BASINS = Step("basins", "work/fragments", "work/seams/map", "region_graph")
MERGES = Step("merges", "region_graph", "agglomeration/basin_of", "work/merges")
STEPS = {step.name: step for step in (BASINS, MERGES)}


def chunk_up(run: Run, name: str) -> ChunkFunction:
    """The function for a chunk: relabel its part of the region graph, and merge what is certain."""
    step, out = STEPS[name], run.folder
    ledger = run.ledger(name, "up_0")

    def apply(chunk: Chunk) -> Report:
        neighbours = [other for axis in range(3) for other in _neighbours(run, chunk, axis)]
        known = IdMap.joined([read_map(out, f"{step.map}/{part.name}") for part in (chunk, *neighbours)])
        graph = read_graph(out, f"{step.source}/edges/{chunk.name}").relabelled(known.keys, known.values)
        ids, sizes = read_sizes(out, f"{step.source}/sizes/{chunk.name}")
        ids, sizes = added_up(known.of(ids), sizes)
        lower = read_faces(out, f"{step.source}/faces/{chunk.name}").relabelled(known.keys, known.values)
        if name == BASINS.name:
            lower = FaceEdges.joined([lower, _seam_rows(run, chunk, known)])
        upper = _upper_faces(run, step, chunk, known)
        start = single_chunk(graph, ids, sizes, FaceEdges.joined([lower, *upper]).ids)
        outputs = [
            write_graph(out, f"{step.graph}/edges/{chunk.name}", graph),
            write_sizes(out, f"{step.graph}/sizes/{chunk.name}", ids, sizes),
            write_faces(out, f"{step.graph}/faces/{chunk.name}", lower),
        ]
        outputs += _link(run, name, 0, chunk, start)
        ledger.mark(chunk, outputs)
        return _figures(start)

    return apply


def node_up(run: Run, name: str, level: int) -> ChunkFunction:
    """The function for a node of `level`, 1 to the root's."""
    step, tree = STEPS[name], run.octree
    ledger = run.ledger(name, f"up_{level}")

    def apply(node: Chunk) -> Report:
        children = tree.children(level, node)
        left = [read_handed_up(run.work, f"{name}/left/{level - 1}/{child.name}") for child in children]
        inner, lower = [], []
        for child in children:
            faces = _faces(run, step, level - 1, child)
            inner.append(faces.on(axis for axis in range(3) if child.index[axis] % 2))
            lower.append(faces.on(axis for axis in range(3) if not child.index[axis] % 2))
        own = FaceEdges.joined(lower)
        upper = [
            _faces(run, step, level - 1, other, axis)
            for axis in range(3)
            for other in tree.children_beyond(level, node, axis)
        ]
        start = gathered(left, FaceEdges.joined(inner), FaceEdges.joined([own, *upper]).ids)
        outputs = [write_faces(run.work, f"{name}/faces/{level}/{node.name}", own)]
        outputs += _link(run, name, level, node, start)
        ledger.mark(node, outputs)
        return _figures(start)

    return apply


def basins_down(run: Run, level: int) -> ChunkFunction:
    """The function that tells what became of the ids of the children of a node of `level`, in small basins."""
    ledger = run.ledger("basins", f"down_{level}")

    def apply(node: Chunk) -> Report:
        found = _resolved(run, "basins", level, node, _all_merges(run, level, node))
        ledger.mark(node, [write_map(run.work, f"basins/final/{level}/{node.name}", found)])
        return {}

    return apply


def basins_of_chunk(run: Run) -> ChunkFunction:
    """The function that ends the way down of the small basins: supervoxel → basin for all of a chunk."""
    out, ledger = run.folder, run.ledger("basins", "down_0")

    def apply(chunk: Chunk) -> Report:
        found = _resolved(run, "basins", 0, chunk, _all_merges(run, 0, chunk))
        ids, _ = read_sizes(out, f"{BASINS.graph}/sizes/{chunk.name}")
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
        ledger.mark(node, [write_map(run.work, f"merges/final/{level}/{node.name}", found)])
        return {}

    return apply


def segments_of_chunk(run: Run) -> ChunkFunction:
    """The function that ends the way down of the agglomeration: supervoxel → segment for all of a chunk."""
    out, ledger = run.folder, run.ledger("cut", "down_0")

    def apply(chunk: Chunk) -> Report:
        found = _resolved(run, "merges", 0, chunk, _cut(run, 0, chunk))
        basins = read_map(out, f"agglomeration/basin_of/{chunk.name}")
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
        *write_handed_up(run.work, f"{name}/left/{place}", left),
    ]


def _linked(run: Run, name: str, start: HandedUp) -> Linkage:
    options = run.options.agglomeration
    if name == BASINS.name:
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
    return resolved(own, handed_up, final_above(run, name, level, node))


def _neighbours(run: Run, chunk: Chunk, axis: int) -> list[Chunk]:
    found = (run.octree.beyond(0, chunk, axis, step) for step in (-1, 1))
    return [other for other in found if other is not None]


def _upper_faces(run: Run, step: Step, chunk: Chunk, known: IdMap) -> list[FaceEdges]:
    """Rows of the faces after a chunk, which its neighbours own, under up-to-date ids."""
    found = []
    for axis in range(3):
        other = run.octree.beyond(0, chunk, axis, 1)
        if other is None:
            continue
        rows = read_faces(run.folder, f"{step.source}/faces/{other.name}", (axis,))
        found.append(rows.relabelled(known.keys, known.values))
        if step is BASINS:
            found.append(_seam_rows(run, other, known).on((axis,)))
    return found


def _seam_rows(run: Run, chunk: Chunk, known: IdMap) -> FaceEdges:
    """Supervoxels on both sides of a chunk's lower faces."""
    table = run.work.read_table(f"seams/pairs/0/{chunk.name}.parquet")
    parts = []
    for axis in range(3):
        own = known.of(table["own"][table["axis"] == axis])
        parts.append(FaceEdges.on_both_sides(axis, own))
    return FaceEdges.joined(parts)


def _faces(run: Run, step: Step, level: int, node: Chunk, *axes: int) -> FaceEdges:
    folder, name = (run.work, f"{step.name}/faces/{level}") if level else (run.folder, f"{step.graph}/faces")
    return read_faces(folder, f"{name}/{node.name}", axes or (0, 1, 2))
