import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InvalidInput, InvalidVolume
from models.metrics.run_length import (
    RunLength,
    RunLengthConvention,
    TrueSkeletons,
    cable_graph,
    expected_run_length,
)


def line(length_nm: float, nodes: int, y: float = 0) -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(0, length_nm, nodes)
    return np.stack([0 * x, 0 * x + y, x], axis=1), np.stack([np.arange(nodes - 1), np.arange(1, nodes)], axis=1)


def two_axons() -> TrueSkeletons:
    """Two straight axons of 4 um (id 5) and 2 um (id 9), nodes every 100 nm."""
    truth, _ = cable_graph([(5, *line(4000, 41)), (9, *line(2000, 21, y=500))])
    return truth


def score(truth: TrueSkeletons, *segments: list[int], **options: object) -> RunLength:
    flat = np.concatenate([np.array(part, np.uint64) for part in segments])
    return expected_run_length(truth, flat, **options)  # type: ignore[arg-type]


def test_perfect_segmentation_reaches_the_maximum() -> None:
    found = score(two_axons(), [1 << 63] * 41, [(1 << 63) + 1] * 21)
    assert found.erl_nm == found.maximum_nm == pytest.approx((4000**2 + 2000**2) / 6000)
    assert (found.normalised, found.correct, found.skeletons) == (1, 1, 2)
    assert found.cable_nm == pytest.approx(6000)


def test_a_split_by_hand() -> None:
    # the long axon is cut behind node 20: runs of 2.0 and 1.9 um, one edge of 0.1 um lost
    found = score(two_axons(), [1] * 21 + [2] * 20, [3] * 21)
    assert found.erl_nm == pytest.approx((2000**2 + 1900**2 + 2000**2) / 6000)
    assert found.split == pytest.approx(100 / 6000)
    assert found.splits_per_mm == pytest.approx(1 / 0.006)
    assert (found.merged, found.omitted, found.merges_per_mm) == (0, 0, 0)


def test_gaps_of_background_part_no_run_and_lose_their_length() -> None:
    # runs count per segment: both sides of the gap are one run of 3.8 um, as in the published scripts
    found = score(two_axons(), [1] * 20 + [0] + [1] * 20, [3] * 21)
    assert found.omitted == pytest.approx(200 / 6000)
    assert found.erl_nm == pytest.approx((3800**2 + 2000**2) / 6000)


def test_a_merger_under_both_penalties() -> None:
    # segment 2 holds the last fifth of the long axon and all of the short one
    segments = [1] * 33 + [2] * 8, [2] * 21
    found = score(two_axons(), *segments)
    assert found.merged_segments == (2,)
    assert found.erl_nm == pytest.approx(3200**2 / 6000)
    assert found.merged == pytest.approx((700 + 2000) / 6000)
    assert found.merges_per_mm == pytest.approx(1 / 0.006)
    strict = score(two_axons(), *segments, convention=RunLengthConvention(penalty="skeleton"))
    assert strict.erl_nm == 0
    assert strict.maximum_nm == found.maximum_nm


@pytest.mark.parametrize(("threshold", "merged"), [(1, (2,)), (8, (2,)), (9, ())])
def test_below_the_merge_threshold_touching_is_no_merger(threshold: int, merged: tuple[int, ...]) -> None:
    convention = RunLengthConvention(merge_threshold=threshold)
    found = score(two_axons(), [1] * 33 + [2] * 8, [2] * 21, convention=convention)
    assert found.merged_segments == merged
    if not merged:
        assert found.erl_nm == pytest.approx((3200**2 + 700**2 + 2000**2) / 6000)
        assert found.split == pytest.approx(100 / 6000)


def test_the_no_merge_mask_makes_a_merger_with_what_has_no_skeleton() -> None:
    ids, voxels = np.array([3, 77], np.uint64), np.array([12, 5000])
    segments = [1] * 41, [3] * 21
    hit = score(two_axons(), *segments, masked_segments=ids, masked_voxels=voxels)
    assert hit.merged_segments == (3,)  # 77 lies on no skeleton
    assert hit.erl_nm == pytest.approx(4000**2 / 6000)
    assert hit.merges_per_mm == pytest.approx(1 / 0.006)
    spared = score(
        two_axons(),
        *segments,
        masked_segments=ids,
        masked_voxels=voxels,
        convention=RunLengthConvention(mask_threshold=13),
    )
    assert spared.normalised == 1


def test_aggregation_by_length_or_by_skeleton() -> None:
    segments = [1] * 21 + [2] * 20, [3] * 21
    per_length = score(two_axons(), *segments)
    per_skeleton = score(two_axons(), *segments, convention=RunLengthConvention(aggregation="skeleton"))
    assert per_length.erl_nm == pytest.approx((2000**2 + 1900**2 + 2000**2) / 6000)
    assert per_skeleton.erl_nm == pytest.approx(((2000**2 + 1900**2) / 4000 + 2000) / 2)
    assert per_skeleton.maximum_nm == pytest.approx(3000)


