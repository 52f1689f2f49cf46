"""The levels of a label volume, as far as it has a pyramid."""

from __future__ import annotations

from infra.volumes import Volume, open_volume
from models.errors import InvalidVolume, NotFound
from models.geometry import Triple, VoxelSize


def checked_labels(url: str) -> tuple[Volume, VoxelSize]:
    """Open a label volume; raises `InvalidVolume` for anything but integers (z, y, x) that know their voxel size."""
    volume = open_volume(url)
    info = volume.info
    if info.channels is not None or info.dtype.kind not in "ui":
        raise InvalidVolume(f"{volume.url}: expected integer labels (z, y, x), got {info.dtype} {info.axes}")
    if info.voxel_size_nm is None:
        raise InvalidVolume(f"{volume.url}: expected a known voxel size, the volume has none")
    return volume, info.voxel_size_nm


def label_levels(volume: Volume, voxel_size_nm: VoxelSize, *, most: int = 32) -> tuple[list[Triple], list[Triple]]:
    """Extents of the levels of a volume (level 0 first) and their factors against level 0, up to `most` levels."""
    shapes, factors = [volume.info.shape], [(1, 1, 1)]
    while len(shapes) < most:
        try:
            coarser = open_volume(volume.url, level=len(shapes)).info
        except NotFound:
            break
        if coarser.voxel_size_nm is None:
            break
        z, y, x = (round(c / f) for c, f in zip(coarser.voxel_size_nm, voxel_size_nm, strict=True))
        shapes.append(coarser.shape)
        factors.append((z, y, x))
    return shapes, factors
