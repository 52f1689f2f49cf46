"""Watershed of nearest-neighbour affinities whose result does not depend on the chunks it was computed in.

Supervoxels are the first thing that a chunked pipeline gets wrong: flood order, plateaus and seams depend on where the
chunks lie. Here all edges have one strict order, and a voxel's decision depends on its six edges only, so a chunk with
a halo of one voxel decides exactly as the whole volume would.

Algorithm
---------
Edge (p, c) connects voxel p with p - 1 on axis c; its affinity is stored at p in channel c. Edges are ordered by
affinity, larger first, then by the number 3 * index(p) + c, smaller first, where index is the C-order index in the
volume. Every voxel joins along its best edge if that affinity is at least `low`, and along every edge of at least
`high`: one round of Borůvka's minimum spanning forest (as in Zlateski and Seung, arXiv:1505.00249, steepest ascent, but
with a strict order, so that plateaus need no flooding). A voxel without an edge of at least `low` is background.

Among equal affinities the number prefers, around one voxel, its own edges z, y, x, then those stored at the next voxel
on x, y, z. That order is the same for every volume shape, so numbers are never computed.
"""

# ruff: noqa: PLR0917 (compiled functions take their arrays by position)

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput, InvalidVolume
from models.geometry import Box, Triple, triple
from models.segmentation.jit import Number, kernel

_NONE = 6  # direction of a voxel without an edge of at least `low`; 0..2 own edge z, y, x; 3..5 next voxel's x, y, z
_MAX_VOXELS = 2**63 - 2


@dataclass(frozen=True)
class Face:
    """The edges between the first plane of a chunk's core and the plane before it, which another chunk owns.

    `joined`: bool, whether the watershed joins the two voxels; `affinity`: uint8, the edge's affinity. Both have the
    core's shape without the face's axis.
    """

    joined: NDArray[np.bool_]
    affinity: NDArray[np.uint8]


@dataclass(frozen=True)
class ChunkFragments:
    """What one chunk contributes to the watershed.

    `fragments`: uint64, the core's shape; 0 is background, an id is 1 + the smallest global voxel index of the
    component within the core. `faces`: per axis z, y, x the lower face of the core, None where the core begins at the
    domain's start. Unions over `seam_pairs` of all faces complete the supervoxels; their ids are the smallest
    fragment ids.
    """

    fragments: NDArray[np.uint64]
    faces: tuple[Face | None, Face | None, Face | None]


def watershed(
    affinities: NDArray[np.uint8],
    *,
    low: int,
    high: int,
    origin: Triple = (0, 0, 0),
    volume_shape: Triple | None = None,
) -> NDArray[np.uint64]:
    """Supervoxels of a whole map in one call.

    `affinities`: (3, z, y, x) uint8, 255 = surely connected, channel c stored at p for the edge to p - 1 on axis c;
    values at coordinate 0 of the array are ignored. `origin` and `volume_shape` place the map in a larger volume, whose
    C-order voxel indices make the ids. Returns (z, y, x) uint64, 0 = background. See `watershed_chunk` for thresholds
    and errors.
    """
    _check_affinities(affinities)
    z, y, x = affinities.shape[1:]
    box = Box.from_shape((z, y, x), triple(origin, "origin", minimum=0))
    volume = box.stop if volume_shape is None else volume_shape
    return watershed_chunk(affinities, box, box, box, volume, low=low, high=high).fragments


def watershed_chunk(
    affinities: NDArray[np.uint8],
    read_box: Box,
    core: Box,
    domain: Box,
    volume_shape: Triple,
    *,
    low: int,
    high: int,
) -> ChunkFragments:
    """Fragments of the voxels of `core`, and how they join the fragments of the chunks before it.

    `affinities`: (3, z, y, x) uint8 over `read_box`, which must be `core` grown by one voxel on all sides and clipped
    to `domain`, the box of the whole job; edges that leave the domain do not exist. `volume_shape`: extent of the
    volume whose C-order voxel indices make the ids; it contains the domain. Thresholds: 1 <= low <= high <= 256; 256
    means that no edge joins by its affinity alone.

    Raises `InvalidVolume` for a wrong dtype or shape, `InvalidInput` for boxes or thresholds that do not fit.
    """
    _check_affinities(affinities)
    _check_boxes(read_box, core, domain, triple(volume_shape, "volume shape", minimum=1))
    if affinities.shape[1:] != read_box.shape:
        raise InvalidVolume(f"affinities: expected extent {read_box.shape} of {read_box}, got {affinities.shape[1:]}")
    if not (isinstance(low, int | np.integer) and isinstance(high, int | np.integer) and 1 <= low <= high <= 256):
        raise InvalidInput(f"thresholds: expected integers 1 <= low <= high <= 256, got low {low!r}, high {high!r}")
    affinities = np.ascontiguousarray(affinities)
    before = tuple(a - b for a, b in zip(core.start, read_box.start, strict=True))
    cut = tuple(a == b for a, b in zip(read_box.start, domain.start, strict=True))
    z, y, x = (b + n for b, n in zip(before, core.shape, strict=True))
    directions = np.empty((z, y, x), np.uint8)
    _best_directions(affinities, cut, np.int16(low), directions)
    fragments = np.empty(core.shape, np.int64)
    _join(affinities, directions, before, np.int16(high), fragments)
    _label(directions, before, core.start, volume_shape, fragments)
    faces = [_lower_face(affinities, directions, before, axis, high) for axis in range(3)]
    return ChunkFragments(fragments.view(np.uint64), (faces[0], faces[1], faces[2]))


