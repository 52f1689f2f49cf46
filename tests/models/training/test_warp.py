import numpy as np
import pytest

from models.training.augmentation import shifted_sections
from models.training.warp import Deformation, elastic_grid, read_patch, rotation_and_scaling


def volume(shape: tuple[int, int, int] = (20, 24, 28), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image whose values say the label, so that image and labels can be compared voxel for voxel."""
    labels = np.random.default_rng(seed).integers(1, 256, shape)
    return labels.astype(np.uint8), labels.astype(np.uint64) + (1 << 40)


def test_without_deformation_the_patch_is_the_box() -> None:
    image, labels = volume()
    got, ids = read_patch(image, labels, (3, 4, 5), (6, 9, 8), Deformation())
    box = np.s_[3:9, 4:13, 5:13]
    np.testing.assert_allclose(got, image[box] / 255, rtol=1e-6)
    np.testing.assert_array_equal(ids, labels[box])
    assert (got.dtype, ids.dtype) == (np.float32, np.uint64)


def test_beyond_the_faces_labels_are_unknown_and_the_image_is_mirrored() -> None:
    image, labels = volume()
    got, ids = read_patch(image, labels, (-2, 0, 22), (6, 5, 8), Deformation())
    assert (ids[:2] == 0).all()
    assert (ids[:, :, 6:] == 0).all()
    np.testing.assert_array_equal(ids[2:, :, :6], labels[:4, :5, 22:])
    np.testing.assert_allclose(got[:2, :, :6], image[2:0:-1, :5, 22:] / 255, rtol=1e-6)
    np.testing.assert_allclose(got[2:, :, 6:], image[:4, :5, 26:24:-1] / 255, rtol=1e-6)


def test_a_quarter_turn_is_numpys() -> None:
    image, labels = volume((9, 9, 9))
    turn = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # output (y, x) is read at (x, -y)
    got, ids = read_patch(image, labels, (0, 0, 0), (9, 9, 9), Deformation(matrix=turn))
    np.testing.assert_array_equal(ids, np.rot90(labels, 1, (1, 2)))
    np.testing.assert_allclose(got, np.rot90(image, 1, (1, 2)) / 255, atol=1e-5)


def test_rotation_moves_a_linear_image_as_it_should() -> None:
    shape = (40, 40, 40)
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    image = (z + 2 * y + 3 * x).astype(np.uint8)
    rng = np.random.default_rng(1)
    matrix = rotation_and_scaling(rng, degrees=30, scale=0.2, axial=False)
    got, _ = read_patch(image, np.ones(shape, np.uint32), (14, 14, 14), (12, 12, 12), Deformation(matrix=matrix))
    offsets = np.stack(np.meshgrid(*(np.arange(12) - 5.5,) * 3, indexing="ij"))
    places = 19.5 + np.einsum("ij,jzyx->izyx", matrix, offsets)
    np.testing.assert_allclose(got * 255, np.tensordot([1, 2, 3], places, 1), atol=1e-3)


@pytest.mark.parametrize("axial", [True, False])
def test_matrices_rotate_and_scale_within_their_limits(axial: bool) -> None:
    for seed in range(50):
        matrix = rotation_and_scaling(np.random.default_rng(seed), degrees=20, scale=0.25, axial=axial)
        scales = np.linalg.norm(matrix, axis=0)
        assert ((scales > 0.8 - 1e-9) & (scales < 1.25 + 1e-9)).all()
        rotation = matrix / scales
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.trace(rotation) >= 1 + 2 * np.cos(np.deg2rad(20)) - 1e-9
        if axial:
            np.testing.assert_allclose(matrix[0], [1, 0, 0], atol=1e-12)


def test_displacements_cover_the_patch_and_move_image_and_labels_alike() -> None:
    image, labels = volume((40, 40, 40))
    rng = np.random.default_rng(2)
    grid = np.rint(elastic_grid(rng, (16, 17, 18), voxels=2.0, spacing=1.0, axial=True))  # whole voxels: no mixing
    assert (grid[0] == 0).all()
    got, ids = read_patch(image, labels, (12, 12, 12), (16, 17, 18), Deformation(grid=grid, spacing=1.0))
    np.testing.assert_allclose(got, (ids - (1 << 40)) / 255, rtol=1e-5)
    assert (ids != labels[12:28, 12:29, 12:30]).mean() > 0.5


def test_steps_move_labels_and_slips_do_not() -> None:
    image, labels = volume()
    box, patch = (2, 5, 6), (8, 10, 9)
    plain = labels[2:10, 5:15, 6:15]
    moved = labels[2:10, 7:17, 3:12]
    for step in (True, False):
        shifts = shifted_sections(8, 3, (2, -3), step=step)
        got, ids = read_patch(image, labels, box, patch, Deformation(label_shift=shifts[0], image_shift=shifts[1]))
        shown = np.rint(got * 255).astype(np.uint64) + (1 << 40)
        np.testing.assert_array_equal(shown[:3], plain[:3])
        np.testing.assert_array_equal(shown[3], moved[3])
        np.testing.assert_array_equal(shown[4:], (moved if step else plain)[4:])
        np.testing.assert_array_equal(ids, np.concatenate([plain[:3], moved[3:]]) if step else plain)
