"""Volumes in TIFF stacks, page = z, local files only.

A stack that lies in the file as one piece is memory-mapped; others are decoded page by page. New stacks are
uncompressed, of one piece, with our JSON document in the image description. Voxel sizes of OME-TIFF and ImageJ are
understood.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray

from infra.settings import Settings
from infra.volumes.base import Volume
from infra.volumes.info import DOCUMENT, VolumeInfo, info_of_array
from infra.volumes.location import Location
from infra.volumes.npy import ArrayVolume, one_section, refuse_level, reserve
from infra.volumes.stores import Objects, local_path
from models.errors import AccessDenied, InvalidVolume
from models.geometry import Box, VoxelSize

_NANOMETRES = {
    "nm": 1.0,
    "um": 1e3,
    "µm": 1e3,
    "μm": 1e3,
    "\\u00b5m": 1e3,
    "micron": 1e3,
    "mm": 1e6,
    "cm": 1e7,
    "m": 1e9,
}


class PagedVolume(Volume):
    """A stack whose pages are decoded one by one; `pages` (c, z) holds each section's page number."""

    format = "tiff"
    counts_boxes = True

    def __init__(self, location: Location, info: VolumeInfo, pages: NDArray[np.int64], **options: Any) -> None:
        super().__init__(location, info, **options)
        self._pages = pages
        self._lock = Lock()
        self._file: tifffile.TiffFile | None = None

    def _read(self, box: Box) -> NDArray[Any]:
        z, y, x = box.slices()
        with self._lock:
            series = self._opened().series[0]
            wanted = [[self._page(series, int(n))[y, x] for n in row] for row in self._pages[:, z]]
        out = np.array(wanted)
        return out if self.info.channels is not None else out[0]

    @staticmethod
    def _page(series: tifffile.TiffPageSeries, number: int) -> NDArray[Any]:
        page = series[number]
        if page is None:
            raise OSError(f"page {number} is missing")
        array: NDArray[Any] = page.asarray(maxworkers=1)
        return array.reshape(array.shape[-2:])

    def _opened(self) -> tifffile.TiffFile:
        if self._file is None:
            self._file = tifffile.TiffFile(self.location.path)
            weakref.finalize(self, self._file.close)
        return self._file

    def _write(self, box: Box, array: NDArray[Any]) -> None:
        raise AccessDenied(f"{self.url}: only uncompressed stacks of one piece can be written in place")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _stamp(self) -> str:
        return Objects(self.location, self.settings).stamp()


def open_(
    location: Location, *, writable: bool, level: int, voxel_size_nm: VoxelSize | None, settings: Settings
) -> Volume:
    """Open a stack."""
    refuse_level(location, level)
    path, url = local_path(location, "TIFF"), str(location)
    options = {"writable": writable, "voxel_size_nm": voxel_size_nm, "settings": settings}
    with tifffile.TiffFile(path) as file:
        if not file.series:
            raise InvalidVolume(f"{url}: expected a TIFF stack, the file holds no image")
        series = file.series[0]
        pages = _pages(series, url)
        channels, depth = pages.shape
        height, width = (series.shape[series.axes.index(axis)] for axis in "YX")
        shape = (depth, height, width) if channels == 1 else (channels, depth, height, width)
        info = _described(file, info_of_array(shape, series.dtype, url, chunks=one_section(shape)), url)
        offset, stored = series.dataoffset, np.dtype(series.dtype).newbyteorder(file.byteorder)
        # All pages may lie in one other file, and then an offset is one in there.
        reaches_out = series.is_multifile or series.keyframe.parent is not file
        in_order = bool((pages.ravel() == np.arange(pages.size)).all())
    if offset is None or reaches_out or not in_order:
        if writable:
            raise AccessDenied(f"{url}: only uncompressed stacks of one piece can be written in place")
        paged = PagedVolume(location, info, pages, **options)
        paged.reaches_out = reaches_out
        return paged
    mapped = np.memmap(path, dtype=stored, mode="r+" if writable else "r", offset=offset, shape=info.array_shape())
    return ArrayVolume(location, info, mapped, "tiff", **options)


def create(location: Location, info: VolumeInfo, settings: Settings) -> None:
    """Create a stack of zeros, with its whole size on disk."""
    path = local_path(location, "TIFF")
    if info.dtype == np.bool_:
        raise InvalidVolume(f"{location}: TIFF packs bool into bits; use uint8")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_header(path, info)
    reserve(path)


def delete(location: Location, settings: Settings) -> None:
    """Delete the file."""
    Objects(location, settings).delete_all()


def _write_header(path: Path, info: VolumeInfo) -> None:
    metadata = {"axes": "".join(info.axes).upper(), DOCUMENT: info.document()}
    mapped = tifffile.memmap(
        path, shape=info.array_shape(), dtype=info.dtype, photometric="minisblack", metadata=metadata
    )
    del mapped


def _pages(series: tifffile.TiffPageSeries, url: str) -> NDArray[np.int64]:
    """Page numbers, as (c, z)."""
    axes, shape = series.axes, series.shape
    if axes[-2:] != "YX":
        raise InvalidVolume(f"{url}: expected grey pages, got axes {axes} of shape {shape}")
    numbers = np.arange(int(np.prod(shape[:-2], dtype=np.int64)), dtype=np.int64).reshape(shape[:-2])
    long = [axis for axis, extent in zip(axes[:-2], shape[:-2], strict=True) if extent > 1]
    numbers = numbers.squeeze()
    if len(long) <= 1 and long != ["C"]:  # the pages of a plain stack are sections, whatever the axis is called
        return numbers.reshape(1, -1)
    if sorted(long) == ["C", "Z"]:
        return numbers if long == ["C", "Z"] else numbers.T
    if long == ["C"]:
        return numbers.reshape(-1, 1)
    raise InvalidVolume(
        f"{url}: expected a stack of sections with or without channels, got axes {axes} of shape {shape}"
    )


def _described(file: tifffile.TiffFile, info: VolumeInfo, url: str) -> VolumeInfo:
    for described in file.shaped_metadata or ():
        if DOCUMENT in described:
            document = described[DOCUMENT]
            single = info.channels is None and isinstance(document, dict) and document.get("axes") == "czyx"
            return (replace(info, channels=1) if single else info).with_document(document, url)
    size = _ome_size(file.ome_metadata) if file.ome_metadata else _imagej_size(file)
    return info if size is None else replace(info, voxel_size_nm=size)


def _ome_size(text: str) -> VoxelSize | None:
    for element in ElementTree.fromstring(text).iter():
        if element.tag.rsplit("}", 1)[-1] == "Pixels":
            sizes = [_length(element.get(f"PhysicalSize{a}"), element.get(f"PhysicalSize{a}Unit", "µm")) for a in "ZYX"]
            return _complete(sizes)
    return None


def _imagej_size(file: tifffile.TiffFile) -> VoxelSize | None:
    known = file.imagej_metadata
    tags = file.pages.first.tags
    if not known or "unit" not in known or "XResolution" not in tags or "YResolution" not in tags:
        return None
    y, x = (tags[name].value for name in ("YResolution", "XResolution"))
    if not (y[0] and x[0]):
        return None
    lengths = (known.get("spacing"), y[1] / y[0], x[1] / x[0])
    return _complete([_length(length, str(known["unit"])) for length in lengths])


def _length(value: object, unit: str) -> float | None:
    factor = _NANOMETRES.get(unit.lower())
    return None if value is None or factor is None else float(str(value)) * factor


def _complete(sizes: list[float | None]) -> VoxelSize | None:
    z, y, x = sizes
    return None if z is None or y is None or x is None else (z, y, x)
