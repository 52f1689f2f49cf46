"""A picture of a segmentation over its image, without a browser: three orthogonal slices, one column per volume.

Colours come from a hash of the segment id, so that a segment looks the same in every picture.
"""

from __future__ import annotations

import colorsys
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models.errors import InvalidInput, InvalidVolume
from models.geometry import AXES, Box, Triple, VoxelSize

_COLUMN, _ALONE = 560, 1000  # width of a column in pixels, among others and alone
_TALLEST = 3  # panels at most this many times as high as a column is wide
_MARGIN, _GAP, _HEAD, _LINE = 24, 14, 40, 28
_OPACITY = 0.42
_BORDER = 0.45  # brightness of a border relative to its segment's colour
_INK, _PAPER, _FAINT = (28, 30, 34), (255, 255, 255), (110, 114, 122)
_PLANES = (("xy", 0), ("xz", 1), ("yz", 2))
"""Name of a plane, its horizontal axis first, and the axis that it cuts."""

Labels = NDArray[np.integer]


@dataclass(frozen=True)
class Slice:
    """One slice: `image` (h, w) of any number type, and labels of the same shape per column; `axis` is the one cut."""

    axis: int
    index: int
    image: NDArray[Any]
    labels: tuple[Labels, ...]


def write_overlay(
    image: NDArray[Any],
    labels: Labels,
    path: str | Path,
    *,
    voxel_size_nm: VoxelSize,
    caption: str,
    truth: Labels | None = None,
) -> None:
    """Write the middle slices of a volume as PNG: image, image with segmentation and, where given, with truth.

    All arrays are (z, y, x) of one shape; `image` of any number type (its contrast is stretched), labels of integers
    with 0 as background. Axes are drawn in physical proportion. Raises `InvalidVolume` for shapes or dtypes that do not
    fit, `InvalidInput` for an impossible voxel size, and OSError where the file cannot be written.
    """
    volumes = (labels,) if truth is None else (labels, truth)
    if image.ndim != 3 or 0 in image.shape or any(volume.shape != image.shape for volume in volumes):
        raise InvalidVolume(
            f"picture: expected an image (z, y, x) and labels of its shape, got {image.shape} and "
            f"{', '.join(str(volume.shape) for volume in volumes)}"
        )
    box = Box.from_shape((image.shape[0], image.shape[1], image.shape[2]))
    slices = [
        Slice(
            axis, at.start[axis], image[at.slices()].squeeze(axis), tuple(v[at.slices()].squeeze(axis) for v in volumes)
        )
        for axis, at in middle_planes(box)
    ]
    Path(path).write_bytes(picture(slices, voxel_size_nm=voxel_size_nm, caption=caption))


def middle_planes(box: Box) -> list[tuple[int, Box]]:
    """The cut axis and the box of the middle slices of a box: xy, xz, yz."""
    planes = []
    for _, axis in _PLANES:
        start, stop = list(box.start), list(box.stop)
        start[axis] = (box.start[axis] + box.stop[axis]) // 2
        stop[axis] = start[axis] + 1
        planes.append((axis, Box(_three(start), _three(stop))))
    return planes


