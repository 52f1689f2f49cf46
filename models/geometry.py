"""Boxes, chunks and chunk grids: integer geometry in z, y, x with half-open boxes.

Everything that says *where* goes through this module, so axis order and open ends are decided once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from models.errors import InvalidInput

Triple = tuple[int, int, int]
VoxelSize = tuple[float, float, float]
"""Extent of a voxel in nanometres, in the order z, y, x."""

AXES = ("z", "y", "x")

NEAREST: tuple[Triple, ...] = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
"""Offsets of the nearest-neighbour affinity channels, in channel order."""


def triple(values: object, what: str, *, minimum: int | None = None) -> Triple:
    """Return three integers from a sequence, or say what was expected.

    Raises `InvalidInput` where `values` is not a sequence of three integers, or one is below `minimum`.
    """
    try:
        items: tuple[Any, ...] = tuple(values)  # type: ignore[arg-type]
        z, y, x = (int(item) for item in items)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{what}: expected three integers z, y, x, got {values!r}") from error
    if any(int(item) != item for item in items):
        raise InvalidInput(f"{what}: expected three integers z, y, x, got {values!r}")
    if minimum is not None and min(z, y, x) < minimum:
        raise InvalidInput(f"{what}: expected z, y, x of at least {minimum}, got {(z, y, x)}")
    return z, y, x


@dataclass(frozen=True, order=True)
class Box:
    """A half-open box of voxels [start, stop) in z, y, x; it may be empty, never inverted.

    Raises `InvalidInput` where stop lies before start on an axis.
    """

    start: Triple
    stop: Triple

    def __post_init__(self) -> None:
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise InvalidInput(f"box: stop must not lie before start, got {self.start} to {self.stop}")

    @classmethod
    def from_shape(cls, shape: Triple, start: Triple = (0, 0, 0)) -> Box:
        """The box of `shape` voxels that begins at `start`."""
        return cls(start, (start[0] + shape[0], start[1] + shape[1], start[2] + shape[2]))

    @classmethod
    def parse(cls, text: str) -> Box:
        """Read `z0:z1,y0:y1,x0:x1` (what `str(box)` writes); raises `InvalidInput`."""
        try:
            pairs = [tuple(int(number) for number in axis.split(":")) for axis in text.strip().split(",")]
            (z0, z1), (y0, y1), (x0, x1) = pairs
        except ValueError as error:
            raise InvalidInput(f"box: expected z0:z1,y0:y1,x0:x1, got {text!r}") from error
        return cls((z0, y0, x0), (z1, y1, x1))

    def __str__(self) -> str:
        return ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))

    @property
    def shape(self) -> Triple:
        """Extent in voxels."""
        (a, b, c), (d, e, f) = self.start, self.stop
        return d - a, e - b, f - c

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    def contains(self, other: Box) -> bool:
        """Whether every voxel of `other` lies in this box."""
        return self.intersection(other) == other or other.size == 0

    def intersection(self, other: Box) -> Box:
        """The common box; empty, at a corner of one of the two, where they do not meet."""
        start = _max(self.start, other.start)
        return Box(start, _max(start, _min(self.stop, other.stop)))

    def grown(self, before: Triple, after: Triple | None = None) -> Box:
        """The box with `before` more voxels at its start and `after` (default: as many) at its end."""
        after = before if after is None else after
        return Box(_sub(self.start, before), _add(self.stop, after))

    def shifted(self, by: Triple) -> Box:
        """The box moved by `by`."""
        return Box(_add(self.start, by), _add(self.stop, by))

    def slices(self, origin: Triple = (0, 0, 0)) -> tuple[slice, slice, slice]:
        """Slices of this box in an array whose first voxel lies at `origin`."""
        (a, b, c), (d, e, f) = _sub(self.start, origin), _sub(self.stop, origin)
        return slice(a, d), slice(b, e), slice(c, f)


@dataclass(frozen=True, order=True)
class Chunk:
    """One unit of work: its place in the grid and the box that it owns."""

    index: Triple
    box: Box

    @property
    def name(self) -> str:
        """`z_y_x` of the grid index; the chunk's key in file names and ledgers."""
        return "_".join(str(i) for i in self.index)


@dataclass(frozen=True)
class ChunkGrid:
    """Tiles `box` with chunks of `chunk_shape`; chunks at the far faces are cut off at the box.

    ::

        box.start                       box.stop
        |  chunk 0  |  chunk 1  | chunk 2 |

    It is what it says, two triples more than a box, however many chunks it has: they are made as they are asked for.

    Raises `InvalidInput` for an empty box or a chunk extent below one.
    """

    box: Box
    chunk_shape: Triple

    def __post_init__(self) -> None:
        triple(self.chunk_shape, "chunk", minimum=1)
        if self.box.size == 0:
            raise InvalidInput(f"box: expected at least one voxel, got {self.box}")

    @property
    def shape(self) -> Triple:
        """Number of chunks along z, y, x."""
        z, y, x = (-(-n // c) for n, c in zip(self.box.shape, self.chunk_shape, strict=True))
        return z, y, x

    def __len__(self) -> int:
        return math.prod(self.shape)

    def chunk(self, index: Triple) -> Chunk:
        """The chunk at `index`; raises `InvalidInput` outside the grid."""
        if any(not 0 <= i < n for i, n in zip(index, self.shape, strict=True)):
            raise InvalidInput(f"chunk index: expected one within {self.shape}, got {index}")
        z, y, x = (a + i * c for a, i, c in zip(self.box.start, index, self.chunk_shape, strict=True))
        return Chunk(index, Box.from_shape(self.chunk_shape, (z, y, x)).intersection(self.box))

    def rank(self, chunk: Chunk) -> int:
        """The place of a chunk in the order of iteration, from 0."""
        (_, ny, nx), (z, y, x) = self.shape, chunk.index
        return (z * ny + y) * nx + x

    def __getitem__(self, rank: int) -> Chunk:
        """The chunk at a place in the order of iteration; raises `IndexError` beyond the last."""
        if not 0 <= rank < len(self):
            raise IndexError(f"chunk: expected a place from 0 to {len(self) - 1}, got {rank}")
        _, ny, nx = self.shape
        return self.chunk((rank // (ny * nx), rank // nx % ny, rank % nx))

    def __iter__(self) -> Iterator[Chunk]:
        (a, b, c), (d, e, f), (dz, dy, dx) = self.box.start, self.box.stop, self.chunk_shape
        for z, z0 in enumerate(range(a, d, dz)):
            for y, y0 in enumerate(range(b, e, dy)):
                for x, x0 in enumerate(range(c, f, dx)):
                    stop = (min(z0 + dz, d), min(y0 + dy, e), min(x0 + dx, f))
                    yield Chunk((z, y, x), Box((z0, y0, x0), stop))


def _add(a: Triple, b: Triple) -> Triple:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _sub(a: Triple, b: Triple) -> Triple:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def _min(a: Triple, b: Triple) -> Triple:
    return min(a[0], b[0]), min(a[1], b[1]), min(a[2], b[2])


def _max(a: Triple, b: Triple) -> Triple:
    return max(a[0], b[0]), max(a[1], b[1]), max(a[2], b[2])
