"""Volumes as sources for Neuroglancer, its client's or its Python server's; x, y, z inside this file only."""

from __future__ import annotations

from typing import Any

import neuroglancer
import numpy as np
from neuroglancer.local_volume import MeshesNotSupportedForVolume
from numpy.typing import NDArray

from infra.objects import Folder
from infra.volumes import Volume
from infra.volumes.location import Location
from infra.volumes.ome import multiscale_of, placement
from models.geometry import Box, Triple, VoxelSize

_NAMES = ["x", "y", "z"]
_VIEWABLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32")


def space(voxel_size_nm: VoxelSize) -> Any:
    """The coordinate space of voxels; without units the client would take scales for metres."""
    return neuroglancer.CoordinateSpace(names=_NAMES, units="nm", scales=list(voxel_size_nm[::-1]))


class LazyArray:
    """A volume as the array (x, y, z) that Neuroglancer slices; each slice reads just its box.

    `as_dtype` is the type that is handed out, one that the client knows.
    """

    def __init__(self, volume: Volume, as_dtype: np.dtype[Any]) -> None:
        self._volume = volume
        self.dtype = as_dtype
        self.shape = volume.info.shape[::-1]

    def __getitem__(self, index: tuple[slice, slice, slice]) -> NDArray[Any]:
        x, y, z = (part.indices(extent) for part, extent in zip(index, self.shape, strict=True))
        voxels = self._volume.read(Box((z[0], y[0], x[0]), (z[1], y[1], x[1])))
        return voxels.astype(self.dtype, copy=False).T


class _Labels(neuroglancer.LocalVolume):  # type: ignore[misc]
    """Without meshes: the package makes them from the whole volume in memory."""

    def get_object_mesh(self, object_id: int) -> bytes:
        raise MeshesNotSupportedForVolume


def client_format(volume: Volume) -> str | None:
    """The format in which the client reads a volume by itself, with all its levels; None where it cannot.

    It can where the volume's own metadata say where it lies, which a voxel size that was given on opening does not.
    """
    location = volume.location
    if volume.info.dtype.name not in _VIEWABLE or volume.level:
        return None
    if volume.format == "precomputed":
        return "precomputed"
    if volume.format != "zarr":
        return None
    folder = Folder(str(Location(location.scheme, location.path)))
    for name, zarr_format in (("zarr.json", "zarr3"), (".zattrs", "zarr2")):
        if folder.exists(name):
            found = folder.read_json(name)
            multiscale = multiscale_of(found.get("attributes", {}) if name == "zarr.json" else found)
            placed = {} if multiscale is None else placement(multiscale, 0, volume.url)
            size = placed.get("voxel_size_nm")
            return zarr_format if size is not None and size == volume.info.voxel_size_nm else None
    return None


def image_source(image: Volume, voxel_size_nm: VoxelSize, offset_voxels: Triple) -> Any:
    """A source for an image layer; types that the client does not know are widened."""
    dtype = image.info.dtype
    known = dtype if dtype.name in _VIEWABLE else np.dtype(np.uint8 if dtype.kind == "b" else np.float32)
    return neuroglancer.LocalVolume(
        LazyArray(image, known), space(voxel_size_nm), volume_type="image", voxel_offset=offset_voxels[::-1]
    )


def segmentation_source(labels: Volume, voxel_size_nm: VoxelSize, offset_voxels: Triple) -> Any:
    """A source for a segmentation layer, with ids as uint64."""
    array = LazyArray(labels, np.dtype(np.uint64))
    return _Labels(array, space(voxel_size_nm), volume_type="segmentation", voxel_offset=offset_voxels[::-1])