def seam_pairs(
    face: Face, ids: NDArray[np.uint64], ids_before: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Pairs of fragment ids that a face joins, each pair once, sorted.

    `ids`: the first plane of the chunk that owns the face; `ids_before`: the last plane of the chunk before it, both
    uint64 of the face's shape. Raises `InvalidVolume` for other shapes or dtypes, and for a joined background voxel,
    which means that the planes do not belong to this face.
    """
    for name, plane in (("ids", ids), ("ids_before", ids_before)):
        if plane.shape != face.joined.shape or plane.dtype != np.uint64:
            raise InvalidVolume(
                f"{name}: expected uint64 of shape {face.joined.shape}, got {plane.dtype} of {plane.shape}"
            )
    pairs = np.unique(np.stack([ids[face.joined], ids_before[face.joined]], axis=1), axis=0)
    if pairs.size and not pairs.all():
        raise InvalidVolume("face: expected joined voxels to be foreground on both sides, got background")
    return pairs[:, 0].copy(), pairs[:, 1].copy()


def _check_affinities(affinities: NDArray[np.uint8]) -> None:
    if affinities.ndim != 4 or affinities.shape[0] != 3 or affinities.dtype != np.uint8:
        raise InvalidVolume(f"affinities: expected (3, z, y, x) of uint8, got {affinities.shape} of {affinities.dtype}")


def _check_boxes(read_box: Box, core: Box, domain: Box, volume_shape: Triple) -> None:
    if math.prod(volume_shape) > _MAX_VOXELS:
        raise InvalidInput(f"volume shape: expected fewer than 2**63 - 1 voxels, got {volume_shape}")
    if not Box.from_shape(volume_shape).contains(domain):
        raise InvalidInput(f"domain: expected a box within the volume {volume_shape}, got {domain}")
    if core.size == 0 or not domain.contains(core):
        raise InvalidInput(f"core: expected a box of at least one voxel within the domain {domain}, got {core}")
    expected = core.grown((1, 1, 1)).intersection(domain)
    if read_box != expected:
        raise InvalidInput(f"read box: expected {expected} (the core grown by one within the domain), got {read_box}")


def _lower_face(
    affinities: NDArray[np.uint8], directions: NDArray[np.uint8], before: tuple[int, ...], axis: int, high: int
) -> Face | None:
    if not before[axis]:
        return None
    z, y, x = (slice(start, stop) for start, stop in zip(before, directions.shape, strict=True))
    here: list[slice | int] = [z, y, x]
    there = here.copy()
    here[axis], there[axis] = 1, 0
    affinity = affinities[(axis, *here)]
    joined = (affinity >= high) | (directions[tuple(here)] == axis) | (directions[tuple(there)] == 5 - axis)
    return Face(joined, affinity.copy())


@kernel
def _best_directions(
    affinities: NDArray[np.uint8], cut: tuple[int, ...], low: Number, directions: NDArray[np.uint8]
) -> None:
    """Fill in every voxel's best edge; `cut` says where the read box begins at the domain's start."""
    depth, height, width = affinities.shape[1:]
    missing = np.zeros(width, np.uint8)
    along_x = np.zeros(width + 1, np.uint8)
    for z in range(directions.shape[0]):
        for y in range(directions.shape[1]):
            along_x[:width] = affinities[2, z, y]
            if cut[2]:
                along_x[0] = 0
            own_z = missing if z == 0 and cut[0] else affinities[0, z, y]
            own_y = missing if y == 0 and cut[1] else affinities[1, z, y]
            next_y = affinities[1, z, y + 1] if y + 1 < height else missing
            next_z = affinities[0, z + 1, y] if z + 1 < depth else missing
            _best_row(own_z, own_y, along_x, next_y, next_z, low, directions[z, y])


@kernel
def _best_row(
    own_z: NDArray[np.uint8],
    own_y: NDArray[np.uint8],
    along_x: NDArray[np.uint8],
    next_y: NDArray[np.uint8],
    next_z: NDArray[np.uint8],
    low: Number,
    row: NDArray[np.uint8],
) -> None:
    """Selects instead of branches: LLVM turns the loop into vector instructions."""
    for x in range(row.size):
        best = own_z[x]
        code = np.uint8(0)
        value = own_y[x]
        code = np.uint8(1) if value > best else code
        best = max(best, value)
        value = along_x[x]
        code = np.uint8(2) if value > best else code
        best = max(best, value)
        value = along_x[x + 1]
        code = np.uint8(3) if value > best else code
        best = max(best, value)
        value = next_y[x]
        code = np.uint8(4) if value > best else code
        best = max(best, value)
        value = next_z[x]
        code = np.uint8(5) if value > best else code
        best = max(best, value)
        row[x] = code if np.int16(best) >= low else np.uint8(_NONE)


@kernel
def _join(
    affinities: NDArray[np.uint8],
    directions: NDArray[np.uint8],
    before: tuple[int, ...],
    high: Number,
    parents: NDArray[np.int64],
) -> None:
    """Union-find over the core's joined edges; a root is the smallest C-order index of its set."""
    depth, height, width = parents.shape
    flat = parents.reshape(-1)
    plane = height * width
    joins = np.zeros(width, np.uint8)
    for z in range(depth):
        for y in range(height):
            zz, yy = z + before[0], y + before[1]
            joins[:] = 0
            if z > 0:
                _mark_joins(
                    affinities[0, zz, yy], directions[zz, yy], directions[zz - 1, yy], before[2], 0, high, joins
                )
            if y > 0:
                _mark_joins(
                    affinities[1, zz, yy], directions[zz, yy], directions[zz, yy - 1], before[2], 1, high, joins
                )
            first = before[2] + 1
            _mark_joins(
                affinities[2, zz, yy, 1:], directions[zz, yy, 1:], directions[zz, yy], first - 1, 2, high, joins[1:]
            )
            start = (z * height + y) * width
            _union_row(flat, joins, start, width, plane)


@kernel
def _mark_joins(
    affinity: NDArray[np.uint8],
    here: NDArray[np.uint8],
    there: NDArray[np.uint8],
    offset: Number,
    axis: Number,
    high: Number,
    joins: NDArray[np.uint8],
) -> None:
    """Set bit `axis` where the edge to the voxel before it on that axis is joined."""
    bit, own, other = np.uint8(1 << axis), np.uint8(axis), np.uint8(5 - axis)
    for x in range(joins.size):
        strong = np.int16(affinity[x + offset]) >= high
        joined = strong | (here[x + offset] == own) | (there[x + offset] == other)
        joins[x] |= bit if joined else np.uint8(0)


@kernel
def _union_row(parents: NDArray[np.int64], joins: NDArray[np.uint8], start: Number, row: Number, plane: Number) -> None:
    root = start
    for x in range(joins.size):
        voxel = start + x
        mask = joins[x]
        if not mask & 4:
            root = voxel
        parents[voxel] = root
        if mask & 2:
            root = _union(parents, root, voxel - row)
        if mask & 1:
            root = _union(parents, root, voxel - plane)
        parents[voxel] = root


@kernel
def _union(parents: NDArray[np.int64], root: Number, voxel: Number) -> Number:
    """Join the set of `root` (a root, or its stale child) with that of `voxel`; returns the common root."""
    if parents[voxel] == root:
        return root
    other = _find(parents, voxel)
    root = _find(parents, root)
    if other < root:
        parents[root] = other
        return other
    parents[other] = root
    return root


@kernel
def _find(parents: NDArray[np.int64], voxel: Number) -> Number:
    while parents[voxel] != voxel:
        parents[voxel] = parents[parents[voxel]]
        voxel = parents[voxel]
    return voxel


@kernel
def _label(
    directions: NDArray[np.uint8],
    before: tuple[int, ...],
    start: tuple[int, ...],
    volume_shape: tuple[int, ...],
    parents: NDArray[np.int64],
) -> None:
    """Replace parents by ids in place: in C order, a voxel's parent has its final id already."""
    depth, height, width = parents.shape
    flat = parents.reshape(-1)
    voxel = 0
    for z in range(depth):
        for y in range(height):
            first = 1 + ((z + start[0]) * volume_shape[1] + y + start[1]) * volume_shape[2] + start[2]
            row = directions[z + before[0], y + before[1]]
            for x in range(width):
                parent = flat[voxel]
                if parent != voxel:
                    flat[voxel] = flat[parent]
                elif row[x + before[2]] == _NONE:
                    flat[voxel] = 0
                else:
                    flat[voxel] = first + x
                voxel += 1
