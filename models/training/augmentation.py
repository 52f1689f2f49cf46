"""Augmentation of training patches: symmetries, contrast, blur, noise, and the defects of real sections.

Every function takes a random generator, so that a patch follows from (seed, step) alone. Images are float32 in [0, 1],
labels integers, both (z, y, x). A *step* misalignment persists from one section on, and the labels move along; a *slip*
shifts the image of a single section, and the labels stay.

References: K. Lee et al., arXiv:1706.00120 (misalignment, missing and out-of-focus sections).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.errors import InvalidConfig

Image = NDArray[np.float32]
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class AugmentationOptions:
    """Which changes are made to a patch, and how strongly; probabilities are per patch.

    Parameters
    ----------
    isotropic
        Whether z may be exchanged with y and x (cubic voxels); otherwise only y with x.
    contrast, brightness
        Largest relative change of contrast about mid-grey, and largest shift (image range is 0 to 1).
    gamma
        Largest change of log2 of the exponent.
    blur_probability, blur_sigma
        Gaussian blur of the whole patch or of a run of sections, with sigma up to so many voxels.
    noise
        Largest standard deviation of added Gaussian noise.
    missing_probability, misalignment_probability, misalignment_voxels
        Missing sections (up to two in a row), steps and slips of up to so many voxels.
    """

    isotropic: bool = True
    contrast: float = 0.3
    brightness: float = 0.15
    gamma: float = 0.5
    blur_probability: float = 0.2
    blur_sigma: float = 1.2
    noise: float = 0.06
    missing_probability: float = 0.05
    misalignment_probability: float = 0.1
    misalignment_voxels: int = 3

    def __post_init__(self) -> None:
        rates = (self.blur_probability, self.missing_probability, self.misalignment_probability)
        if any(not 0 <= rate <= 1 for rate in rates):
            raise InvalidConfig(f"augmentation: expected probabilities between 0 and 1, got {rates}")
        if self.misalignment_voxels < 0 or min(self.contrast, self.brightness, self.blur_sigma, self.noise) < 0:
            raise InvalidConfig(f"augmentation: expected strengths of at least 0, got {self}")

    @property
    def rim(self) -> int:
        """Voxels in y and x by which a patch must be cut larger, for misalignment to shift within."""
        return self.misalignment_voxels if self.misalignment_probability else 0


def augment(
    image: Image, labels: Labels, options: AugmentationOptions, rng: np.random.Generator
) -> tuple[Image, Labels]:
    """Return an augmented copy of a patch that was cut `options.rim` voxels larger in y and x, without that rim."""
    image, labels = misalign(image, labels, options, rng)
    image = np.clip(distort_intensity(image, options, rng), 0.0, 1.0)
    image = lose_sections(image, options, rng)
    return flip_and_transpose(image, labels, rng, isotropic=options.isotropic)


def flip_and_transpose(
    image: Image, labels: Labels, rng: np.random.Generator, *, isotropic: bool
) -> tuple[Image, Labels]:
    """Return the patch under a random symmetry of the cube (48), or of the section and z (16)."""
    axes = tuple(rng.permutation(3)) if isotropic else (0, *(1 + rng.permutation(2)))
    flips = tuple(slice(None, None, -1) if rng.random() < 0.5 else slice(None) for _ in range(3))
    return (
        np.ascontiguousarray(image.transpose(axes)[flips]),
        np.ascontiguousarray(labels.transpose(axes)[flips]),
    )


def misalign(
    image: Image, labels: Labels, options: AugmentationOptions, rng: np.random.Generator
) -> tuple[Image, Labels]:
    """Return the patch without its rim, with a step (labels move along) or a slip (they stay) at a random section."""
    rim, depth = options.rim, image.shape[0]
    if rim == 0:
        return image.copy(), labels.copy()
    inner = (slice(None), slice(rim, image.shape[1] - rim), slice(rim, image.shape[2] - rim))
    moved_image, moved_labels = image[inner].copy(), labels[inner].copy()
    if rng.random() >= options.misalignment_probability or depth < 2:
        return moved_image, moved_labels
    section = int(rng.integers(1, depth))
    dy, dx = (int(shift) for shift in rng.integers(-rim, rim + 1, size=2))
    window = (
        slice(rim + dy, image.shape[1] - rim + dy),
        slice(rim + dx, image.shape[2] - rim + dx),
    )
    if rng.random() < 0.5:
        moved_image[section:], moved_labels[section:] = image[section:, *window], labels[section:, *window]
    else:
        moved_image[section] = image[section, *window]
    return moved_image, moved_labels


def distort_intensity(image: Image, options: AugmentationOptions, rng: np.random.Generator) -> Image:
    """Return the image with changed gamma, contrast and brightness, perhaps blurred, and with noise."""
    distorted: Image = image ** np.float32(2.0 ** rng.uniform(-options.gamma, options.gamma))
    contrast = np.float32(1 + rng.uniform(-options.contrast, options.contrast))
    shift = np.float32(0.5 + rng.uniform(-options.brightness, options.brightness))
    distorted = (distorted - np.float32(0.5)) * contrast + shift
    if rng.random() < options.blur_probability:
        sigma = float(rng.uniform(0, options.blur_sigma))
        if rng.random() < 0.5:
            distorted = ndimage.gaussian_filter(distorted, sigma, truncate=3)
        else:  # a run of sections out of focus
            first = int(rng.integers(image.shape[0]))
            run = slice(first, first + int(rng.integers(1, 9)))
            distorted[run] = ndimage.gaussian_filter(distorted[run], (0, 2 * sigma, 2 * sigma), truncate=3)
    deviation = np.float32(rng.uniform(0, options.noise))
    return distorted + deviation * rng.standard_normal(image.shape, np.float32)


def lose_sections(image: Image, options: AugmentationOptions, rng: np.random.Generator) -> Image:
    """Return the image, perhaps with one or two neighbouring sections replaced by a flat grey; labels stay known."""
    if rng.random() < options.missing_probability:
        first = int(rng.integers(image.shape[0]))
        image = image.copy()
        image[first : first + int(rng.integers(1, 3))] = np.float32(rng.random())
    return image
