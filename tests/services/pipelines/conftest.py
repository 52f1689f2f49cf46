"""A small image of cells."""

import numpy as np
import pytest
from pipeline_runs import SHAPE
from scipy import ndimage

from infra.volumes import VolumeInfo, create_volume


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a uint8 image of cells with dark membranes, 10 nm voxels, unequal extents."""
    rng = np.random.default_rng(3)
    seeds = np.zeros(SHAPE, int)
    for label in range(1, 25):
        seeds[tuple(int(rng.integers(n)) for n in SHAPE)] = label
    nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)[1]
    cells = seeds[tuple(nearest)]
    membrane = np.zeros(SHAPE, bool)
    for axis in range(3):
        membrane |= cells != np.roll(cells, 1, axis)
    grey = np.where(membrane, 60, 170) + rng.normal(0, 12, SHAPE)
    url = str(tmp_path_factory.mktemp("image") / "cells.zarr")
    info = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint8"), voxel_size_nm=(10, 10, 10), chunk_shape=(16, 16, 16))
    with create_volume(url, info) as volume:
        volume.write(volume.box, np.clip(grey, 0, 255).astype(np.uint8))
    return url
