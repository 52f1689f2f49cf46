"""Meshes of a segmentation of any size: surfaces chunk by chunk, then a manifest per segment.

Every level of the segmentation's pyramid, from the first that is wanted, gives a level of detail; a chunk of cells (see
`meshing`) is a cell of the stored format. Fragments are final when their chunk is done: the exchange brings them to the
shard of their segment, and nothing is decoded there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from infra.chunk_map import ChunkFunction, Report
from infra.exchange import Exchange, Record
from infra.ledger import Ledger
from infra.meshes import CellGrid, Fragment, PrecomputedMeshes, encode_surface
from infra.objects import Folder
from infra.shards import Sharding
from infra.volumes import open_volume
from models.errors import InvalidVolume
from models.geometry import Box, Chunk, ChunkGrid, Triple, VoxelSize
from models.segmentation.region_graph import segment_sizes
from services.stages.counting import voxels_of_segments
from services.stages.meshing import Surface, surfaces, voxels_of

_LARGEST_CHUNK = 512
"""Voxels along an axis: marching cubes numbers them with ten bits, and a chunk must fit in memory."""


class MeshOptions(BaseModel):
    """How segments become meshes.

    - `voxel_nm`: the finest detail is the pyramid's coarsest level whose voxels are at most this large along the axes
      that it coarsens; 0 for the finest.
    - `dust_voxels`: segments with fewer voxels of the finest level in the whole volume have no mesh.
    - `max_error_nm`: how far simplification may move the surface of the finest detail, twice as far for each coarser
      one; 0 keeps every triangle, which takes a seventh of the time and about as many bytes.
    - `levels`: levels of detail at most, one per level of the segmentation's pyramid.
    - `chunk_voxels`: extent of the chunks of the finest detail, in its voxels, even.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    voxel_nm: float = Field(default=0.0, ge=0)
    dust_voxels: int = Field(default=1000, ge=0)
    max_error_nm: float = Field(default=0.0, ge=0)
    levels: int = Field(default=6, ge=1, le=12)
    chunk_voxels: Triple = (128, 128, 128)

    @field_validator("chunk_voxels")
    @classmethod
    def _even(cls, value: Triple) -> Triple:
        if any(extent < 2 or extent % 2 or extent > _LARGEST_CHUNK for extent in value):
            raise ValueError(f"expected even extents from 2 to {_LARGEST_CHUNK}, got {value}")
        return value


@dataclass(frozen=True)
class Detail:
    """One level of detail: its level in the pyramid, voxels, size of a voxel in the finest voxels, and chunks."""

    level: int
    shape: Triple
    factor: Triple
    chunk_voxels: Triple

    @property
    def grid(self) -> ChunkGrid:
        """The chunks, in cells: one more along each axis than voxels."""
        z, y, x = self.shape
        return ChunkGrid(Box((0, 0, 0), (z + 1, y + 1, x + 1)), self.chunk_voxels)

    def voxel_size_nm(self, finest: VoxelSize) -> VoxelSize:
        """Extent of a voxel of this level."""
        z, y, x = (size * f for size, f in zip(finest, self.factor, strict=True))
        return z, y, x

    def finest(self, box: Box, shape: Triple) -> Box:
        """The voxels of a volume of this shape that lie in a box of the level's voxels."""
        (z, y, x), (oz, oy, ox), (fz, fy, fx) = box.start, box.stop, self.factor
        return Box((z * fz, y * fy, x * fx), (oz * fz, oy * fy, ox * fx)).intersection(Box((0, 0, 0), shape))


@dataclass(frozen=True)
class MeshJob:
    """Which segmentation and where the meshes go; picklable. `details` come from `plan_details`.

    Markers go below `ledgers`, intermediates below `work`, meshes into `out`.
    """

    segmentation: str
    details: tuple[Detail, ...]
    voxel_size_nm: VoxelSize
    offset_voxels: Triple
    options: MeshOptions
    out: str
    work: str
    ledgers: str
    key: str

    @property
    def exchange(self) -> Exchange:
        """How fragments come from the chunks of all levels to the shards of the output."""
        return Exchange(Folder(self.work) / "fragments", sum(len(detail.grid) for detail in self.details))

    @property
    def sharding(self) -> Sharding:
        """A shard per bucket."""
        return Sharding(self.exchange.bits, compress=False)

    @property
    def cells(self) -> CellGrid:
        """Where the stored cells lie: from the centre of the voxel before the first, on every level.

        `origin` is that of the finest level of the pyramid; those of coarser ones are moved from it.
        """
        size = np.array(self.voxel_size_nm)
        origin = (np.array(self.offset_voxels) - 0.5) * size
        shifts = [tuple(((1 - np.array(detail.factor)) / 2 * size).tolist()) for detail in self.details]
        edges = [float(max(size * detail.factor)) for detail in self.details]
        cell = size * self.details[0].factor * self.options.chunk_voxels
        return CellGrid(tuple(origin.tolist()), tuple(cell.tolist()), tuple(shifts), tuple(edges))

    def ledger(self, stage: str) -> Ledger:
        """Markers of one of this job's stages."""
        return Ledger(Folder(self.ledgers), stage, self.key)


