"""Contingency tables of chunks, and their sums: stages of scoring a volume of any size.

::

    chunk → table ┐
    chunk → table ┼→ sum ┐
    …             ┘      ├→ … → one table
    sums of 32 tables    ┘

A table holds an entry per pair of ids that meet, so its size follows the objects in a box, not the voxels. Voxels with
true id 0 are in the tables too and are left out at the end: so nothing besides the columns has to travel.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.chunk_map import ChunkFunction, Report
from infra.ledger import Ledger
from infra.objects import Folder
from infra.written import Written
from models.geometry import Box, Chunk, ChunkGrid, Triple
from models.metrics.contingency import ContingencyTable, merge_tables
from services.label_pair import LabelPair

FAN_IN = 32
"""Tables that one task adds up."""


@dataclass(frozen=True)
class ContingencyJob:
    """Which volumes are compared in which chunks, and where the tables go; picklable."""

    pair: LabelPair
    chunk_shape: Triple
    out: str
    key: str

    @property
    def grid(self) -> ChunkGrid:
        """Chunks whose tables are made by one task each."""
        return ChunkGrid(self.pair.box, self.chunk_shape)

    @property
    def folder(self) -> Folder:
        """The output prefix."""
        return Folder(self.out)

    def units(self, level: int) -> ChunkGrid:
        """Tables of a level of the sums, 0 those of the chunks; the number is the index on the first axis."""
        count = len(self.grid)
        for _ in range(level):
            count = -(-count // FAN_IN)
        return ChunkGrid(Box((0, 0, 0), (count, 1, 1)), (1, 1, 1))

    @property
    def levels(self) -> int:
        """Levels of sums until one table is left."""
        level = 0
        while len(self.units(level)) > 1:
            level += 1
        return level

    def ledger(self, stage: str) -> Ledger:
        """Markers of one of this job's stages."""
        return Ledger(self.folder, stage, self.key)


def contingency(job: ContingencyJob) -> ChunkFunction:
    """The stage's function: the table of one chunk, read block by block."""
    ledger = job.ledger("contingency")

    def apply(chunk: Chunk) -> Report:
        table = job.pair.table(chunk.box, ignore_truth=())
        name = _table_name(0, job.grid.rank(chunk))
        ledger.mark(chunk, [write_contingency(job.folder, name, table)])
        return {"pairs": int(table.counts.size)}

    return apply


def add_up(job: ContingencyJob, level: int) -> ChunkFunction:
    """The function that sums tables of `level` - 1 to one of `level`."""
    ledger, below = job.ledger(f"sum_{level}"), len(job.units(level - 1))

    def apply(unit: Chunk) -> Report:
        first = unit.index[0] * FAN_IN
        parts = range(first, min(first + FAN_IN, below))
        table = merge_tables(read_contingency(job.folder, _table_name(level - 1, part)) for part in parts)
        ledger.mark(unit, [write_contingency(job.folder, _table_name(level, unit.index[0]), table)])
        return {}

    return apply


def whole_table(job: ContingencyJob) -> ContingencyTable:
    """The one table that is left, voxels with true id 0 included."""
    return read_contingency(job.folder, _table_name(job.levels, 0))


def write_contingency(folder: Folder, name: str, table: ContingencyTable) -> Written:
    """Store a table without ignored voxels as Parquet, columns pred, truth, voxels."""
    return folder.write_table(name, {"pred": table.pred, "truth": table.truth, "voxels": table.counts})


def read_contingency(folder: Folder, name: str) -> ContingencyTable:
    """Read what `write_contingency` wrote."""
    columns = folder.read_table(name)
    return ContingencyTable(columns["pred"], columns["truth"], columns["voxels"])


def _table_name(level: int, number: int) -> str:
    return f"work/tables/{level}/{number}.parquet"
