"""How many voxels of each segment lie in a box, in bounded memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infra.volumes import Volume
from models.geometry import Box, ChunkGrid, Triple
from models.segmentation.hierarchy import added_up
from models.segmentation.region_graph import segment_sizes


def voxels_of_segments(volume: Volume, box: Box, block: Triple) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Ids in a box of a label volume, sorted, without 0, and their numbers of voxels; one `block` is read at a time."""
    blocks = ChunkGrid(box, block) if box.size else ()
    found = [segment_sizes(volume.read(part.box).astype(np.uint64, copy=False)) for part in blocks]
    none = np.empty(0, np.uint64), np.empty(0, np.int64)
    ids, voxels = (np.concatenate(columns) for columns in zip(none, *found, strict=True))
    return added_up(ids, voxels)
