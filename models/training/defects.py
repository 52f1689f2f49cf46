"""What microscopes and sections do to an image: contrast, noise, blur, and lost or unfocused sections.

Images are float32 (z, y, x) in [0, 1]; labels are not touched, the network has to see through these. Every function
returns a changed copy.

References: K. Lee et al., arXiv:1706.00120 (missing and out-of-focus sections); J. Funke et al., arXiv:1709.02974
(intensity per section); T. DeVries, G. Taylor, arXiv:1708.04552 (cut-out).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from models.training.augmentation import AugmentationOptions, Image


def damage(image: Image, options: AugmentationOptions, rng: np.random.Generator) -> Image:
    """Return the image with all changes that `options` ask for, clipped to [0, 1]."""
    image = defocus(blur(change_contrast(image, options, rng), options, rng), options, rng)
    image = add_noise(image, options, rng)
    image = cut_boxes(lose_sections(np.clip(image, 0.0, 1.0), options, rng), options, rng)
    return image


def change_contrast(image: Image, options: AugmentationOptions, rng: np.random.Generator) -> Image:
    """Return the image with another gamma, and other contrast and brightness: overall, drifting, and per section."""
    depth = image.shape[0]
    contrast = 1 + rng.uniform(-options.contrast, options.contrast) + _per_section(depth, options.section_contrast, rng)
    brightness = rng.uniform(-options.brightness, options.brightness) + _per_section(
        depth, options.section_brightness, rng
    )
    if options.drift:
        contrast, brightness = (
            contrast + _drift(depth, options.drift, rng),
            brightness + _drift(depth, options.drift / 2, rng),
        )
    changed = image ** np.float32(2.0 ** rng.uniform(-options.gamma, options.gamma)) - np.float32(0.5)
    changed *= np.asarray(contrast, np.float32)[:, None, None]
    changed += np.asarray(0.5 + brightness, np.float32)[:, None, None]
    return changed


def blur(image: Image, options: AugmentationOptions, rng: np.random.Generator) -> Image:
    """Return the image, perhaps blurred as a whole."""
    if rng.random() >= options.blur_probability:
        return image
    blurred: Image = ndimage.gaussian_filter(image, rng.uniform(0, options.blur_sigma), truncate=3)
    return blurred


def defocus(image: Image, options: AugmentationOptions, rng: np.random.Generator) -> Image:
    """Return the image, perhaps with one to eight neighbouring sections blurred within the section."""
    if rng.random() >= options.defocus_probability:
        return image
    run = _run(image.shape[0], 8, rng)
    sigma = rng.uniform(0, options.defocus_sigma)
    image = image.copy()
    image[run] = ndimage.gaussian_filter(image[run], (0, sigma, sigma), truncate=3)
    return image


def add_noise(image: Image, options: AugmentationOptions, rng: np.random.Generator) -> Image:
    """Return the image with Gaussian noise of a random strength."""
    deviation = np.float32(rng.uniform(0, options.noise))
    return image + deviation * rng.standard_normal(image.shape, np.float32) if deviation else image


def lose_sections(image: Image, options: AugmentationOptions, rng: np.random.Generator) -> Image:
    """Return the image, perhaps with a run of sections that are flat, in whole or on one side of a straight line."""
    if rng.random() >= options.missing_probability or options.missing_sections < 1:
        return image
    image = image.copy()
    run = _run(image.shape[0], options.missing_sections, rng)
    grey = np.float32(0.0 if rng.random() < 0.3 else rng.random())
    if rng.random() < 0.5:
        image[run] = grey
    else:
        height, width = image.shape[1:]
        angle = rng.uniform(0, 2 * np.pi)
        y = np.arange(height)[:, None] - rng.uniform(0.2, 0.8) * height
        x = np.arange(width) - rng.uniform(0.2, 0.8) * width
        image[run, np.sin(angle) * y + np.cos(angle) * x > 0] = grey
    return image


def cut_boxes(image: Image, options: AugmentationOptions, rng: np.random.Generator) -> Image:
    """Return the image, perhaps with one to three boxes filled with one grey value each."""
    if rng.random() >= options.cutout_probability or options.cutout_voxels < 1:
        return image
    image = image.copy()
    for _ in range(int(rng.integers(1, 4))):
        extents = [int(rng.integers(1, min(options.cutout_voxels, n) + 1)) for n in image.shape]
        starts = [int(rng.integers(n - e + 1)) for n, e in zip(image.shape, extents, strict=True)]
        box = tuple(slice(a, a + e) for a, e in zip(starts, extents, strict=True))
        image[box] = image[box].mean() if rng.random() < 0.5 else np.float32(rng.random())
    return image


def _per_section(depth: int, strength: float, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Independent values, of a strength that is drawn once for all."""
    return rng.uniform(0, strength) * rng.uniform(-1, 1, depth)


def _drift(depth: int, strength: float, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """A smooth course within plus and minus `strength`."""
    knots = rng.uniform(-strength, strength, 4)
    return np.interp(np.linspace(0, 3, depth), np.arange(4), knots)


def _run(depth: int, longest: int, rng: np.random.Generator) -> slice:
    first = int(rng.integers(depth))
    return slice(first, first + int(rng.integers(1, longest + 1)))
