"""A picture of what training sees: one row per augmentation of the recipe, each at its full probability, then all."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw

from models.geometry import Triple
from models.training.augmentation import (
    AugmentationOptions,
    Image,
    Labels,
    flip_and_transpose,
    random_deformation,
    shifted_sections,
)
from models.training.defects import damage
from models.training.sampler import LabelledVolume
from models.training.warp import Deformation, read_patch

EFFECTS = {
    "rotation, scale, elastic": ("warp_probability", "rotation_degrees", "scale", "elastic_voxels"),
    "contrast, brightness, gamma": ("contrast", "brightness", "gamma"),
    "contrast per section, drift": ("section_contrast", "section_brightness", "drift"),
    "blur": ("blur_probability", "blur_sigma"),
    "out of focus": ("defocus_probability", "defocus_sigma"),
    "noise": ("noise",),
    "missing sections": ("missing_probability", "missing_sections"),
    "cut-out": ("cutout_probability", "cutout_voxels"),
}
"""Rows of the picture and the options that belong to them."""

TITLE_PIXELS, GAP_PIXELS = 16, 4


@dataclass(frozen=True)
class Row:
    """A title and a patch after one augmentation, image float32 and labels of shape (z, y, x), and a section of it."""

    title: str
    image: Image
    labels: Labels
    section: int


def preview_rows(
    volume: LabelledVolume, patch: Triple, options: AugmentationOptions, *, samples: int = 4, seed: int = 0
) -> list[Row]:
    """Return the patch in the volume's middle under each effect that `options` turn on, and `samples` full mixtures."""
    z, y, x = ((n - extent) // 2 for n, extent in zip(volume.image.shape, patch, strict=True))
    start = (z, y, x)
    still = AugmentationOptions.none(isotropic=options.isotropic)

    def row(title: str, chosen: AugmentationOptions, deformation: Deformation | None, turn: int) -> Row:
        rng = np.random.default_rng([seed, turn])
        moved = random_deformation(patch, chosen, rng) if deformation is None else deformation
        image, labels = read_patch(volume.image, volume.labels, start, patch, moved)
        image = damage(image, chosen, rng)
        section = patch[0] // 2 if plain is None else int(np.abs(image - plain).mean((1, 2)).argmax())
        return Row(title, image, labels, section)

    plain: Image | None = None
    rows = [row("unchanged", still, None, 0)]
    plain = rows[0].image
    for turn, (title, names) in enumerate(EFFECTS.items(), start=1):
        values = {name: getattr(options, name) for name in names}
        if all(values.values()):
            certain = {name: 1.0 for name in names if name.endswith("_probability")}
            rows.append(row(title, replace(still, **{**values, **certain}), None, turn))
    if options.misalignment_probability and options.misalignment_voxels:
        shift = (options.misalignment_voxels, -options.misalignment_voxels)
        for title, step in (("step (labels move)", True), ("slip (labels stay)", False)):
            shifts = shifted_sections(patch[0], patch[0] // 2, shift, step=step)
            rows.append(row(title, still, Deformation(label_shift=shifts[0], image_shift=shifts[1]), len(rows)))
    for turn in range(samples):
        mixed = row(f"all, sample {turn + 1}", options, None, 100 + turn)
        rng = np.random.default_rng([seed, 200 + turn])
        image, labels = flip_and_transpose(mixed.image, mixed.labels, rng, isotropic=options.isotropic)
        rows.append(Row(mixed.title, image, labels, patch[0] // 2))
    return rows


def preview_sheet(rows: list[Row], *, zoom: int = 2) -> NDArray[np.uint8]:
    """Return a picture, uint8 (height, width, 3): per row a section and a cut along z, image beside labels.

    The section is the one that the augmentation changed most.
    """
    strips = [_strip(row, zoom) for row in rows]
    width = max(strip.shape[1] for strip in strips)
    sheet = np.full((sum(strip.shape[0] for strip in strips), width, 3), 255, np.uint8)
    top = 0
    for strip in strips:
        sheet[top : top + strip.shape[0], : strip.shape[1]] = strip
        top += strip.shape[0]
    return sheet


def _strip(row: Row, zoom: int) -> NDArray[np.uint8]:
    z, y = row.section, row.image.shape[1] // 2
    cuts = [(row.image[z], row.labels[z]), (row.image[:, y], row.labels[:, y])]
    panels = []
    for image, labels in cuts:
        grey = np.repeat(np.rint(image * 255).astype(np.uint8)[..., None], 3, axis=2)
        panels += [grey, (grey // 2 + _colours(labels) // 2).astype(np.uint8)]
    panels = [panel.repeat(zoom, 0).repeat(zoom, 1) for panel in panels]
    height = TITLE_PIXELS + max(panel.shape[0] for panel in panels) + GAP_PIXELS
    strip = Picture.new("RGB", (sum(panel.shape[1] + GAP_PIXELS for panel in panels), height), "white")
    ImageDraw.Draw(strip).text((2, 2), f"{row.title}: section {z}, with labels; cut along z, with labels", fill="black")
    left = 0
    for panel in panels:
        strip.paste(Picture.fromarray(panel), (left, TITLE_PIXELS))
        left += panel.shape[1] + GAP_PIXELS
    return np.asarray(strip)


def _colours(labels: Labels) -> NDArray[np.uint8]:
    """A colour per label that follows from the label alone; 0 is black, background white."""
    mixed = labels.astype(np.uint64)[..., None] * np.array([2654435761, 2246822519, 3266489917], np.uint64)
    colours: NDArray[np.uint8] = ((mixed >> np.uint64(13)) & np.uint64(255)).astype(np.uint8)
    colours[labels == 0] = 0
    colours[labels < 0] = 255
    return colours
