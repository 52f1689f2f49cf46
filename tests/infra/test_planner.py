import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.planner import PatchPlan, plan_patches, reflect
from models.errors import InvalidInput
from models.geometry import Box

extents = st.integers(1, 90)


@st.composite
def plans(draw: st.DrawFn) -> PatchPlan:
    constraints = []
    for _ in range(3):
        divisor, margin, overlap = draw(st.sampled_from([1, 2, 4])), draw(st.integers(0, 5)), draw(st.integers(0, 6))
        smallest = math.ceil((2 * margin + 2 * max(1, overlap)) / divisor) * divisor
        constraints.append((divisor, smallest + draw(st.integers(0, 20)), margin, overlap))
    divisor, largest, margin, overlap = zip(*constraints, strict=True)
    shape = draw(st.tuples(extents, extents, extents))
    return plan_patches(shape, divisor=divisor, max_patch=largest, margin=margin, overlap=overlap)


@settings(max_examples=200, deadline=None)
@given(plans())
def test_weights_of_all_patches_sum_to_one(plan: PatchPlan) -> None:
    for axis in plan.axes:
        total = np.zeros(axis.extent, np.float32)
        for index in range(axis.count):
            begin, end = axis.valid(index)
            assert begin < end
            weights = axis.weights(index)
            assert weights.dtype == np.float32
            assert weights.min() > 0
            total[begin:end] += weights
        np.testing.assert_allclose(total, 1, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(plans(), st.data())
def test_touching_patches_are_those_whose_valid_part_meets_the_box(plan: PatchPlan, data: st.DataObject) -> None:
    for axis in plan.axes:
        begin = data.draw(st.integers(0, axis.extent))
        end = data.draw(st.integers(begin, axis.extent))
        meets = [i for i in range(axis.count) if max(begin, axis.valid(i)[0]) < min(end, axis.valid(i)[1])]
        assert list(axis.touching(begin, end)) == meets


@settings(max_examples=100, deadline=None)
@given(plans())
def test_context_of_a_patch_holds_its_mirrored_voxels(plan: PatchPlan) -> None:
    for index in plan.patches():
        patch, context = plan.patch_box(index), plan.context_box(plan.valid_box(index))
        for axis in range(3):
            source = reflect(patch.start[axis], patch.shape[axis], plan.volume_shape[axis])
            assert context.start[axis] <= source.min()
            assert source.max() < context.stop[axis]


def test_aligned_chunk_costs_one_patch_without_overlap() -> None:
    plan = plan_patches((1280, 1280, 1280), divisor=(8, 8, 8), max_patch=(152, 152, 152), margin=(12, 12, 12))
    assert plan.stride == (128, 128, 128)
    assert list(plan.patches(Box((256, 128, 1152), (384, 256, 1280)))) == [(2, 1, 9)]
    assert plan.waste == pytest.approx((152 / 128) ** 3)


def test_small_axis_gets_a_small_patch() -> None:
    plan = plan_patches((50, 1, 1000), divisor=(8, 8, 8), max_patch=(152, 152, 152), margin=(12, 12, 12))
    assert plan.patch_shape[:2] == (80, 32)
    assert plan.counts[:2] == (1, 1)


def test_patches_shrink_rather_than_reach_far_beyond_the_volume() -> None:
    plan = plan_patches((520, 250, 250), divisor=(8, 8, 8), max_patch=(152, 152, 152), margin=(12, 12, 12))
    assert plan.patch_shape == (128, 152, 152)
    assert plan.counts == (5, 2, 2)


def test_memory_limit_shrinks_the_largest_axis() -> None:
    free = {"divisor": (8, 8, 8), "max_patch": (64, 152, 152), "margin": (4, 12, 12)}
    plan = plan_patches((500, 500, 500), **free, bytes_per_voxel=200, memory_limit_bytes=1.5e8)
    assert math.prod(plan.patch_shape) * 200 <= 1.5e8
    assert plan.patch_shape[0] == plan_patches((500, 500, 500), **free).patch_shape[0]


def test_impossible_constraints_are_refused() -> None:
    with pytest.raises(InvalidInput, match="margin 12"):
        plan_patches((500, 500, 500), divisor=(8, 8, 8), max_patch=(24, 152, 152), margin=(12, 12, 12))
    with pytest.raises(InvalidInput, match="z is at most"):
        plan_patches(
            (500, 50, 50), divisor=(8, 8, 8), max_patch=(64, 64, 64), margin=(4, 4, 4), bytes_per_voxel=1,
            memory_limit_bytes=10,
        )  # fmt: skip
    with pytest.raises(InvalidInput, match="volume shape"):
        plan_patches((0, 50, 50), divisor=(8, 8, 8), max_patch=(64, 64, 64), margin=(4, 4, 4))


def test_petavoxel_volume_is_planned_without_listing_its_patches() -> None:
    plan = plan_patches((100_000,) * 3, divisor=(8, 8, 8), max_patch=(152,) * 3, margin=(12,) * 3, overlap=(8,) * 3)
    assert next(plan.patches(Box((99_990,) * 3, (99_991,) * 3))) == tuple(n - 1 for n in plan.counts)


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 30))
def test_reflect_equals_numpy_pad(extent: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(extent), (before, after), mode="reflect")
    np.testing.assert_array_equal(reflect(-before, before + extent + after, extent), expected)
