from dataclasses import replace

import numpy as np
import pytest

from models.errors import InvalidConfig
from models.training.augmentation import (
    AugmentationOptions,
    flip_and_transpose,
    misalignment,
    random_deformation,
)
from models.training.sampler import LabelledVolume, PatchSampler

NM = (10.0, 10.0, 10.0)


def test_symmetries_move_image_and_labels_together_and_all_occur() -> None:
    labels = np.random.default_rng(0).integers(1, 200, (6, 6, 6))
    image = (labels / 255).astype(np.float32)
    seen = set()
    for seed in range(600):
        turned, moved = flip_and_transpose(image, labels, np.random.default_rng(seed), isotropic=True)
        np.testing.assert_array_equal(turned, (moved / 255).astype(np.float32))
        seen.add(moved.tobytes())
    assert len(seen) == 48
    flat = {
        flip_and_transpose(image, labels, np.random.default_rng(seed), isotropic=False)[1].tobytes()
        for seed in range(300)
    }
    assert len(flat) == 16


def test_misalignments_are_steps_and_slips_within_their_limit() -> None:
    options = replace(AugmentationOptions.none(), misalignment_probability=1.0, misalignment_voxels=3)
    kinds = set()
    for seed in range(60):
        labels, image = misalignment(8, options, np.random.default_rng(seed))
        assert max(np.abs(labels).max(), np.abs(image).max()) <= 3
        if not image.any():
            continue  # a shift of 0
        moved = np.flatnonzero(image.any(axis=1))
        if labels.any():
            kinds.add("step")
            np.testing.assert_array_equal(labels, image)
            np.testing.assert_array_equal(moved, range(moved[0], 8))
            assert moved[0] >= 1
        else:
            kinds.add("slip")
            assert len(moved) == 1
    assert kinds == {"step", "slip"}


def test_serial_sections_are_never_tilted() -> None:
    options = AugmentationOptions(isotropic=False, warp_probability=1.0, rotation_degrees=90)
    for seed in range(20):
        moved = random_deformation((8, 16, 16), options, np.random.default_rng(seed))
        np.testing.assert_allclose(moved.matrix[0], [1, 0, 0], atol=1e-12)
        np.testing.assert_allclose(moved.matrix[:, 0], [1, 0, 0], atol=1e-12)
        assert not moved.grid[0].any()
        assert moved.grid[1:].any()


def test_affinities_are_those_of_the_warped_labels() -> None:
    """Two slabs whose image tells them apart: after any warp, target edges are cut where the image changes."""
    labels = np.ones((40, 40, 40), np.uint32)
    labels[:, :, 20:] = 2
    image = np.where(labels == 1, 50, 200).astype(np.uint8)
    geometry = AugmentationOptions()
    still = AugmentationOptions.none()
    options = replace(
        still,
        warp_probability=1.0,
        rotation_degrees=geometry.rotation_degrees,
        scale=geometry.scale,
        elastic_voxels=geometry.elastic_voxels,
    )
    sampler = PatchSampler(
        (LabelledVolume(image, labels, NM),),
        ((-1, 0, 0), (0, -1, 0), (0, 0, -1)),
        (24, 24, 24),
        options,
        0,
        0.0,
        0.0,
        7,
    )
    for step in range(6):
        batch = sampler.batch(step, 1)
        side = batch.image[0] > 125 / 255
        for axis in range(3):
            here = tuple(slice(1, None) if i == axis else slice(None) for i in range(3))
            there = tuple(slice(None, -1) if i == axis else slice(None) for i in range(3))
            known = batch.weights[0, axis][here] > 0
            same = side[here] == side[there]
            assert (same == batch.targets[0, axis][here])[known].mean() > 0.99


@pytest.mark.parametrize(
    "wrong",
    [
        {"blur_probability": 1.5},
        {"noise": -0.1},
        {"misalignment_voxels": -1},
        {"elastic_spacing": 0.5},
        {"cutout_probability": -0.1},
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(wrong))):
        AugmentationOptions(**wrong)  # type: ignore[arg-type]
