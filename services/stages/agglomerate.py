"""Fragments of all chunks → supervoxels, region graph, merge tree and segments, and each chunk's part of the map.

One task sees the whole graph. The merge tree goes down to `TREE_FLOOR`, or to the threshold if that is lower, so that
every higher threshold is a cut through it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from infra.chunk_map import ChunkFunction, Report
from models.geometry import Chunk
from models.segmentation.agglomeration import agglomerate as agglomerate_graph
from models.segmentation.merge_tree import MergeTree, cut
from models.segmentation.region_graph import RegionGraph
from models.segmentation.relabel import relabelled
from models.segmentation.segments import Segments
from models.segmentation.small_basins import merge_small_basins
from models.segmentation.union_find import union_find
from services.run import Run
from services.stages.graph_tables import read_graph, write_graph

Ids = NDArray[np.uint64]
TREE_FLOOR = 0.1
"""Mean affinity down to which the merge tree is written."""


def agglomerate(run: Run) -> ChunkFunction:
    """The stage's function; its one chunk is the whole domain."""
    ledger = run.ledger("agglomerate")

    def apply(chunk: Chunk) -> Report:
        options, out = run.options.agglomeration, run.folder
        pairs = [run.work.read_table(f"pairs/{part.name}.parquet") for part in run.grid]
        keys, roots = union_find(*(np.concatenate([table[name] for table in pairs]) for name in ("a", "b")))
        graph = RegionGraph.sum_of(part.relabelled(keys, roots) for part in _graphs(run))
        fragments = {part.name: run.work.read_table(f"sizes/{part.name}.parquet") for part in run.grid}
        ids, sizes = _total_sizes(fragments.values(), keys, roots)

        limit = max(1, round(255 * options.basin_affinity))
        basins = merge_small_basins(
            graph, Segments.of(ids, sizes), size_threshold=options.basin_voxels, min_affinity=limit
        )
        floor = min(TREE_FLOOR, options.threshold)
        tree = agglomerate_graph(basins.graph, floor, basins.segments).merges
        _, basin_of = _cut_all(basins.merges, ids)
        cut_ids, cut_roots = cut(tree, options.threshold)
        segment_of = relabelled(basin_of, cut_ids, cut_roots, missing="keep")

        write_graph(out, "region_graph/edges.parquet", graph)
        out.write_table("region_graph/supervoxels.parquet", {"supervoxel": ids, "voxels": sizes})
        write_tree(run, "basins", basins.merges)
        write_tree(run, "merges", tree)
        out.write_table("agglomeration/segment_of.parquet", {"supervoxel": ids, "segment": segment_of})
        segments, inverse = np.unique(segment_of, return_inverse=True)
        voxels = np.zeros(segments.size, np.int64)
        np.add.at(voxels, inverse, sizes)
        out.write_table("agglomeration/segments.parquet", {"segment": segments, "voxels": voxels})
        for name, table in fragments.items():
            supervoxels = relabelled(table["id"], keys, roots, missing="keep")
            of_chunk = relabelled(supervoxels, ids, segment_of)
            run.work.write_table(
                f"map/{name}.parquet", {"fragment": table["id"], "supervoxel": supervoxels, "segment": of_chunk}
            )
        ledger.mark(chunk, [])
        return {"supervoxels": int(ids.size), "edges": len(graph), "segments": int(segments.size)}

    return apply


def write_tree(run: Run, name: str, tree: MergeTree) -> None:
    """Store merges as `agglomeration/NAME.parquet`, a column per field and the score as a fraction of 255."""
    columns = {field.name: getattr(tree, field.name) for field in fields(MergeTree)}
    run.folder.write_table(f"agglomeration/{name}.parquet", {**columns, "score": tree.scores})


def _graphs(run: Run) -> Iterator[RegionGraph]:
    for part in run.grid:
        yield read_graph(run.work, f"graph/{part.name}.parquet")
        yield read_graph(run.work, f"face_graph/{part.name}.parquet")


def _total_sizes(tables: object, keys: Ids, roots: Ids) -> tuple[Ids, NDArray[np.int64]]:
    """Supervoxels, sorted, and their voxels: the sum over the fragments of all chunks."""
    parts = list(tables)  # type: ignore[call-overload]
    fragments = np.concatenate([table["id"] for table in parts])
    ids, inverse = np.unique(relabelled(fragments, keys, roots, missing="keep"), return_inverse=True)
    sizes = np.zeros(ids.size, np.int64)
    np.add.at(sizes, inverse, np.concatenate([table["voxels"] for table in parts]))
    return ids, sizes


def _cut_all(tree: MergeTree, ids: Ids) -> tuple[Ids, Ids]:
    """All merges of a tree as a map of `ids`."""
    return ids, relabelled(ids, *union_find(tree.a, tree.b), missing="keep")
