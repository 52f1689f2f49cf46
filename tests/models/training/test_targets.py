import numpy as np
import pytest

from models.errors import InvalidInput
from models.geometry import NEAREST
from models.training.targets import (
    BACKGROUND,
    INSIDE,
    SOME_OBJECT,
    affinity_targets,
    balance_weights,
    long_range_offsets,
    widen_boundaries,
)


def slow_targets(labels: np.ndarray, offset: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    targets, mask = np.zeros(labels.shape), np.zeros(labels.shape)
    for p in np.ndindex(labels.shape):
        q = tuple(a + o for a, o in zip(p, offset, strict=True))
        if min(q) >= 0:
            mask[p] = labels[p] != 0 and labels[q] != 0
            targets[p] = labels[p] == labels[q] != 0
    return targets, mask


@pytest.mark.parametrize("offset", [*NEAREST, (-3, 0, 0), (0, -2, -1), (-1, -2, -3)])
def test_targets_are_the_definition(offset: tuple[int, int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.uint64) << 40
    targets, mask = affinity_targets(labels, (offset,), boundary_voxels=0)
    expected, known = slow_targets(labels, offset)
    np.testing.assert_array_equal(targets[0], expected)
    np.testing.assert_array_equal(mask[0], known)


def test_widened_boundaries_cut_nearest_affinities_only() -> None:
    labels = np.ones((3, 4, 8), np.int64)
    labels[:, :, 4:] = 2
    widened = widen_boundaries(labels, 1)
    np.testing.assert_array_equal(np.unique(np.argwhere(widened == 0)[:, 2]), [3, 4])
    targets, _ = affinity_targets(labels, ((0, 0, -1), (0, 0, -3)), boundary_voxels=1)
    np.testing.assert_array_equal(targets[0, 0, 0], [0, 1, 1, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(targets[1, 0, 0], [0, 0, 0, 1, 0, 0, 0, 1])


def test_unlabelled_voxels_and_faces_are_no_boundary() -> None:
    labels = np.ones((4, 5, 9), np.uint16)
    labels[:, :, 4:6] = 0
    np.testing.assert_array_equal(widen_boundaries(labels, 2), labels)
    labels[:, :, 6:] = 2
    np.testing.assert_array_equal(widen_boundaries(labels, 2), labels)
    labels[:, :, 4:] = 2
    wide = widen_boundaries(labels, 3)
    np.testing.assert_array_equal(wide[0, 0], [1, 0, 0, 0, 0, 0, 0, 2, 2])


def test_what_widening_cuts_can_keep_a_little_affinity() -> None:
    labels = np.ones((3, 4, 8), np.int64)
    labels[:, :, 4:] = 2
    targets, mask = affinity_targets(labels, NEAREST, boundary_voxels=1, boundary_target=0.25)
    np.testing.assert_array_equal(targets[2, 0, 0], [0, 1, 1, 0.25, 0, 0.25, 1, 1])
    np.testing.assert_array_equal(targets[0, 1, 0], [1, 1, 1, 0.25, 0.25, 1, 1, 1])
    assert mask[2, 0, 0, 1:].all()
    with pytest.raises(InvalidInput, match=r"0\.5"):
        affinity_targets(labels, NEAREST, boundary_voxels=1, boundary_target=0.5)


def test_full_balance_gives_both_classes_the_same_weight() -> None:
    rng = np.random.default_rng(1)
    targets = (rng.random((2, 8, 9, 10)) < 0.8).astype(np.float32)
    mask = (rng.random(targets.shape) < 0.9).astype(np.float32)
    weights = balance_weights(targets, mask, exponent=1.0)
    for channel in range(2):
        ones = weights[channel][targets[channel] == 1].sum()
        assert ones == pytest.approx(weights[channel][targets[channel] == 0].sum(), rel=1e-4)
    np.testing.assert_array_equal(weights[mask == 0], 0)
    np.testing.assert_array_equal(balance_weights(targets, mask, exponent=0.0), mask)


def test_offsets_follow_the_voxel_size() -> None:
    assert (-27, 0, 0) in long_range_offsets((10, 10, 10))
    assert [o[0] for o in long_range_offsets((40, 4, 4)) if o[0]] == [-2, -3, -4]


def test_background_is_known_and_never_connected() -> None:
    labels = np.array([[[7, 7, -1, -1, 0, -1, 9, 9, 9]]])
    targets, mask = affinity_targets(labels, ((0, 0, -1), (0, 0, -3)), boundary_voxels=0)
    np.testing.assert_array_equal(targets[0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(mask[0, 0, 0], [0, 1, 1, 1, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(targets[1, 0, 0], np.zeros(9))
    np.testing.assert_array_equal(mask[1, 0, 0], [0, 0, 0, 1, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(widen_boundaries(labels, 0)[0, 0], [7, 7, 0, 0, 0, 0, 9, 9, 9])
    np.testing.assert_array_equal(widen_boundaries(labels, 1)[0, 0], [7, 0, 0, 0, 0, 0, 0, 9, 9])


def test_membranes_alone_say_what_neighbours_within_sections_are() -> None:
    labels = np.full((2, 3, 5), SOME_OBJECT, np.int8)
    labels[:, :, 2] = BACKGROUND
    labels[1, :, 2:4] = 0
    offsets = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -2), *INSIDE)
    targets, mask = affinity_targets(labels, offsets, boundary_voxels=0)
    np.testing.assert_array_equal(mask[0, 1, 0], [0, 0, 0, 0, 0])  # not across sections, where nothing is annotated
    np.testing.assert_array_equal((targets[1, 0, 1], mask[1, 0, 1]), ([1, 1, 0, 1, 1], np.ones(5)))
    np.testing.assert_array_equal((targets[2, 0, 0], mask[2, 0, 0]), ([0, 1, 0, 0, 1], [0, 1, 1, 1, 1]))
    np.testing.assert_array_equal(mask[2, 1, 0], [0, 1, 0, 0, 0])
    np.testing.assert_array_equal((targets[3, 0, 0], mask[3, 0, 0]), (np.zeros(5), [0, 0, 1, 0, 1]))
    np.testing.assert_array_equal((targets[4, 0, 0], mask[4, 0, 0]), ([1, 1, 0, 1, 1], np.ones(5)))
    labels[1, :, 2] = BACKGROUND
    _, mask = affinity_targets(labels, offsets, boundary_voxels=0)
    np.testing.assert_array_equal(mask[0, 1, 0], [0, 0, 1, 0, 0])  # a membrane cuts in all directions
    widened, _ = affinity_targets(labels, offsets, boundary_voxels=1, boundary_target=0.25)
    np.testing.assert_array_equal(widened[2, 0, 0], [0, 0.25, 0, 0, 0.25])


def test_a_known_object_beside_some_object_says_nothing() -> None:
    labels = np.array([[[3, 3, SOME_OBJECT, SOME_OBJECT]]])
    targets, mask = affinity_targets(labels, ((0, 0, -1),), boundary_voxels=0)
    np.testing.assert_array_equal((targets[0, 0, 0], mask[0, 0, 0]), ([0, 1, 0, 1], [0, 1, 0, 1]))
