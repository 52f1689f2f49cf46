"""A stage for scores whose parts are measured chunk by chunk: boundaries, affinities, segments along skeletons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from infra.chunk_map import ChunkFunction, Report
from infra.ledger import Ledger
from infra.objects import Arrays, Folder
from models.geometry import Box, Chunk, ChunkGrid, Triple


class Measure(Protocol):
    """What is measured in disjoint boxes and scored together, with the same result for every division; picklable."""

    @property
    def box(self) -> Box:
        """What is scored."""

    def described(self) -> dict[str, Any]:
        """What decides the numbers, JSON-able."""

    def measured(self, box: Box) -> Arrays:
        """The numbers of a part of `box`."""

    def scores(self, parts: Iterable[Arrays]) -> Any:
        """The scores of all parts together, which have `as_json`."""


@dataclass(frozen=True)
class MeasureJob:
    """What is measured in which chunks, and where the parts go: `parts/CHUNK.npz` below `out`; picklable."""

    measure: Measure
    chunk_shape: Triple
    out: str
    key: str

    @property
    def grid(self) -> ChunkGrid:
        """Chunks of one task each."""
        return ChunkGrid(self.measure.box, self.chunk_shape)

    @property
    def folder(self) -> Folder:
        """The output prefix."""
        return Folder(self.out)

    @property
    def ledger(self) -> Ledger:
        """Markers of the stage."""
        return Ledger(self.folder, "measure", self.key)

    def parts(self) -> Iterator[Arrays]:
        """What was measured, chunk by chunk."""
        for chunk in self.grid:
            yield self.folder.read_arrays(f"parts/{chunk.name}.npz")


def measured(job: MeasureJob) -> ChunkFunction:
    """The stage's function."""

    def apply(chunk: Chunk) -> Report:
        arrays = job.measure.measured(chunk.box)
        job.ledger.mark(chunk, [job.folder.write_arrays(f"parts/{chunk.name}.npz", arrays)])
        return {}

    return apply