def plan_details(shapes: list[Triple], factors: list[Triple], first: int, options: MeshOptions) -> tuple[Detail, ...]:
    """The levels of detail for the levels of a pyramid from `first` on, `factors` against the finest of all.

    The cell of a level is twice that of the level before along every axis. Where the pyramid keeps a thick axis as it
    is, a chunk of that level has more voxels along it; levels end where that would be too many, where one chunk holds
    all, or with the pyramid. Raises `InvalidVolume` for levels that are not the halves of those before.
    """
    details: list[Detail] = []
    for level in range(first, len(shapes)):
        shape, factor, scale = shapes[level], factors[level], 1 << (level - first)
        if any((base * scale) % f for f, base in zip(factor, factors[first], strict=True)):
            raise InvalidVolume(f"pyramid: expected halves of the level before, got level {level} of factor {factor}")
        chunks = zip(options.chunk_voxels, factor, factors[first], strict=True)
        z, y, x = (c * base * scale // f for c, f, base in chunks)
        if len(details) == options.levels or max(z, y, x) > _LARGEST_CHUNK:
            break
        details.append(Detail(level, shape, factor, (z, y, x)))
        if len(details[-1].grid) == 1:
            break
    return tuple(details)


def surface_chunks(job: MeshJob, number: int) -> ChunkFunction:
    """The stage that makes the surfaces of one chunk of a level of detail, and stores its fragments."""
    detail, exchange = job.details[number], job.exchange
    volume, ledger, grid = open_volume(job.segmentation, level=detail.level), job.ledger(f"mesh_{number}"), detail.grid
    first = sum(len(finer.grid) for finer in job.details[:number])
    finest, voxel_nm = open_volume(job.segmentation), detail.voxel_size_nm(job.voxel_size_nm)
    no_segments = np.empty(0, np.uint64), np.empty(0, np.int64)
    half = tuple(extent // 2 for extent in detail.chunk_voxels)
    error = job.options.max_error_nm * 2**number

    def count(box: Box, labels: NDArray[np.integer]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        if detail.level == 0:
            return segment_sizes(np.ascontiguousarray(labels).astype(np.uint64, copy=False))
        return voxels_of_segments(finest, detail.finest(box, finest.info.shape), detail.chunk_voxels)

    def apply(chunk: Chunk) -> Report:
        box = voxels_of(chunk.box)
        labels = volume.read(box, fill=0)
        found = surfaces(labels, voxel_nm, max_error_nm=error, cut=half if number else None)  # type: ignore[arg-type]
        extent = np.array(detail.chunk_voxels) * voxel_nm
        packed = {
            segment: Fragment(number, chunk.index, encode_surface(*_in_cell(surface, extent))).packed()
            for segment, surface in found.items()
        }
        # A chunk of the finest detail counts the voxels behind its cells, not the plane before them.
        ids, voxels = count(chunk.box, labels[1:, 1:, 1:]) if number == 0 else no_segments
        counts = dict(zip(ids.tolist(), voxels.tolist(), strict=True))
        records = [Record(i, counts.get(i, 0), packed.get(i, b"")) for i in sorted(counts.keys() | packed.keys())]
        shards = job.sharding.shards(np.array([record.id for record in records], np.uint64))
        ledger.mark(chunk, [exchange.write(first + grid.rank(chunk), records, shards)])
        return {"fragments": len(packed), "triangles": sum(len(faces) for _, faces in found.values())}

    return apply


def _in_cell(surface: Surface, extent_nm: NDArray[np.float64]) -> Surface:
    """Vertices as fractions of the cell, 0 to 1; what rounding put beyond is put back."""
    vertices, faces = surface
    return np.clip(vertices / extent_nm, 0, 1), faces


def manifests(job: MeshJob) -> ChunkFunction:
    """The stage that writes the shard of one bucket."""
    ledger, exchange, meshes = job.ledger("meshes"), job.exchange, PrecomputedMeshes(job.out)

    def apply(chunk: Chunk) -> Report:
        found = [
            (segment.id, [Fragment.unpacked(content) for content in segment.contents])
            for segment in exchange.gather(chunk.index[0])
            if segment.count >= job.options.dust_voxels and segment.contents
        ]
        size, largest = max(((sum(len(f.draco) for f in parts), segment) for segment, parts in found), default=(0, 0))
        outputs = meshes.write(chunk.index[0], job.cells, found)
        ledger.mark(chunk, outputs, {"largest_segment": largest, "largest_segment_bytes": size})
        return {"meshes": len(found)}

    return apply
