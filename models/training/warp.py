"""Patches of a volume under rotation, scaling, elastic deformation, steps and slips: one look-up per voxel.

The patch is read straight from the whole volume, so a rotated patch needs no rim around it, and every deformation
together costs one interpolation. Image values are interpolated linearly and mirrored beyond the volume's faces; labels
are those of the nearest voxel, and 0 (unlabelled) beyond the faces, so that nothing is learnt there.

References: O. Ronneberger et al., arXiv:1505.04597 (elastic deformation on a coarse grid of random displacements);
K. Lee et al., arXiv:1706.00120 (misaligned sections).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.geometry import Triple

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Deformation:
    """Where the voxels of a patch lie in the volume.

    A voxel at offset o from the patch's centre is read at `matrix` @ (o + shift of its section) + displacement, from
    the place that the centre has in the volume.

    Parameters
    ----------
    matrix
        (3, 3): rotation and scaling, z, y, x.
    grid, spacing
        Displacements (3, a, b, c) in voxels at control points `spacing` voxels apart, the first at the patch's first
        voxel; interpolated linearly between them.
    label_shift, image_shift
        (patch depth, 2): shift in y and x of each section. A step moves both, a slip the image alone.
    """

    matrix: Floats = field(default_factory=lambda: np.eye(3))
    grid: Floats = field(default_factory=lambda: np.zeros((3, 2, 2, 2)))
    spacing: float = 1e9
    label_shift: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    image_shift: Floats = field(default_factory=lambda: np.zeros((0, 2)))


def rotation_and_scaling(rng: np.random.Generator, *, degrees: float, scale: float, axial: bool) -> Floats:
    """Return a random (3, 3) matrix: a rotation by at most `degrees`, then scales within 1 / (1 + scale) to 1 + scale.

    With `axial` the rotation is about z and z keeps its scale, as serial sections need; otherwise the axis is random
    and each axis has a scale of its own.
    """
    axis = np.array([1.0, 0.0, 0.0]) if axial else rng.standard_normal(3)
    z, y, x = axis / np.linalg.norm(axis)
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    cross = np.array([[0, -x, y], [x, 0, -z], [-y, z, 0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    scales = (1 + scale) ** rng.uniform(-1, 1, 3)
    if axial:
        scales[0] = 1.0
    matrix: Floats = rotation * scales
    return matrix


def elastic_grid(rng: np.random.Generator, patch: Triple, *, voxels: float, spacing: float, axial: bool) -> Floats:
    """Return normal displacements (3, a, b, c) of deviation `voxels` that cover `patch`; none along z if `axial`."""
    counts = [int((extent - 1) // spacing) + 2 for extent in patch]
    grid: Floats = rng.normal(0.0, voxels, (3, *counts)) if voxels else np.zeros((3, *counts))
    if axial:
        grid[0] = 0.0
    return grid


def read_patch(
    image: NDArray[np.uint8], labels: NDArray[np.integer[Any]], start: Triple, patch: Triple, deformation: Deformation
) -> tuple[NDArray[np.float32], NDArray[np.integer[Any]]]:
    """Return image (float32 in [0, 1]) and labels (their dtype) of the patch that would begin at `start` undeformed."""
    centre = np.array([a + (n - 1) / 2 for a, n in zip(start, patch, strict=True)])
    still = np.zeros((patch[0], 2))
    out_image, out_labels = np.empty(patch, np.float32), np.empty(patch, labels.dtype)
    shifts = deformation.label_shift, deformation.image_shift
    _read(
        (image, labels),
        (centre, deformation.matrix, deformation.grid),
        1.0 / deformation.spacing,
        (shifts[0] if len(shifts[0]) else still, shifts[1] if len(shifts[1]) else still),
        (out_image, out_labels),
    )
    return out_image, out_labels


@njit(cache=True, nogil=True)
def _mirrored(index: int, extent: int) -> int:
    last = extent - 1
    if last == 0:
        return 0
    index = abs(index) % (2 * last)
    return 2 * last - index if index > last else index


@njit(cache=True, nogil=True)
def _value(image: Any, z: float, y: float, x: float) -> float:
    """Linear interpolation of the image, mirrored beyond its faces."""
    z0, y0, x0 = int(np.floor(z)), int(np.floor(y)), int(np.floor(x))
    fz, fy, fx = z - z0, y - y0, x - x0
    total = 0.0
    for i in range(2):
        wz = fz if i else 1.0 - fz
        if wz == 0.0:
            continue
        a = _mirrored(z0 + i, image.shape[0])
        for j in range(2):
            wy = fy if j else 1.0 - fy
            if wy == 0.0:
                continue
            b = _mirrored(y0 + j, image.shape[1])
            row = (1.0 - fx) * image[a, b, _mirrored(x0, image.shape[2])]
            if fx > 0.0:
                row += fx * image[a, b, _mirrored(x0 + 1, image.shape[2])]
            total += wz * wy * row
    return total


@njit(cache=True, nogil=True)
def _displacement(grid: Any, z: float, y: float, x: float, out: Any) -> None:
    """Linear interpolation of the three displacements at a place in units of the grid."""
    z0, y0, x0 = int(z), int(y), int(x)
    fz, fy, fx = z - z0, y - y0, x - x0
    for axis in range(3):
        total = 0.0
        for i in range(2):
            wz = fz if i else 1.0 - fz
            for j in range(2):
                wy = fy if j else 1.0 - fy
                near, far = grid[axis, z0 + i, y0 + j, x0], grid[axis, z0 + i, y0 + j, x0 + 1]
                total += wz * wy * ((1.0 - fx) * near + fx * far)
        out[axis] = total


@njit(cache=True, nogil=True)
def _read(volume: Any, geometry: Any, per_voxel: float, shifts: Any, out: Any) -> None:
    image, labels = volume
    centre, matrix, grid = geometry
    label_shift, image_shift = shifts
    out_image, out_labels = out
    depth, height, width = out_image.shape
    moved, place = np.zeros(3), np.empty(3)
    for z in range(depth):
        oz = z - 0.5 * (depth - 1)
        slip_y = image_shift[z, 0] - label_shift[z, 0]
        slip_x = image_shift[z, 1] - label_shift[z, 1]
        for y in range(height):
            oy = y - 0.5 * (height - 1) + label_shift[z, 0]
            for x in range(width):
                ox = x - 0.5 * (width - 1) + label_shift[z, 1]
                _displacement(grid, z * per_voxel, y * per_voxel, x * per_voxel, moved)
                inside = True
                for axis in range(3):
                    place[axis] = (
                        centre[axis] + moved[axis] + matrix[axis, 0] * oz + matrix[axis, 1] * oy + matrix[axis, 2] * ox
                    )
                    inside = inside and -0.5 <= place[axis] < labels.shape[axis] - 0.5
                if inside:
                    a, b, c = int(place[0] + 0.5), int(place[1] + 0.5), int(place[2] + 0.5)
                    out_labels[z, y, x] = labels[a, b, c]
                else:
                    out_labels[z, y, x] = 0
                out_image[z, y, x] = (1.0 / 255.0) * _value(
                    image,
                    place[0] + matrix[0, 1] * slip_y + matrix[0, 2] * slip_x,
                    place[1] + matrix[1, 1] * slip_y + matrix[1, 2] * slip_x,
                    place[2] + matrix[2, 1] * slip_y + matrix[2, 2] * slip_x,
                )
