import numpy as np
import pytest

from models.training.sampler import LabelledVolume
from models.training.targets import affinity_targets
from models.training.validation import MARGIN, TILE, edge_scores, predict, segmentation_scores

NEAREST = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


def cells(shape: tuple[int, int, int] = (24, 30, 36)) -> np.ndarray:
    small = np.arange(1, 28).reshape(3, 3, 3) + (1 << 33)
    return small.repeat(8, 0).repeat(10, 1).repeat(12, 2)[: shape[0], : shape[1], : shape[2]]


def test_tiles_give_every_voxel_the_prediction_of_its_surroundings() -> None:
    """A network that looks `MARGIN` voxels far: tiled prediction equals that of the whole."""
    shape = (5, TILE + 30, 2 * TILE + 1)
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    seen = []

    def network(patch: np.ndarray) -> np.ndarray:
        seen.append(patch.shape)
        assert patch.shape[0] % 2 == patch.shape[1] % 4 == patch.shape[2] % 8 == 0
        far = np.pad(patch, ((0, 0), (MARGIN, 0), (0, 0)), mode="edge")[:, : patch.shape[1]]
        return np.stack([patch, far, np.roll(patch, 1, 2)])

    got = predict(network, image, (2, 4, 8))
    whole = image / np.float32(255)
    np.testing.assert_array_equal(got[0], whole)
    np.testing.assert_array_equal(got[1][:, MARGIN:], whole[:, :-MARGIN])
    np.testing.assert_array_equal(got[2][..., 1:], whole[..., :-1])
    assert len(seen) == 6


def test_a_perfect_prediction_has_no_error_and_an_inverted_one_only_errors() -> None:
    labels = cells()
    targets, _ = affinity_targets(labels, NEAREST, boundary_voxels=0)
    perfect = segmentation_scores(targets, labels)
    assert (perfect["voi"], perfect["adapted_rand_error"]) == pytest.approx((0, 0), abs=1e-9)
    right = edge_scores(targets, labels, boundary_voxels=0, balance=0.5)
    assert right == pytest.approx({"loss": 0, "balanced_error": 0}, abs=1e-5)
    wrong = edge_scores(1 - targets, labels, boundary_voxels=0, balance=0.5)
    assert wrong["balanced_error"] == 1
    assert wrong["loss"] > 10


def test_the_best_threshold_is_found() -> None:
    """Cells of 500 voxels and more in two halves that hang together at 0.3, and cells apart at 0.12."""
    labels = cells((24, 30, 36))
    targets, _ = affinity_targets(labels, NEAREST, boundary_voxels=0)
    affinities = np.where(targets > 0, 1.0, 0.12).astype(np.float32)
    affinities[2, :, :, 6::12] = np.minimum(affinities[2, :, :, 6::12], 0.3)
    scores = segmentation_scores(affinities, labels)
    assert scores["voi"] == pytest.approx(0, abs=1e-9)
    assert 0.12 < scores["threshold"] <= 0.3


def test_unlabelled_voxels_do_not_count() -> None:
    labels = cells()
    targets, _ = affinity_targets(labels, NEAREST, boundary_voxels=0)
    part = labels.copy()
    part[:, :, 20:] = 0
    targets[:, :, :, 21:] = 1
    volume = LabelledVolume(np.zeros(labels.shape, np.uint8), part, (10.0, 10.0, 10.0))
    assert segmentation_scores(targets, volume.labels)["voi"] > 0  # what hangs together beyond still counts
    targets[:, :, :, 20] = 0
    targets[:, :, :, 21:] = 0
    assert segmentation_scores(targets, volume.labels)["voi"] == pytest.approx(0, abs=0.05)
