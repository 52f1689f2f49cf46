from dataclasses import replace

import numpy as np
import pytest

from models.errors import InvalidConfig
from models.training.augmentation import AugmentationOptions, augment, flip_and_transpose, lose_sections, misalign

OFF = AugmentationOptions(
    contrast=0, brightness=0, gamma=0, blur_probability=0, noise=0, missing_probability=0, misalignment_probability=0
)


def patch(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 200, shape)
    return (labels / 255).astype(np.float32), labels


def test_symmetries_move_image_and_labels_together_and_all_occur() -> None:
    image, labels = patch((6, 6, 6))
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


def test_nothing_changes_when_everything_is_off() -> None:
    image, labels = patch((5, 6, 6))
    options = replace(OFF, isotropic=False)
    out, moved = augment(image, labels, options, np.random.default_rng(3))
    np.testing.assert_allclose(np.sort(out, axis=None), np.sort(image, axis=None), atol=1e-6)
    np.testing.assert_array_equal(np.sort(moved, axis=None), np.sort(labels, axis=None))


def test_steps_move_labels_and_slips_do_not() -> None:
    options = replace(OFF, misalignment_probability=1.0, misalignment_voxels=3)
    image, labels = patch((8, 20, 21))
    kinds = set()
    for seed in range(40):
        moved_image, moved = misalign(image, labels, options, np.random.default_rng(seed))
        assert moved.shape == (8, 14, 15)
        still = labels[:, 3:-3, 3:-3]
        changed = [z for z in range(8) if not np.array_equal(moved_image[z], (still[z] / 255).astype(np.float32))]
        if not changed:
            continue  # a shift of 0
        if np.array_equal(moved, still):
            kinds.add("slip")
            assert len(changed) == 1
        else:
            kinds.add("step")
            assert changed == list(range(changed[0], 8))
            np.testing.assert_array_equal(moved_image, (moved / 255).astype(np.float32))
    assert kinds == {"slip", "step"}


def test_missing_sections_are_flat_and_at_most_two() -> None:
    image, _ = patch((8, 9, 10))
    options = replace(OFF, missing_probability=1.0)
    for seed in range(20):
        lost = lose_sections(image, options, np.random.default_rng(seed))
        flat = [z for z in range(8) if np.ptp(lost[z]) == 0]
        assert 1 <= len(flat) <= 2
        assert all(np.array_equal(lost[z], image[z]) for z in range(8) if z not in flat)


def test_a_patch_follows_from_its_seed_and_stays_in_range() -> None:
    options = AugmentationOptions()
    image, labels = patch((12, 18, 18))
    first, second = (augment(image, labels, options, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert first[0].shape == (12, 12, 12)
    assert first[0].dtype == np.float32
    assert 0 <= first[0].min() <= first[0].max() <= 1


@pytest.mark.parametrize("wrong", [{"blur_probability": 1.5}, {"noise": -0.1}, {"misalignment_voxels": -1}])
def test_impossible_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidConfig):
        AugmentationOptions(**wrong)  # type: ignore[arg-type]
