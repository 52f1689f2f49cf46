"""Affinities to segments in one call, for what fits into memory: the definition that chunked runs are held to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.geometry import Triple
from models.segmentation.agglomeration import agglomerate
from models.segmentation.merge_tree import MergeTree, cut
from models.segmentation.ratios import Threshold
from models.segmentation.region_graph import RegionGraph, region_graph, segment_sizes
from models.segmentation.relabel import distinct, relabelled
from models.segmentation.segments import Segments
from models.segmentation.small_basins import BasinEdges, basins_of, merge_small_basins
from models.segmentation.watershed import watershed

Ids = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class WholeSegmentation:
    """Supervoxels of one array, and how they merge.

    `supervoxels`: (z, y, x) uint64, 0 = background; `graph`: edges between them; `ids`, `basins`: uint64, each
    supervoxel, sorted, and the basin that it is part of; `merges`: of basins, down to the floor.
    """

    supervoxels: Ids
    graph: RegionGraph
    ids: Ids
    basins: Ids
    merges: MergeTree

    def segments_at(self, threshold: Threshold) -> Ids:
        """Segments, (z, y, x) uint64: of all merges with a mean affinity of at least `threshold`, 0 to 1."""
        return relabelled(self.supervoxels, self.ids, self.segment_of(threshold))

    def segment_of(self, threshold: Threshold) -> Ids:
        """The segment of each of `ids` at a threshold."""
        return relabelled(self.basins, *cut(self.merges, threshold), missing="keep")


def segment_whole(
    affinities: NDArray[np.uint8],
    *,
    low: int,
    high: int,
    basin_voxels: int,
    basin_affinity: int,
    floor: Threshold,
    origin: Triple = (0, 0, 0),
    volume_shape: Triple | None = None,
) -> WholeSegmentation:
    """Watershed, small basins and the merge tree down to `floor`.

    `affinities`: (3, z, y, x) uint8, as in `models.segmentation.watershed`, which also says what `low`, `high`,
    `origin` and `volume_shape` mean; `basin_voxels`, `basin_affinity`: limits of `merge_small_basins`; `floor`: 0 to 1.
    Raises `InvalidVolume` or `InvalidInput` as the steps do.
    """
    supervoxels = watershed(affinities, low=low, high=high, origin=origin, volume_shape=volume_shape)
    graph = region_graph(affinities, supervoxels)
    return merge_supervoxels(supervoxels, graph, basin_voxels=basin_voxels, basin_affinity=basin_affinity, floor=floor)


def merge_supervoxels(
    supervoxels: Ids, graph: RegionGraph, *, basin_voxels: int, basin_affinity: int, floor: Threshold
) -> WholeSegmentation:
    """Small basins and the merge tree of given supervoxels, (z, y, x) uint64, and their region graph."""
    ids, voxels = segment_sizes(supervoxels)
    single = basins_of(ids, voxels, np.empty(0, np.uint64))
    done = merge_small_basins(single, BasinEdges.of(graph), size_threshold=basin_voxels, min_affinity=basin_affinity)
    between = graph.relabelled(done.keys, done.values)
    merges = agglomerate(between, floor, Segments.of(distinct(done.values))).merges
    return WholeSegmentation(supervoxels, graph, ids, done.values, merges)
