from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InvalidInput
from models.metrics.contingency import ContingencyTable, contingency_table
from models.metrics.cremi import cremi_score
from models.metrics.rand import adapted_rand
from models.metrics.sweep import sweep
from models.metrics.voi import variation_of_information
from models.segmentation.merge_tree import MergeTree, cut
from models.segmentation.region_graph import region_graph
from models.segmentation.relabel import relabelled
from models.segmentation.whole import merge_supervoxels

SHAPE = (6, 9, 12)


def segmented(seed: int) -> tuple[np.ndarray, np.ndarray, MergeTree, MergeTree]:
    """Supervoxels, truth, merges of small basins and the merge tree of random affinities."""
    rng = np.random.default_rng(seed)
    blocks = rng.permutation(3 * 3 * 4).reshape(3, 3, 4).astype(np.uint64) + np.uint64(2**40)
    supervoxels = np.kron(blocks, np.ones((2, 3, 3), np.uint64))
    supervoxels[rng.random(SHAPE) < 0.05] = 0
    truth = np.kron(rng.integers(0, 4, (2, 3, 3)), np.ones((3, 3, 4), int))
    affinities = rng.integers(1, 256, (3, *SHAPE), dtype=np.uint8) // 16 * 16 + np.uint8(1)  # with ties
    graph = region_graph(affinities, supervoxels)
    whole = merge_supervoxels(supervoxels, graph, basin_voxels=17, basin_affinity=230, floor=0.1)
    tree = whole.merges
    order = rng.permutation(len(tree))  # the rows of a stored tree may come in any order
    return supervoxels, truth, (whole.ids, whole.basins), MergeTree(*(getattr(tree, n)[order] for n in vars(tree)))


@given(seed=st.integers(0, 2**32 - 1), background=st.sampled_from(["segment", "singletons", "ignore"]))
@settings(max_examples=40)
def test_every_point_is_what_relabelling_the_volume_scores(seed: int, background) -> None:
    supervoxels, truth, basins, tree = segmented(seed)
    thresholds = [0.3, Fraction(1, 2), 0.1, 0.45, 0.55, 1.0]
    table = contingency_table(supervoxels, truth)
    points = sweep(table, tree, thresholds, basins=basins, pred_background=background)
    assert [point.threshold for point in points] == [1.0, 0.55, 0.5, 0.45, 0.3, 0.1]
    for point, threshold in zip(points, sorted(thresholds, reverse=True), strict=True):
        labels = relabelled(supervoxels, *basins, missing="keep")
        labels = relabelled(labels, *cut(tree, threshold), missing="keep")
        expected = contingency_table(labels, truth)
        assert point.voi == variation_of_information(expected, pred_background=background)
        assert point.rand == adapted_rand(expected, pred_background=background)
        assert point.segments == np.unique(labels[(labels > 0) & (truth > 0)]).size
        assert point.cremi == cremi_score(point.voi, point.rand)


def test_sweeps_do_merge_something() -> None:
    supervoxels, truth, basins, tree = segmented(1)
    assert len(basins) > 0
    points = sweep(contingency_table(supervoxels, truth), tree, [0.9, 0.1], basins=basins)
    assert points[0].segments > points[1].segments
    assert points[0].voi.split > points[1].voi.split
    assert points[0].voi.merge < points[1].voi.merge


def test_bad_thresholds_are_refused() -> None:
    one = np.ones(1, np.uint64)
    table = ContingencyTable(one, one, np.ones(1, np.int64))
    tree = MergeTree.joined([])
    with pytest.raises(InvalidInput, match="at least one threshold"):
        sweep(table, tree, [])
    with pytest.raises(InvalidInput, match=r"from 0 to 1, got 1\.5"):
        sweep(table, tree, [0.5, 1.5])
