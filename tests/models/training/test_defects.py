from dataclasses import replace

import numpy as np
import pytest

from models.training.augmentation import AugmentationOptions
from models.training.defects import (
    add_noise,
    blur,
    change_contrast,
    cut_boxes,
    damage,
    defocus,
    lose_sections,
)

NONE = AugmentationOptions.none()


def image(shape: tuple[int, int, int] = (16, 20, 24)) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.2, 0.8, shape).astype(np.float32)


def sections_that_differ(a: np.ndarray, b: np.ndarray) -> list[int]:
    return [z for z in range(len(a)) if not np.array_equal(a[z], b[z])]


def test_nothing_is_damaged_when_everything_is_off() -> None:
    np.testing.assert_allclose(damage(image(), NONE, np.random.default_rng(1)), image(), atol=1e-6)


def test_contrast_per_section_is_linear_within_each_section_and_differs_between_them() -> None:
    options = replace(NONE, section_contrast=0.2, section_brightness=0.1)
    changed = change_contrast(image(), options, np.random.default_rng(2))
    fits = [np.polyfit(image()[z].ravel(), changed[z].ravel(), 1, full=True) for z in range(16)]
    assert all(residual[0] < 1e-6 for _, residual, *_ in fits)
    slopes = np.array([coefficients[0] for coefficients, *_ in fits])
    assert 0.8 <= slopes.min() < slopes.max() <= 1.2
    assert len(np.unique(slopes.round(4))) > 10


def test_drift_is_smooth_over_the_sections() -> None:
    changed = change_contrast(np.full((64, 4, 4), 0.75, np.float32), replace(NONE, drift=0.2), np.random.default_rng(3))
    course = changed[:, 0, 0] - 0.75
    assert 0.01 < np.ptp(course) <= 0.3
    assert np.abs(np.diff(course)).max() < 0.02


def test_gamma_keeps_black_and_white() -> None:
    ends = np.array([0.0, 1.0], np.float32).repeat(8).reshape(2, 2, 4)
    np.testing.assert_allclose(change_contrast(ends, replace(NONE, gamma=1), np.random.default_rng(4)), ends, atol=1e-6)


def test_defocus_blurs_a_run_of_sections_within_the_section_only() -> None:
    options = replace(NONE, defocus_probability=1.0, defocus_sigma=3.0)
    runs = set()
    for seed in range(30):
        changed = defocus(image(), options, np.random.default_rng(seed))
        hit = sections_that_differ(changed, image())
        runs.add(len(hit))
        if not hit:
            continue  # a blur of next to nothing
        assert hit == list(range(hit[0], hit[-1] + 1))
        assert all(changed[z].std() < image()[z].std() for z in hit)
        np.testing.assert_allclose(changed.mean((1, 2)), image().mean((1, 2)), atol=0.03)
    assert len(runs) > 4
    assert max(runs) == 8


def test_missing_sections_are_flat_wholly_or_on_one_side_of_a_line() -> None:
    options = replace(NONE, missing_probability=1.0, missing_sections=3)
    kinds, runs = set(), set()
    for seed in range(60):
        lost = lose_sections(image(), options, np.random.default_rng(seed))
        hit = sections_that_differ(lost, image())
        assert hit == list(range(hit[0], hit[-1] + 1))
        gone = lost[hit[0]] != image()[hit[0]]
        assert np.ptp(lost[hit[0]][gone]) == 0
        kinds.add("whole" if gone.all() else "part")
        runs.add(len(hit))
        assert all(np.array_equal(lost[z] != image()[z], gone) for z in hit)
    assert kinds == {"whole", "part"}
    assert runs == {1, 2, 3}


def test_cut_boxes_are_flat_and_no_larger_than_asked() -> None:
    options = replace(NONE, cutout_probability=1.0, cutout_voxels=5)
    for seed in range(20):
        cut = cut_boxes(image(), options, np.random.default_rng(seed))
        gone = cut != image()
        assert 1 <= gone.sum() <= 3 * 5**3
        assert len(np.unique(cut[gone])) <= 3


def test_blur_and_noise_do_what_they_say() -> None:
    options = replace(NONE, blur_probability=1.0, blur_sigma=1.5, noise=0.1)
    assert blur(image(), options, np.random.default_rng(5)).std() < 0.8 * image().std()
    noise = add_noise(image(), options, np.random.default_rng(5)) - image()
    assert 0 < noise.std() <= 0.1
    assert abs(noise.mean()) < 0.01


@pytest.mark.parametrize("seed", range(8))
def test_damage_follows_from_the_seed_leaves_its_input_alone_and_stays_in_range(seed: int) -> None:
    options = AugmentationOptions(missing_probability=0.5, cutout_probability=0.5, defocus_probability=0.5)
    given = image()
    first, second = (damage(given, options, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(given, image())
    assert first.dtype == np.float32
    assert 0 <= first.min() <= first.max() <= 1
