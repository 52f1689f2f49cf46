"""The tables of the octree's nodes, as Parquet: region graphs, face edges, maps of ids, segments and merges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from infra.objects import Folder
from infra.written import Written
from models.geometry import Chunk
from models.octree import Octree
from models.segmentation.faces import FaceEdges
from models.segmentation.hierarchy import HandedUp, IdMap, inner_axes, outer_axes
from models.segmentation.merge_tree import MergeTree
from models.segmentation.region_graph import RegionGraph
from models.segmentation.segments import Segments

Rows = TypeVar("Rows")


def write_graph(folder: Folder, name: str, graph: RegionGraph) -> Written:
    """Store a region graph, a column per field."""
    return _write(folder, name, graph)


def read_graph(folder: Folder, name: str) -> RegionGraph:
    """Read what `write_graph` wrote."""
    return RegionGraph(**_read(folder, name, RegionGraph))


def write_faces(folder: Folder, name: str, faces: FaceEdges) -> Written:
    """Store face edges, a column per field."""
    return _write(folder, name, faces)


def read_faces(folder: Folder, name: str, axes: Sequence[int] = (0, 1, 2)) -> FaceEdges:
    """Read what `write_faces` wrote: the rows of some of the faces."""
    faces = FaceEdges(**_read(folder, name, FaceEdges))
    return faces if len(axes) == 3 else faces.on(axes)


def write_map(folder: Folder, name: str, found: IdMap, *, key: str = "key", value: str = "value") -> Written:
    """Store a map of ids as two columns."""
    return folder.write_table(_file(name), {key: found.keys, value: found.values})


def read_map(folder: Folder, name: str) -> IdMap:
    """Read what `write_map` wrote: the first column by the second."""
    keys, values = folder.read_table(_file(name)).values()
    return IdMap(keys, values)


def write_sizes(folder: Folder, name: str, ids: NDArray[np.uint64], voxels: NDArray[np.int64]) -> Written:
    """Store ids with their numbers of voxels."""
    return folder.write_table(_file(name), {"id": ids, "voxels": voxels})


def read_sizes(folder: Folder, name: str) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Read what `write_sizes` wrote."""
    table = folder.read_table(_file(name))
    return table["id"], table["voxels"]


def write_merges(folder: Folder, name: str, tree: MergeTree) -> Written:
    """Store merges, a column per field and the score as a fraction of 255."""
    columns = {field.name: getattr(tree, field.name) for field in fields(MergeTree)}
    return folder.write_table(_file(name), {**columns, "score": tree.scores})


def read_merges(folder: Folder, name: str) -> MergeTree:
    """Read what `write_merges` wrote."""
    return MergeTree(**_read(folder, name, MergeTree))


def write_handed_up(folder: Folder, name: str, left: HandedUp) -> list[Written]:
    """Store what a node hands up, two tables: NAME.segments and NAME.edges."""
    segments = left.segments
    columns = {"id": segments.ids, "largest": segments.comparison_ids}
    return [folder.write_table(_file(f"{name}.segments"), columns), write_graph(folder, f"{name}.edges", left.edges)]


def read_handed_up(folder: Folder, name: str) -> HandedUp:
    """Read what `write_handed_up` wrote; all segments are frozen."""
    table = folder.read_table(_file(f"{name}.segments"))
    frozen = np.ones(table["id"].size, np.bool_)
    segments = Segments(table["id"], table["largest"], frozen)
    return HandedUp(segments, read_graph(folder, f"{name}.edges"))


def write_rows(folder: Folder, name: str, rows: Any) -> Written:
    """Store a dataclass of arrays of one length, a column per field."""
    return _write(folder, name, rows)


def read_rows(folder: Folder, name: str, kind: type[Rows]) -> Rows:
    """Read what `write_rows` wrote."""
    return kind(**_read(folder, name, kind))


def own_and_upper_faces(
    tree: Octree, folder: Folder, level: int, children: Sequence[Chunk], node: Chunk
) -> tuple[list[FaceEdges], list[FaceEdges]]:
    """Face edges that a node of `level` needs: its children's own, and what lies after its upper faces.

    `folder` holds those of the children's level; a chunk (level 0) is its own child.
    """
    own = [read_faces(folder, child.name) for child in children]
    upper = []
    for axis in range(3):
        after = tree.beyond(0, node, axis, 1) if level == 0 else None
        others = tree.children_beyond(level, node, axis) if level else [after] if after else []
        upper += [read_faces(folder, other.name, (axis,)) for other in others]
    return own, upper


def node_faces(
    tree: Octree, folder: Folder, level: int, node: Chunk
) -> tuple[FaceEdges, FaceEdges, NDArray[np.uint64]]:
    """Face edges of a node of `level`, 1 to the root's; `folder` holds those of its children's level.

    Returns what lies between its children, what lies at its own lower faces, and the ids at its open faces, sorted.
    """
    children = tree.children(level, node)
    own, upper = own_and_upper_faces(tree, folder, level, children, node)
    inner = FaceEdges.joined(faces.on(inner_axes(child)) for faces, child in zip(own, children, strict=True))
    lower = FaceEdges.joined(faces.on(outer_axes(child)) for faces, child in zip(own, children, strict=True))
    return inner, lower, FaceEdges.joined([lower, *upper]).ids


def _file(name: str) -> str:
    return f"{name}.parquet"


def _write(folder: Folder, name: str, rows: Any) -> Written:
    return folder.write_table(_file(name), {field.name: getattr(rows, field.name) for field in fields(rows)})


def _read(folder: Folder, name: str, kind: Any) -> dict[str, NDArray[Any]]:
    table = folder.read_table(_file(name))
    return {field.name: table[field.name] for field in fields(kind)}
