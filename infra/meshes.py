"""Surface meshes in Neuroglancer's multi-resolution format (`neuroglancer_multilod_draco`), sharded by segment id.

Space is cut into cells; a segment has one fragment per cell and level of detail, compressed by Draco with vertices as
whole numbers relative to the cell, and a manifest that lists them in Z order. Fragments of neighbouring cells meet
exactly, because a vertex on the face between them has the largest number in one and 0 in the other. In memory a vertex
is z, y, x like everything here; the format speaks x, y, z, and this file alone knows.

https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/meshes.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from infra.objects import Folder
from infra.shards import Entry, ShardedObjects, Sharding
from infra.written import Written
from models.errors import InvalidInput, InvalidVolume
from models.geometry import Triple, VoxelSize

_TYPE = "neuroglancer_multilod_draco"
_BITS = 16
_TOP = (1 << _BITS) - 1
_HEAD = struct.Struct("<4I")


@dataclass(frozen=True)
class CellGrid:
    """Where cells lie, in nm (z, y, x).

    The cell (0, 0, 0) of the finest level begins at `origin_nm` and extends `cell_nm`; level n has cells twice as large
    as level n - 1, moved by `shifts_nm[n]`, and details of `detail_nm[n]`.
    """

    origin_nm: VoxelSize
    cell_nm: VoxelSize
    shifts_nm: tuple[VoxelSize, ...]
    detail_nm: tuple[float, ...]


@dataclass(frozen=True)
class Fragment:
    """The part of a segment's surface in one cell: level of detail, cell (z, y, x), and Draco's bytes."""

    level: int
    cell: Triple
    draco: bytes

    def packed(self) -> bytes:
        """As bytes; `unpacked` reads them."""
        return _HEAD.pack(self.level, *self.cell) + self.draco

    @classmethod
    def unpacked(cls, content: bytes) -> Fragment:
        """Read what `packed` wrote."""
        level, z, y, x = _HEAD.unpack_from(content)
        return cls(level, (z, y, x), content[_HEAD.size :])


def encode_surface(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> bytes:
    """Draco's bytes of a surface in one cell.

    `vertices` is (n, 3) z, y, x from 0 to 1, the cell's faces; they are rounded to 1/65535. `faces` is (m, 3), indices
    of vertices, counter-clockwise from outside in a right-handed x, y, z. Raises `InvalidInput` for vertices beyond the
    cell.
    """
    import DracoPy

    if len(vertices) and not (float(vertices.min()) >= 0 and float(vertices.max()) <= 1):
        raise InvalidInput(
            f"surface: expected vertices within the cell, 0 to 1, got {vertices.min()} to {vertices.max()}"
        )
    numbers = np.rint(vertices[:, ::-1].astype(np.float64) * _TOP)
    encoded: bytes = DracoPy.encode(
        numbers.astype(np.float32),
        faces.astype(np.uint32),
        quantization_bits=_BITS,
        compression_level=7,
        quantization_range=_TOP,
        quantization_origin=np.zeros(3),
    )
    return encoded


class PrecomputedMeshes:
    """A folder of meshes on a local path or bucket URL; several processes may write different shards."""

    def __init__(self, url: str) -> None:
        self._folder = Folder(url)
        self.url = self._folder.url

    def create(self, shard_bits: int = 0) -> PrecomputedMeshes:
        """Write the `info` object for 2^`shard_bits` shards and return this store."""
        self._folder.write_json(
            "info",
            {
                "@type": _TYPE,
                "vertex_quantization_bits": _BITS,
                "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],  # nm
                "lod_scale_multiplier": 1,
                "sharding": Sharding(shard_bits, compress=False).description(),
            },
        )
        return self

    def write(self, shard: int, grid: CellGrid, meshes: Iterable[tuple[int, Sequence[Fragment]]]) -> list[Written]:
        """Write all meshes of one shard, by segment id, replacing what is there."""
        return self._shards.write(shard, (_entry(segment, grid, fragments) for segment, fragments in meshes))

    @cached_property
    def _shards(self) -> ShardedObjects:
        where = f"{self.url}/info"
        info = self._folder.read_json("info")
        if info.get("@type") != _TYPE or info.get("vertex_quantization_bits") != _BITS:
            raise InvalidVolume(f"{where}: expected {_TYPE} with {_BITS} bits, got {info}")
        return ShardedObjects(self._folder, Sharding.of(info.get("sharding"), where))


def _entry(segment: int, grid: CellGrid, fragments: Sequence[Fragment]) -> Entry:
    """The manifest of a segment, its fragments' bytes before it.

    A cell whose finer cells hold something is listed even where it is empty itself, as the format's octree needs it.
    """
    levels: list[dict[Triple, bytes]] = [{} for _ in grid.detail_nm]
    for fragment in fragments:
        levels[fragment.level][fragment.cell] = fragment.draco
    used = max((fragment.level for fragment in fragments), default=0) + 1
    for finer, coarser in pairwise(levels[:used]):
        for z, y, x in finer:
            coarser.setdefault((z // 2, y // 2, x // 2), b"")
    head = [
        np.array(grid.cell_nm[::-1], "<f4"),
        np.array(grid.origin_nm[::-1], "<f4"),
        np.array([used], "<u4"),
        np.array(grid.detail_nm[:used], "<f4"),
        np.array(grid.shifts_nm[:used], "<f4")[:, ::-1],
        np.array([len(level) for level in levels[:used]], "<u4"),
    ]
    content: list[bytes] = []
    for level in levels[:used]:
        cells = sorted(level, key=_z_order)
        head.append(np.array(cells, "<u4").reshape(-1, 3)[:, ::-1].T)
        head.append(np.array([len(level[cell]) for cell in cells], "<u4"))
        content += [level[cell] for cell in cells]
    return Entry(segment, b"".join(part.tobytes() for part in head), b"".join(content))


def _z_order(cell: Triple) -> int:
    """The place of a cell on the Z curve; bits of x are the lowest."""
    place = 0
    for bit in range(max(cell).bit_length()):
        for axis, number in enumerate(reversed(cell)):
            place |= (number >> bit & 1) << (3 * bit + axis)
    return place
