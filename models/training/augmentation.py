"""Augmentation of training patches: which changes are made, how strongly, and in which order.

Every function takes a random generator, so that a patch follows from (seed, step) alone. Geometry comes first and moves
image and labels together (`models.training.warp`), then what a microscope and a section can do to the image alone
(`models.training.defects`), then a symmetry, so that sections lie on any axis that the voxel size allows.

References: K. Lee et al., arXiv:1706.00120; J. Funke et al., arXiv:1709.02974 (elastic deformation, defects of serial
sections); T. DeVries, G. Taylor, arXiv:1708.04552 (cut-out).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidConfig
from models.geometry import Triple
from models.training.warp import Deformation, elastic_grid, rotation_and_scaling

Image = NDArray[np.float32]
Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class AugmentationOptions:
    """Which changes are made to a patch, and how strongly; probabilities are per patch, strengths are the largest.

    Parameters
    ----------
    isotropic
        Whether z may be exchanged and rotated with y and x (cubic voxels); otherwise only y with x.
    warp_probability, rotation_degrees, scale, elastic_voxels, elastic_spacing
        Rotation, scaling per axis by up to 1 + scale, and elastic displacement with a standard deviation of so many
        voxels at control points so many voxels apart.
    misalignment_probability, misalignment_voxels
        A step (half of the cases: all sections from one on are shifted, labels too) or a slip (the image of one section
        is shifted, labels stay), by up to so many voxels in y and in x.
    contrast, brightness, gamma
        Change of contrast about mid-grey, shift (image range is 0 to 1), and change of log2 of the exponent.
    section_contrast, section_brightness, drift
        The same for each section by itself, and for a smooth course over the sections.
    blur_probability, blur_sigma
        Gaussian blur of the whole patch, sigma in voxels.
    defocus_probability, defocus_sigma
        A run of one to eight sections out of focus: blurred within the section.
    noise
        Standard deviation of added Gaussian noise.
    missing_probability, missing_sections
        A run of up to so many sections is grey or black, in whole or (half of the cases) on one side of a line.
    cutout_probability, cutout_voxels
        One to three boxes of up to so many voxels per axis lose their image; labels stay, so context must fill them.
    """

    isotropic: bool = True
    warp_probability: float = 0.5
    rotation_degrees: float = 20.0
    scale: float = 0.15
    elastic_voxels: float = 2.0
    elastic_spacing: float = 24.0
    misalignment_probability: float = 0.1
    misalignment_voxels: int = 3
    contrast: float = 0.3
    brightness: float = 0.15
    gamma: float = 0.5
    section_contrast: float = 0.05
    section_brightness: float = 0.03
    drift: float = 0.1
    blur_probability: float = 0.15
    blur_sigma: float = 1.2
    defocus_probability: float = 0.1
    defocus_sigma: float = 2.0
    noise: float = 0.06
    missing_probability: float = 0.05
    missing_sections: int = 2
    cutout_probability: float = 0.1
    cutout_voxels: int = 16

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name.endswith("_probability") and not 0 <= value <= 1:
                raise InvalidConfig(f"augmentation: expected probabilities between 0 and 1, got {entry.name} {value}")
            if value < 0:
                raise InvalidConfig(f"augmentation: expected strengths of at least 0, got {entry.name} {value}")
        if self.elastic_spacing < 1:
            raise InvalidConfig(f"augmentation: expected elastic_spacing of at least 1, got {self.elastic_spacing}")

    @classmethod
    def none(cls, *, isotropic: bool = True) -> AugmentationOptions:
        """Options that leave a patch as it is but for its symmetry."""
        off = {entry.name: 0 for entry in fields(cls) if entry.name not in ("isotropic", "elastic_spacing")}
        return cls(isotropic=isotropic, **off)


def random_deformation(patch: Triple, options: AugmentationOptions, rng: np.random.Generator) -> Deformation:
    """Return how the voxels of a patch are moved: warped with its probability, perhaps misaligned."""
    label_shift, image_shift = misalignment(patch[0], options, rng)
    axial = not options.isotropic
    if rng.random() >= options.warp_probability:
        return Deformation(label_shift=label_shift, image_shift=image_shift)
    spacing = options.elastic_spacing
    return Deformation(
        rotation_and_scaling(rng, degrees=options.rotation_degrees, scale=options.scale, axial=axial),
        elastic_grid(rng, patch, voxels=options.elastic_voxels * rng.random(), spacing=spacing, axial=axial),
        spacing,
        label_shift,
        image_shift,
    )


def misalignment(
    depth: int, options: AugmentationOptions, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return shifts (depth, 2) in y and x of labels and image.

    A step moves both from a section on, a slip the image of one section.
    """
    if rng.random() >= options.misalignment_probability or depth < 2:
        return np.zeros((depth, 2)), np.zeros((depth, 2))
    section, most = int(rng.integers(1, depth)), options.misalignment_voxels
    dy, dx = rng.integers(-most, most + 1, size=2)
    return shifted_sections(depth, section, (int(dy), int(dx)), step=rng.random() < 0.5)


def shifted_sections(
    depth: int, section: int, shift: tuple[int, int], *, step: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return shifts (depth, 2) of labels and image for a step at `section`, or for a slip of that section."""
    label_shift, image_shift = np.zeros((depth, 2)), np.zeros((depth, 2))
    if step:
        label_shift[section:] = image_shift[section:] = shift
    else:
        image_shift[section] = shift
    return label_shift, image_shift


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
