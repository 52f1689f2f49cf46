"""One level of a label pyramid from the level below it, by the most frequent label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infra.chunk_map import ChunkFunction, Report
from infra.prefetch import Prefetched
from infra.written import Written
from models.geometry import Box, Chunk, Triple, VoxelSize
from models.segmentation.coarsening import most_frequent
from services.run import Run


def pyramid_factors(shape: Triple, voxel_size_nm: VoxelSize) -> tuple[Triple, ...]:
    """Factors z, y, x between levels, until the coarsest fits 128 voxels; thick axes wait for thin ones."""
    factors: list[Triple] = []
    extent, size = list(shape), list(voxel_size_nm)
    while max(extent) > 128 and len(factors) < 12:
        z, y, x = (2 if size[axis] < 1.5 * min(size) and extent[axis] > 1 else 1 for axis in range(3))
        factors.append((z, y, x))
        extent = [-(-n // f) for n, f in zip(extent, (z, y, x), strict=True)]
        size = [n * f for n, f in zip(size, (z, y, x), strict=True)]
    return tuple(factors)


def total_factors(factors: Sequence[Triple]) -> list[Triple]:
    """Factors of all levels against the finest, which comes first, from those between levels."""
    totals: list[Triple] = [(1, 1, 1)]
    for fz, fy, fx in factors:
        z, y, x = totals[-1]
        totals.append((z * fz, y * fy, x * fx))
    return totals


def level_of_voxels(voxel_size_nm: VoxelSize, totals: Sequence[Triple], most_nm: float) -> int:
    """The coarsest level whose voxels are at most `most_nm` along every axis that it coarsens; 0 where none is.

    `totals`: factors of the levels against the finest, whose voxels are `voxel_size_nm`.
    """

    def fits(total: Triple) -> bool:
        return all(f == 1 or f * size <= most_nm for f, size in zip(total, voxel_size_nm, strict=True))

    return max(level for level, total in enumerate(totals) if level == 0 or fits(total))


def pyramid(run: Run, level: int, factor: Triple) -> ChunkFunction:
    """The function that fills `level` of `segmentation.zarr` from `level` - 1; chunks are boxes of the level."""
    finer = run.volume("segmentation.zarr", level=level - 1)
    coarser = run.volume("segmentation.zarr", writable=True, level=level)
    ledger = run.ledger(f"pyramid_{level}")

    def load(chunk: Chunk) -> NDArray[np.uint64]:
        corners = (chunk.box.start, chunk.box.stop)
        start, stop = (tuple(a * f for a, f in zip(corner, factor, strict=True)) for corner in corners)
        return finer.read(Box(start, stop).intersection(finer.box))  # type: ignore[arg-type]

    def work(chunk: Chunk, labels: NDArray[np.uint64]) -> Report:
        box, small = chunk.box, most_frequent(labels, factor)
        coarser.write(box, small)
        ledger.mark(chunk, [Written.voxels(coarser.url, box, small, level)])
        return {}

    return Prefetched(load, work)
