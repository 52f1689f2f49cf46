"""Closes the watershed's seams over the octree: fragments → supervoxels, and no process sees all of them.

Up: a node joins the fragments that meet between its children. Down: it tells its children the final ids.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infra.chunk_map import ChunkFunction, Report
from infra.written import Written
from models.geometry import Chunk
from models.segmentation.hierarchy import IdMap, close_seams, resolved
from models.segmentation.relabel import distinct
from services.run import Run
from services.stages.node_tables import read_map, read_sizes, write_map

Pairs = NDArray[np.uint64]


def seams_up(run: Run, level: int) -> ChunkFunction:
    """The function for the nodes of `level`, 1 to the root's."""
    tree, work = run.octree, run.work("watershed")
    ledger = run.ledger("seams", f"up_{level}")

    def apply(node: Chunk) -> Report:
        children = tree.children(level, node)
        tables = {child.index: _read_pairs(run, level - 1, child) for child in children}
        inner, lower = _divided(tables)
        upper = [
            _read_pairs(run, level - 1, other)[axis]
            for axis in range(3)
            for other in tree.children_beyond(level, node, axis)
        ]
        known = [read_map(work, f"seams/open/{level - 1}/{child.name}") for child in children] if level > 1 else []
        open_ids = [*(pairs[0] for part in lower for pairs in part), *(pairs[1] for pairs in upper)]
        own, before = _stacked(inner)
        closed = close_seams(IdMap.joined(known), own, before, np.concatenate([np.empty(0, np.uint64), *open_ids]))
        outputs = [
            write_map(work, f"seams/open/{level}/{node.name}", closed.open),
            write_map(work, f"seams/roots/{level}/{node.name}", closed.roots),
            _write_pairs(run, level, node, [_stacked(part) for part in lower]),
        ]
        ledger.mark(node, outputs)
        return {"pairs": int(own.size), "largest_node": int(own.size)}

    return apply


def seams_down(run: Run, level: int) -> ChunkFunction:
    """The function for the nodes of `level`, from the root's to 1: what became of the children's fragments."""
    work, ledger = run.work("watershed"), run.ledger("seams", f"down_{level}")

    def apply(node: Chunk) -> Report:
        handed_up = read_map(work, f"seams/open/{level}/{node.name}").values
        roots = read_map(work, f"seams/roots/{level}/{node.name}")
        found = resolved(roots, distinct(handed_up), final_above(run, "watershed/seams", level, node))
        ledger.mark(node, [write_map(work, f"seams/final/{level}/{node.name}", found)])
        return {}

    return apply


def supervoxels(run: Run) -> ChunkFunction:
    """The function that ends the way down: it writes the supervoxels of a chunk, and the map of its fragments."""
    fragments = run.volume("work/watershed/fragments.zarr")
    volume = run.volume("supervoxels.zarr", writable=True)
    ledger = run.ledger("seams", "down_0")

    def apply(chunk: Chunk) -> Report:
        final = final_above(run, "watershed/seams", 0, chunk)
        ids, _ = read_sizes(run.work("watershed"), f"fragments/sizes/{chunk.name}")
        found = IdMap(ids, final.of(ids))
        box = run.local(chunk.box)
        labels = found.of(fragments.read(box))
        volume.write(box, labels)
        outputs = [
            Written.voxels(volume.url, box, labels),
            write_map(run.work("watershed"), f"seams/map/{chunk.name}", found, key="fragment", value="supervoxel"),
        ]
        ledger.mark(chunk, outputs)
        return {}

    return apply


def final_above(run: Run, place: str, level: int, node: Chunk) -> IdMap:
    """What the parent of a node says of its children's ids (in work/PLACE/final); the identity for the root."""
    if level == run.octree.depth:
        return IdMap.empty()
    return read_map(run.folder / "work" / place, f"final/{level + 1}/{run.octree.parent(level, node).name}")


def _read_pairs(run: Run, level: int, node: Chunk) -> list[Pairs]:
    """Pairs of a node's lower faces, per axis an array of two rows: own, before."""
    table = run.work("watershed").read_table(f"seams/pairs/{level}/{node.name}.parquet")
    pairs = np.stack([table["own"], table["before"]])
    return [pairs[:, table["axis"] == axis] for axis in range(3)]


def _write_pairs(run: Run, level: int, node: Chunk, per_axis: list[Pairs]) -> Written:
    axes = np.concatenate([np.full(pairs.shape[1], axis, np.uint8) for axis, pairs in enumerate(per_axis)])
    own, before = _stacked(per_axis)
    return run.work("watershed").write_table(
        f"seams/pairs/{level}/{node.name}.parquet", {"axis": axes, "own": own, "before": before}
    )


def _divided(tables: dict[tuple[int, int, int], list[Pairs]]) -> tuple[list[Pairs], list[list[Pairs]]]:
    """Pairs between the children, and per axis those at the node's own lower face."""
    inner: list[Pairs] = []
    lower: list[list[Pairs]] = [[], [], []]
    for index, per_axis in tables.items():
        for axis, pairs in enumerate(per_axis):
            (inner if index[axis] % 2 else lower[axis]).append(pairs)
    return inner, lower


def _stacked(parts: list[Pairs]) -> Pairs:
    return np.concatenate([np.empty((2, 0), np.uint64), *parts], axis=1)
