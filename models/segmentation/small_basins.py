"""Size-dependent merging of small basins, before the agglomeration.

A watershed of noisy affinities leaves thousands of basins of a few voxels. Their mean affinities rest on a handful of
faces, so they are merged by single linkage instead, each into the neighbour across its largest affinity, until they
have a size (Zlateski and Seung, arXiv:1505.00249).
"""

from __future__ import annotations

import numpy as np

from models.errors import InvalidInput
from models.segmentation.linkage import Linkage, link_small
from models.segmentation.region_graph import RegionGraph
from models.segmentation.segments import Segments


def merge_small_basins(graph: RegionGraph, segments: Segments, *, size_threshold: int, min_affinity: int) -> Linkage:
    """Merge along the largest `affinity_max`, while it is at least `min_affinity` and one side is small.

    `segments`: rows with sizes in voxels for all ids of the graph. An edge may be merged while the smaller of its two
    segments has fewer than `size_threshold` voxels (at least 0). `min_affinity`: 1 to 255. Sums and counts add up, so
    the graph that comes out is ready for agglomeration. Raises `InvalidInput` for other limits or an id of the graph
    without a row.
    """
    if not (isinstance(size_threshold, int | np.integer) and size_threshold >= 0):
        raise InvalidInput(f"size threshold: expected an integer of at least 0 voxels, got {size_threshold!r}")
    if not (isinstance(min_affinity, int | np.integer) and 1 <= min_affinity <= 255):
        raise InvalidInput(f"min affinity: expected an integer from 1 to 255, got {min_affinity!r}")
    return link_small(graph, segments, int(min_affinity), int(size_threshold))