def test_intervals_hold_the_score_and_the_convention_is_in_the_result() -> None:
    rng = np.random.default_rng(0)
    skeletons = [(i + 1, *line(1000 * rng.uniform(1, 5), 50, y=100 * i)) for i in range(60)]
    truth, position = cable_graph(skeletons)
    segments = (truth.skeleton * 10 + (position[:, 2] > rng.uniform(0, 6000, 60)[truth.skeleton]) + 1).astype(np.uint64)
    found = expected_run_length(truth, segments, rng=np.random.default_rng(1), samples=400)
    for name, value in (("erl_nm", found.erl_nm), ("normalised_erl", found.normalised)):
        assert found.intervals[name].low < value < found.intervals[name].high
    told = found.as_json()
    assert told["convention"] == {
        "merge_threshold": 1,
        "mask_threshold": 1,
        "penalty": "segment",
        "aggregation": "length",
    }
    assert told["intervals"]["erl_nm"] == [found.intervals["erl_nm"].low, found.intervals["erl_nm"].high]
    assert not expected_run_length(truth, segments).intervals


@given(seed=st.integers(0, 2**32 - 1), penalty=st.sampled_from(["segment", "skeleton"]), threshold=st.integers(1, 3))
@settings(max_examples=80)
def test_random_trees_score_as_a_slow_reference(seed: int, penalty, threshold: int) -> None:
    rng = np.random.default_rng(seed)
    skeletons = []
    for name in range(1, 5):
        nodes = int(rng.integers(1, 9))
        parents = [int(rng.integers(0, i)) for i in range(1, nodes)]
        edges = np.array([(i + 1, p) for i, p in enumerate(parents)], int).reshape(-1, 2)
        skeletons.append((name, rng.uniform(0, 100, (nodes, 3)), edges))
    truth, _ = cable_graph(skeletons)
    if not truth.lengths_nm.size:
        return
    segments = rng.integers(0, 6, truth.skeleton.size).astype(np.uint64)
    found = expected_run_length(
        truth, segments, convention=RunLengthConvention(merge_threshold=threshold, penalty=penalty)
    )
    merged = {
        s
        for s in range(1, 6)
        if sum(((segments == s) & (truth.skeleton == k)).sum() >= threshold for k in range(4)) > 1
    }
    total = 0.0
    for k in range(4):
        if penalty == "skeleton" and merged & set(segments[truth.skeleton == k].tolist()):
            continue
        for s in set(range(1, 6)) - merged:
            run = sum(
                length
                for (a, b), length in zip(truth.edges, truth.lengths_nm, strict=True)
                if truth.skeleton[a] == k and segments[a] == segments[b] == s
            )
            total += run**2
    assert found.erl_nm == pytest.approx(total / truth.lengths_nm.sum(), abs=1e-9)
    assert set(found.merged_segments) == merged
    assert found.correct + found.merged + found.split + found.omitted == pytest.approx(1)


@given(seed=st.integers(0, 2**32 - 1), spacing=st.floats(5, 60))
@settings(max_examples=40)
def test_nodes_in_between_keep_length_and_connection(seed: int, spacing: float) -> None:
    rng = np.random.default_rng(seed)
    edges = np.array([(1, 0), (2, 0), (3, 2), (4, 2)])
    skeletons = [(3, rng.uniform(0, 100, (5, 3)), edges), (8, rng.uniform(0, 100, (5, 3)), edges[:2])]
    plain, _ = cable_graph(skeletons)
    fine, position = cable_graph(skeletons, spacing_nm=spacing)
    for skeleton in range(2):
        sums = [g.lengths_nm[g.skeleton[g.edges[:, 0]] == skeleton].sum() for g in (plain, fine)]
        assert sums[0] == pytest.approx(sums[1])
    assert fine.lengths_nm.max() <= spacing * (1 + 1e-9)
    # a tree still: one edge less than nodes per part (skeleton 8 has two single nodes besides its tree of three)
    assert len(fine.edges) == len(position) - 1 - 3
    everywhere = np.ones(len(position), np.uint64) + fine.skeleton.astype(np.uint64)
    assert expected_run_length(fine, everywhere).normalised == pytest.approx(1)


def test_a_bulge_is_seen_only_with_nodes_in_between() -> None:
    coarse, _ = cable_graph([(1, *line(1000, 2))])
    assert expected_run_length(coarse, np.array([4, 4], np.uint64)).normalised == 1
    fine, position = cable_graph([(1, *line(1000, 2))], spacing_nm=100)
    segments = np.where((position[:, 2] > 400) & (position[:, 2] < 600), 5, 4).astype(np.uint64)
    assert expected_run_length(fine, segments).normalised == pytest.approx(0.8**2)


def test_bad_input_is_refused() -> None:
    truth = two_axons()
    with pytest.raises(InvalidVolume, match="uint64 of shape"):
        expected_run_length(truth, np.zeros(3, np.uint64))
    with pytest.raises(InvalidInput, match="some length"):
        expected_run_length(cable_graph([(1, *line(0, 1))])[0], np.zeros(1, np.uint64))
    with pytest.raises(InvalidInput, match="every id once"):
        cable_graph([(1, *line(10, 2)), (1, *line(10, 2))])
    with pytest.raises(InvalidInput, match="spacing"):
        cable_graph([(1, *line(10, 2))], spacing_nm=0)
    with pytest.raises(InvalidInput, match="at least 1 node"):
        RunLengthConvention(merge_threshold=0)
    with pytest.raises(InvalidInput, match="penalty segment or skeleton"):
        RunLengthConvention(penalty="none")  # type: ignore[arg-type]
    with pytest.raises(InvalidVolume, match="within one skeleton"):
        TrueSkeletons(truth.ids, truth.skeleton, np.array([[0, 60]]), np.ones(1))
