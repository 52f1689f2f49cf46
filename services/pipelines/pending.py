"""Which chunks of a stage are to be done: a byte for each, so that a driver can hold 10^8 of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from infra.chunk_names import ChunkNames
from models.geometry import Chunk, ChunkGrid


@dataclass(frozen=True)
class Pending:
    """The chunks of a grid that are to be done, in its order; a byte per chunk of the grid."""

    grid: ChunkGrid
    wanted: NDArray[np.bool_]

    @classmethod
    def of(cls, grid: ChunkGrid, done: ChunkNames) -> Pending:
        """All chunks but those that are done."""
        wanted = np.ones(len(grid), bool)
        wanted[done.ranks(grid)] = False
        return cls(grid, wanted)

    def names(self) -> ChunkNames:
        """The names of these chunks."""
        return ChunkNames.at(self.grid, np.flatnonzero(self.wanted))

    def __len__(self) -> int:
        return int(np.count_nonzero(self.wanted))

    def __iter__(self) -> Iterator[Chunk]:
        return compress(self.grid, self.wanted)
