"""Surfaces of the segments of one box of voxels, by marching cubes (zmesh, which is LGPL-3, imported here alone).

Marching cubes works between the centres of neighbouring voxels, so what tiles space here is not voxels but the cells
between their centres: cell c of an axis lies between voxel c - 1 and voxel c. A chunk of cells needs the voxels at both
its ends, chunks share a plane of voxel centres, and a surface that leaves one chunk enters the next at the same points.
Simplification leaves the rim of an open surface alone, so this stays true. Around the volume lies background, and
surfaces close there.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidVolume, RuntimeUnavailable
from models.geometry import Box, Triple, VoxelSize

Surface = tuple[NDArray[np.float64], NDArray[np.uint32]]
_REDUCTION = 100  # triangles are removed as far as the error allows, at most to this fraction


def voxels_of(cells: Box) -> Box:
    """The voxels between whose centres the cells of a box lie."""
    return cells.grown((1, 1, 1), (0, 0, 0))


def surfaces(
    labels: NDArray[np.integer], voxel_size_nm: VoxelSize, *, max_error_nm: float, cut: Triple | None = None
) -> dict[int, Surface]:
    """The surfaces in a box of voxels, by segment id; 0 is background.

    `labels` is (z, y, x) of any integer dtype, at least two voxels along each axis. A surface is (vertices, faces):
    vertices (n, 3) in nm from the centre of the first voxel, z, y, x; faces (m, 3), counter-clockwise from outside in a
    right-handed x, y, z. Vertices move by up to `max_error_nm` to save triangles; 0 keeps all. No triangle crosses the
    planes of the voxels `cut`.

    Raises `InvalidVolume` for another shape or dtype, `RuntimeUnavailable` without zmesh.
    """
    if labels.dtype.kind not in "iu" or labels.ndim != 3 or min(labels.shape) < 2:
        raise InvalidVolume(
            f"labels: expected integers (z, y, x) of at least 2 voxels each, got {labels.dtype} of shape {labels.shape}"
        )
    pieces: dict[int, list[Surface]] = {}
    for part in _parts(labels.shape, cut):
        begin = np.array([axis.start for axis in part]) * voxel_size_nm
        for segment, (vertices, faces) in _marched(labels[part], voxel_size_nm, max_error_nm):
            pieces.setdefault(segment, []).append((vertices + begin, faces))
    return {segment: _together(found) for segment, found in sorted(pieces.items())}


def _parts(shape: tuple[int, ...], cut: Triple | None) -> Iterator[tuple[slice, ...]]:
    """The whole, or its octants, which share the planes where they are cut."""
    at = cut or (0, 0, 0)
    halves = [
        (slice(0, c + 1), slice(c, n)) if 0 < c < n - 1 else (slice(0, n),) for n, c in zip(shape, at, strict=True)
    ]
    return product(*halves)


def _marched(
    labels: NDArray[np.integer], voxel_size_nm: VoxelSize, max_error_nm: float
) -> Iterator[tuple[int, Surface]]:
    import fastremap

    numbered, table = fastremap.renumber(np.array(labels, order="C"), in_place=False)
    mesher = _zmesh().Mesher(voxel_size_nm)
    mesher.mesh(numbered)
    names = {number: segment for segment, number in table.items()}
    for number in sorted(mesher.ids()):
        factor = _REDUCTION if max_error_nm > 0 else 0
        mesh = mesher.get(number, normals=False, reduction_factor=factor, max_error=max_error_nm)
        mesher.erase(number)
        if len(mesh.faces):
            # Axes came as z, y, x, a mirror image of x, y, z: turned around, the faces look outwards again.
            faces = np.ascontiguousarray(mesh.faces[:, ::-1], dtype=np.uint32)
            yield int(names[number]), (mesh.vertices.astype(np.float64), faces)


def _together(pieces: list[Surface]) -> Surface:
    firsts = np.cumsum([0, *(len(vertices) for vertices, _ in pieces)])
    vertices = np.concatenate([vertices for vertices, _ in pieces])
    faces = np.concatenate([faces + np.uint32(first) for (_, faces), first in zip(pieces, firsts, strict=False)])
    return vertices, faces.astype(np.uint32)


def _zmesh() -> Any:
    try:
        import zmesh
    except ImportError as error:
        raise RuntimeUnavailable(f"meshes: expected the package zmesh to be installed ({error})") from error
    return zmesh
