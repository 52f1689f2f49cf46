"""What meets across the faces of a chunk or of a node of the octree.

Two things cross a face: edges of the region graph, and segments that lie on both sides. Both say that a segment's
surroundings are not known on one side alone, so as long as a face is open, its segments must wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.segmentation.columns import check_columns, stacked
from models.segmentation.region_graph import RegionGraph
from models.segmentation.relabel import distinct, relabelled

Ids = NDArray[np.uint64]
_FIELDS = {
    "axis": np.uint8,
    "u": np.uint64,
    "v": np.uint64,
    "affinity_sum": np.int64,
    "face_count": np.int64,
    "affinity_max": np.uint8,
}


@dataclass(frozen=True, eq=False)
class FaceEdges:
    """Rows of the three lower faces of one node, sorted by (axis, u, v), each once.

    `axis`: uint8, the face; `u` <= `v`: uint64, never 0. Where they differ, the row is an edge of the region graph,
    with sum of affinities, number of voxel faces and largest affinity; where they are equal, the segment lies on both
    sides, and the figures are 0. Raises `InvalidVolume` for arrays of other dtypes or lengths.
    """

    axis: NDArray[np.uint8]
    u: Ids
    v: Ids
    affinity_sum: NDArray[np.int64]
    face_count: NDArray[np.int64]
    affinity_max: NDArray[np.uint8]

    def __post_init__(self) -> None:
        check_columns(self, _FIELDS, "face edges")

    def __len__(self) -> int:
        return int(self.u.size)

    @property
    def ids(self) -> Ids:
        """Segments at the faces, sorted."""
        return distinct(np.concatenate([self.u, self.v]))

    @property
    def graph(self) -> RegionGraph:
        """The edges, of all faces together."""
        return RegionGraph.aggregated(self.u, self.v, self.affinity_sum, self.face_count, self.affinity_max)

    @classmethod
    def of_face(cls, axis: int, graph: RegionGraph) -> FaceEdges:
        """The edges across one face."""
        axes = np.full(len(graph), axis, np.uint8)
        return cls(axes, graph.u, graph.v, graph.affinity_sum, graph.face_count, graph.affinity_max)

    @classmethod
    def on_both_sides(cls, axis: int, ids: Ids) -> FaceEdges:
        """Segments that lie on both sides of one face; ids may repeat."""
        ids = distinct(ids)
        none = np.zeros(ids.size, np.int64)
        return cls(np.full(ids.size, axis, np.uint8), ids, ids, none, none, none.astype(np.uint8))

    @classmethod
    def joined(cls, parts: Iterable[FaceEdges]) -> FaceEdges:
        """The rows of several tables; rows of one face and pair add up."""
        tables = list(parts)
        if not tables:
            return cls(*(np.empty(0, dtype) for dtype in _FIELDS.values()))
        if len(tables) == 1:
            return tables[0]
        return _aggregated(cls(*stacked(tables, _FIELDS)))

    def on(self, axes: Iterable[int]) -> FaceEdges:
        """The rows of some of the faces."""
        chosen = np.isin(self.axis, list(axes))
        return FaceEdges(*(getattr(self, name)[chosen] for name in _FIELDS))

    def relabelled(self, keys: Ids, values: Ids) -> FaceEdges:
        """The rows after a map of ids, keys sorted; ids that are no key stay."""
        u, v = (relabelled(ids, keys, values, missing="keep") for ids in (self.u, self.v))
        return _aggregated(FaceEdges(self.axis, u, v, self.affinity_sum, self.face_count, self.affinity_max))


def _aggregated(rows: FaceEdges) -> FaceEdges:
    """Rows in canonical order, each pair once per face."""
    if not len(rows):
        return rows
    u, v = np.minimum(rows.u, rows.v), np.maximum(rows.u, rows.v)
    order = np.lexsort((v, u, rows.axis))
    axis, u, v = rows.axis[order], u[order], v[order]
    new = (axis[1:] != axis[:-1]) | (u[1:] != u[:-1]) | (v[1:] != v[:-1])
    firsts = np.flatnonzero(np.concatenate([[True], new]))
    different = u[firsts] != v[firsts]
    return FaceEdges(
        axis[firsts],
        u[firsts],
        v[firsts],
        np.add.reduceat(rows.affinity_sum[order], firsts) * different,
        np.add.reduceat(rows.face_count[order], firsts) * different,
        (np.maximum.reduceat(rows.affinity_max[order], firsts) * different).astype(np.uint8),
    )
