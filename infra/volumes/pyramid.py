"""Plans the levels of a resolution pyramid; pure arithmetic, whatever format stores it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from infra.volumes.info import VolumeInfo
from models.geometry import Triple, VoxelSize, triple


def pyramid_levels(info: VolumeInfo, factors: Sequence[Triple]) -> tuple[list[VolumeInfo], list[Triple]]:
    """The infos of all levels, `info` first, and each level's factor against the finest.

    `factors[i]` is what level i + 1 is coarser than level i by, in z, y, x; extents are rounded up, offsets down.
    Raises `InvalidInput` for a factor below one.
    """
    levels, totals = [info], [(1, 1, 1)]
    for number, given in enumerate(factors):
        step = triple(given, f"factor of level {number + 1}", minimum=1)
        total = _each(totals[-1], step)
        z, y, x = (-(-s // f) for s, f in zip(info.shape, total, strict=True))
        oz, oy, ox = (o // f for o, f in zip(info.offset_voxels, total, strict=True))
        size = info.voxel_size_nm
        coarser: VoxelSize | None = size and (size[0] * total[0], size[1] * total[1], size[2] * total[2])
        levels.append(replace(info, shape=(z, y, x), offset_voxels=(oz, oy, ox), voxel_size_nm=coarser))
        totals.append(total)
    return levels, totals


def _each(a: Triple, b: Triple) -> Triple:
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]
