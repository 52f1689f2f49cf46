"""Affinities of one box to segments: what the pipeline does with a single chunk, in memory.

It is not a second segmentation: the kernels are the pipeline's, in its order, and a test compares both voxel by voxel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.catalog import Segmentation
from models.errors import InvalidModel
from models.geometry import NEAREST, Box, Triple
from models.segmentation.whole import segment_whole


def segment_box(
    affinities: NDArray[np.uint8],
    offsets: Sequence[Triple],
    box: Box,
    volume_shape: Triple,
    settings: Segmentation,
) -> NDArray[np.uint64]:
    """Segments of a box of a volume.

    `affinities`: uint8 (channel, z, y, x) of the box, the first three channels nearest neighbours, as `offsets` say;
    edges that leave the box do not count. Returns uint64 (z, y, x), 0 = background; an id is that of the segment's
    smallest supervoxel, which is 1 + its smallest C-order voxel index in the volume. Raises `InvalidModel` for a model
    without nearest-neighbour affinities.
    """
    if tuple(offsets[:3]) != NEAREST:
        raise InvalidModel(f"model: segmentation expects affinities of {NEAREST} first, the model has {offsets}")
    nearest = np.ascontiguousarray(affinities[:3])
    low, high = max(1, round(255 * settings.low)), round(255 * settings.high)
    whole = segment_whole(
        nearest,
        low=low,
        high=high,
        basin_voxels=settings.basin_voxels,
        basin_affinity=max(1, round(255 * settings.basin_affinity)),
        floor=settings.threshold,
        origin=box.start,
        volume_shape=volume_shape,
    )
    return whole.segments_at(settings.threshold)


def compile_kernels() -> None:
    """Compile, or load from the cache, all kernels that `segment_box` needs, so that the first request need not.

    That is those for arrays that cannot be written to, which is how they come out of Ray's object store.
    """
    affinities = np.random.default_rng(0).integers(1, 256, (3, 8, 8, 8), dtype=np.uint8)
    affinities.setflags(write=False)
    settings = Segmentation(basin_voxels=2)
    segment_box(affinities, NEAREST, Box.from_shape((8, 8, 8)), (8, 8, 8), settings)