def picture(slices: Sequence[Slice], *, voxel_size_nm: VoxelSize, caption: str) -> bytes:
    """Draw slices as one PNG of at least 1000 pixels' width: a row per slice, columns are the image and its labels."""
    if not all(np.isfinite(size) and size > 0 for size in voxel_size_nm):
        raise InvalidInput(f"voxel_size_nm: expected three numbers above 0, got {voxel_size_nm}")
    for piece in slices:
        if any(labels.dtype.kind not in "iu" for labels in piece.labels):
            raise InvalidVolume(f"picture: expected integer labels, got {[str(v.dtype) for v in piece.labels]}")
    heads = ("image", "segmentation", "truth")[: 1 + len(slices[0].labels)]
    low, high = _contrast([piece.image for piece in slices])
    column_width = _COLUMN if len(heads) > 1 else _ALONE
    highest, widest = (
        max(piece.image.shape[side] * voxel_size_nm[_axes(piece.axis)[side]] for piece in slices) for side in (0, 1)
    )
    pixels_per_nm = min(column_width / widest, _TALLEST * column_width / highest)
    rows = [_panels(piece, voxel_size_nm, pixels_per_nm, (low, high)) for piece in slices]
    width = 2 * _MARGIN + len(heads) * column_width + (len(heads) - 1) * _GAP
    font, small = ImageFont.load_default(size=20), ImageFont.load_default(size=16)
    lines = textwrap.wrap(caption, width=int((width - 2 * _MARGIN) / 8.2)) if caption else []
    row_heights = [row[0].height + _LINE + _GAP for row in rows]
    canvas = Image.new("RGB", (width, _MARGIN + _HEAD + sum(row_heights) + 24 * len(lines) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, head in enumerate(heads):
        draw.text((_MARGIN + column * (column_width + _GAP), _MARGIN - 4), head, fill=_INK, font=font)
    top = _MARGIN + _HEAD
    for piece, row, height in zip(slices, rows, row_heights, strict=True):
        for column, panel in enumerate(row):
            canvas.paste(panel, (_MARGIN + column * (column_width + _GAP), top))
        _scale_bar(draw, row[0], top, pixels_per_nm, small)
        label = f"{_name(piece.axis)} at {AXES[piece.axis]} = {piece.index}"
        draw.text((_MARGIN, top + row[0].height + 5), label, fill=_FAINT, font=small)
        top += height
    for number, line in enumerate(lines):
        draw.text((_MARGIN, top + 24 * number), line, fill=_INK, font=small)
    sink = io.BytesIO()
    canvas.save(sink, format="PNG", optimize=True)
    return sink.getvalue()


def segment_colours(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Colours (n, 3), red, green, blue, of segment ids (n,); the same id has the same colour everywhere, 0 is black."""
    key = ids.astype(np.uint64)
    with np.errstate(over="ignore"):  # splitmix64: neighbouring ids get unlike colours
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key ^= key >> np.uint64(31)
    parts = [((key >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.float64) / 0xFFFF for shift in (0, 16, 32)]
    colours = np.array(
        [colorsys.hsv_to_rgb(h, 0.55 + 0.4 * s, 0.8 + 0.2 * v) for h, s, v in zip(*parts, strict=True)],
        dtype=np.float64,
    ).reshape(-1, 3)
    colours[ids == 0] = 0
    return np.rint(colours * 255).astype(np.uint8)


def blend(image: NDArray[np.uint8], labels: Labels) -> NDArray[np.uint8]:
    """Colour a grey slice (h, w) by its labels (h, w): uint8 (h, w, 3); borders are darker, background stays grey."""
    ids, inverse = np.unique(labels, return_inverse=True)
    colours = segment_colours(ids)[inverse.reshape(labels.shape)].astype(np.float64)
    inside = (labels != 0)[..., None]
    grey = np.repeat(image[..., None].astype(np.float64), 3, axis=2)
    mixed = np.where(inside, (1 - _OPACITY) * grey + _OPACITY * colours, grey)
    mixed = np.where(borders(labels)[..., None] & inside, _BORDER * colours, mixed)
    return np.rint(mixed).astype(np.uint8)


def borders(labels: Labels) -> NDArray[np.bool_]:
    """Pixels of a slice (h, w) that have a neighbour of another label to the right, left, above or below."""
    edge = np.zeros(labels.shape, dtype=bool)
    beside, above = labels[:, :-1] != labels[:, 1:], labels[:-1] != labels[1:]
    edge[:, :-1] |= beside
    edge[:, 1:] |= beside
    edge[:-1] |= above
    edge[1:] |= above
    return edge


def _panels(
    piece: Slice, voxel_size_nm: VoxelSize, pixels_per_nm: float, contrast: tuple[float, float]
) -> list[Image.Image]:
    """The columns of one row, all of one size in pixels."""
    low, high = contrast
    grey = np.nan_to_num(piece.image.astype(np.float64), nan=low, posinf=high, neginf=low)
    grey = np.clip((grey - low) / (high - low), 0, 1) * 255
    size = [
        max(1, round(extent * voxel_size_nm[axis] * pixels_per_nm))
        for extent, axis in zip(piece.image.shape, _axes(piece.axis), strict=True)
    ]
    enlarged = Image.fromarray(np.rint(grey).astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    base = np.asarray(enlarged)
    picked = [np.arange(n) * extent // n for n, extent in zip(size, piece.image.shape, strict=True)]  # nearest
    overlays = [Image.fromarray(blend(base, labels[np.ix_(*picked)])) for labels in piece.labels]
    return [enlarged.convert("RGB"), *overlays]


def _contrast(images: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Grey values that become black and white: what half a percent of the finite pixels lie beyond."""
    values = np.concatenate([image.reshape(-1).astype(np.float64) for image in images])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    return (low, high) if high > low else (low, low + 1)


def _scale_bar(draw: ImageDraw.ImageDraw, panel: Image.Image, top: int, pixels_per_nm: float, font: Any) -> None:
    """A white bar of a round length, about a sixth of the panel, in the lower left corner of the first column."""
    target = max(panel.width / 6, 24) / pixels_per_nm
    power = 10.0 ** np.floor(np.log10(target))
    length = max(step * power for step in (1, 2, 5) if step * power <= target)
    text = f"{length:g} nm" if length < 1000 else f"{length / 1000:g} µm"
    left, bottom = _MARGIN + 12, top + panel.height - 12
    right = left + round(length * pixels_per_nm)
    draw.rectangle((left - 2, bottom - 7, right + 2, bottom + 2), fill=(0, 0, 0))
    draw.rectangle((left, bottom - 5, right, bottom), fill=(255, 255, 255))
    draw.text((left, bottom - 28), text, fill=(255, 255, 255), font=font, stroke_width=2, stroke_fill=(0, 0, 0))


def _axes(cut: int) -> tuple[int, int]:
    """Vertical and horizontal axis of the slice that cuts an axis."""
    vertical, horizontal = (axis for axis in range(3) if axis != cut)
    return vertical, horizontal


def _name(cut: int) -> str:
    return next(name for name, axis in _PLANES if axis == cut)


def _three(values: Sequence[int]) -> Triple:
    z, y, x = values
    return z, y, x
