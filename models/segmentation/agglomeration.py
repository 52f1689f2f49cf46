"""Mean-affinity agglomeration: supervoxels to neurons, exactly, and mergeable from the agglomerations of parts.

Repeatedly the edge with the largest mean affinity is merged, while it is at least the threshold. Means are ratios of
integers, ties follow ids, and nothing depends on the order of the input, so there is one right answer; see
`models.segmentation.linkage` for how parts of a graph find their part of it.
"""

from __future__ import annotations

from models.segmentation.linkage import Linkage, link_by_mean
from models.segmentation.ratios import Threshold, affinity_ratio
from models.segmentation.region_graph import RegionGraph
from models.segmentation.segments import Segments


def agglomerate(graph: RegionGraph, threshold: Threshold, segments: Segments | None = None) -> Linkage:
    """Merge segments by mean affinity down to `threshold`.

    `threshold`: 0 to 1 (1 = affinity 255), a float or an exact `Fraction`, see `affinity_ratio`. `segments`: rows for
    all ids of the graph (default: the graph's ids as single supervoxels, none frozen). The scores of `merges` never
    rise, so the tree of a low threshold gives every higher one by `models.segmentation.merge_tree.cut`.
    Raises `InvalidInput` for a threshold outside 0 to 1 or an id of the graph without a row, `InvalidVolume` for more
    than 2**54 - 1 faces.
    """
    ratio = affinity_ratio(threshold)
    return link_by_mean(graph, Segments.of(graph.ids) if segments is None else segments, ratio)
