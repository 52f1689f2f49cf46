"""Sets of chunk names that hold 10^8 of them: what is done, what failed.

A name is three indices, `z_y_x`, so it packs into 64 bits: 8 bytes instead of some 130 for a string in a set.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput
from models.geometry import ChunkGrid, Triple

_BITS_X, _BITS_Y, _BITS_Z = 16, 16, 31
_LIMITS = (1 << _BITS_Z, 1 << _BITS_Y, 1 << _BITS_X)
"""Z has most, for units that are numbered along one axis; 2^16 chunks along y and x are more than any volume has."""


class ChunkNames(Set[str]):
    """An immutable set of chunk names, in the order of z, y, x; those of another form are kept as they are."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        found = NameCollector()
        for name in names:
            found.add(name)
        self._codes, self._others = found.codes(), found.others

    @classmethod
    def at(cls, grid: ChunkGrid, ranks: NDArray[np.int64]) -> ChunkNames:
        """The names of the chunks at these places of a grid's order, ascending; the inverse of `ranks`.

        Raises `InvalidInput` for a grid whose indices do not fit.
        """
        _, ny, nx = _fitting(grid)
        z, y, x = (axis.astype(np.uint64) for axis in (ranks // (ny * nx), ranks // nx % ny, ranks % nx))
        return cls._of(z << np.uint64(_BITS_X + _BITS_Y) | y << np.uint64(_BITS_X) | x, set())

    @classmethod
    def _of(cls, codes: NDArray[np.uint64], others: set[str]) -> ChunkNames:
        made = cls()
        made._codes, made._others = codes, others
        return made

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        code = _code(name)
        if code is None:
            return name in self._others
        place = int(np.searchsorted(self._codes, np.uint64(code)))
        return place < len(self._codes) and int(self._codes[place]) == code

    def __iter__(self) -> Iterator[str]:
        for z, y, x in zip(*_indices(self._codes), strict=True):
            yield f"{z}_{y}_{x}"
        yield from sorted(self._others)

    def __len__(self) -> int:
        return len(self._codes) + len(self._others)

    def __repr__(self) -> str:
        return f"ChunkNames({list(self)[:10]}{', …' if len(self) > 10 else ''})"

    def __and__(self, other: Set[Any]) -> ChunkNames:
        names = other if isinstance(other, ChunkNames) else ChunkNames(other)
        codes = np.intersect1d(self._codes, names._codes, assume_unique=True)
        return self._of(codes, self._others & names._others)

    def __sub__(self, other: Set[Any]) -> ChunkNames:
        names = other if isinstance(other, ChunkNames) else ChunkNames(other)
        codes = np.setdiff1d(self._codes, names._codes, assume_unique=True)
        return self._of(codes, self._others - names._others)

    def ranks(self, grid: ChunkGrid) -> NDArray[np.int64]:
        """The places, in a grid's order, of those chunks that it has; int64, ascending. Errors as in `at`."""
        z, y, x = (axis.astype(np.int64) for axis in _indices(self._codes))
        nz, ny, nx = _fitting(grid)
        within = (z < nz) & (y < ny) & (x < nx)
        places: NDArray[np.int64] = ((z * ny + y) * nx + x)[within]
        return places


class NameCollector:
    """Takes names one by one, in any order, 8 bytes each."""

    def __init__(self) -> None:
        self._codes, self.others = array("Q"), set[str]()

    def add(self, name: str) -> None:
        """Add one name."""
        code = _code(name)
        if code is None:
            self.others.add(name)
        else:
            self._codes.append(code)

    def codes(self) -> NDArray[np.uint64]:
        """The packed names, ascending, each once."""
        return np.unique(np.frombuffer(self._codes, np.uint64))

    def names(self) -> ChunkNames:
        """The names as a set."""
        return ChunkNames._of(self.codes(), self.others)


def _fitting(grid: ChunkGrid) -> Triple:
    if any(n > limit for n, limit in zip(grid.shape, _LIMITS, strict=True)):
        raise InvalidInput(f"chunks: expected at most {_LIMITS} along z, y, x, got {grid.shape}")
    return grid.shape


def _code(name: str) -> int | None:
    """A name's 64 bits, None for one that is not three indices as `Chunk.name` writes them."""
    try:
        z, y, x = (int(index) for index in name.split("_"))
    except ValueError:
        return None
    if not all(0 <= index < limit for index, limit in zip((z, y, x), _LIMITS, strict=True)):
        return None
    return z << (_BITS_X + _BITS_Y) | y << _BITS_X | x if name == f"{z}_{y}_{x}" else None


def _indices(codes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    above_x, above_y = np.uint64(_BITS_X), np.uint64(_BITS_X + _BITS_Y)
    mask_y, mask_x = np.uint64((1 << _BITS_Y) - 1), np.uint64((1 << _BITS_X) - 1)
    return codes >> above_y, codes >> above_x & mask_y, codes & mask_x
