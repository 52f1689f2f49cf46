"""What is known of a volume besides its voxels, and the JSON document that carries it in every format.

The document travels with the array (zarr attributes, HDF5 attribute, TIFF description, precomputed info, a file beside
an .npy), so that axis order, voxel size and the meaning of channels are never guessed.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from models.errors import InvalidInput, InvalidVolume
from models.geometry import Box, Triple, VoxelSize, triple

logger = logging.getLogger(__name__)

DOCUMENT = "petavoxel"
"""Key of our document in formats that hold other metadata too."""
_DTYPES = frozenset(
    ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
)


@dataclass(frozen=True, kw_only=True)
class VolumeInfo:
    """Shape, type and placement of a volume; arrays are (z, y, x), or (c, z, y, x) where `channels` is a number.

    - `shape`: voxels along z, y, x; `dtype`: a number or bool, in native byte order.
    - `voxel_size_nm`: extent of a voxel along z, y, x in nanometres; None where it is not known.
    - `offset_voxels`: position of voxel (0, 0, 0) in the physical frame, in voxels.
    - `affinity_offsets`: for affinities, one (z, y, x) offset o per channel, which says whether p and p + o are joined.
    - `chunk_shape`, `shard_shape`: what is stored as one piece, and what is written as one object; None at creation
      means that the format chooses, and no shards.
    - `attributes`: a JSON mapping of further metadata, e.g. a model's name and digest.

    Raises `InvalidVolume` for values that cannot be.
    """

    shape: Triple
    dtype: np.dtype[Any]
    channels: int | None = None
    voxel_size_nm: VoxelSize | None = None
    offset_voxels: Triple = (0, 0, 0)
    affinity_offsets: tuple[Triple, ...] | None = None
    chunk_shape: Triple | None = None
    shard_shape: Triple | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        try:
            self._normalise()
        except InvalidVolume:
            raise
        except InvalidInput as error:
            raise InvalidVolume(str(error)) from error

    def _normalise(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("shape", triple(self.shape, "shape of a volume", minimum=1))
        put("dtype", _dtype(self.dtype))
        put("offset_voxels", triple(self.offset_voxels, "offset_voxels"))
        if self.channels is not None and (int(self.channels) != self.channels or self.channels < 1):
            raise InvalidVolume(f"channels: expected None or at least 1, got {self.channels!r}")
        if self.voxel_size_nm is not None:
            put("voxel_size_nm", _voxel_size(self.voxel_size_nm))
        if self.affinity_offsets is not None:
            put("affinity_offsets", tuple(triple(offset, "affinity offset") for offset in self.affinity_offsets))
            if len(self.affinity_offsets) != self.channels:
                raise InvalidVolume(
                    f"affinity_offsets: expected one per channel ({self.channels}), got {len(self.affinity_offsets)}"
                )
        if self.chunk_shape is not None:
            put("chunk_shape", triple(self.chunk_shape, "chunk_shape", minimum=1))
        if self.shard_shape is not None:
            put("shard_shape", triple(self.shard_shape, "shard_shape", minimum=1))
            if self.chunk_shape is None or any(s % c for s, c in zip(self.shard_shape, self.chunk_shape, strict=True)):
                raise InvalidVolume(
                    f"shard_shape: expected multiples of chunk_shape {self.chunk_shape}, got {self.shard_shape}"
                )
        put("attributes", _json_mapping(self.attributes))

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the array's axes: z, y, x, with c in front where there are channels."""
        return ("z", "y", "x") if self.channels is None else ("c", "z", "y", "x")

    @property
    def box(self) -> Box:
        """The box of all voxels, in array coordinates."""
        return Box.from_shape(self.shape)

    @property
    def write_shape(self) -> Triple | None:
        """What is written as one object: writers in several processes must own disjoint boxes aligned to it."""
        return self.shard_shape or self.chunk_shape

    def array_shape(self, box: Box | None = None) -> tuple[int, ...]:
        """Shape of the array that holds `box` (default: the volume)."""
        spatial = self.shape if box is None else box.shape
        return spatial if self.channels is None else (self.channels, *spatial)

    def document(self) -> dict[str, Any]:
        """The JSON document that is stored with the array; `with_document` reads it."""
        return {
            "version": 1,
            "axes": "".join(self.axes),
            "voxel_size_nm": self.voxel_size_nm and list(self.voxel_size_nm),
            "offset_voxels": list(self.offset_voxels),
            "affinity_offsets": self.affinity_offsets and [list(offset) for offset in self.affinity_offsets],
            "attributes": dict(self.attributes),
        }

    def with_document(self, document: object, url: str) -> VolumeInfo:
        """This info completed by a stored document; raises `InvalidVolume` where the two contradict."""
        if not isinstance(document, Mapping):
            raise InvalidVolume(f"{url}: expected a JSON object as {DOCUMENT} metadata, got {document!r}")
        if document.get("axes") != "".join(self.axes):
            raise InvalidVolume(f"{url}: expected axes {''.join(self.axes)!r}, metadata says {document.get('axes')!r}")
        return replace(
            self,
            voxel_size_nm=document.get("voxel_size_nm"),
            offset_voxels=document.get("offset_voxels", (0, 0, 0)),
            affinity_offsets=document.get("affinity_offsets"),
            attributes=document.get("attributes", {}),
        )

    def difference(self, other: VolumeInfo) -> str | None:
        """First field in which `other` differs, as text, or None; storage shapes are not compared."""
        for name in ("shape", "dtype", "channels", "voxel_size_nm", "offset_voxels", "affinity_offsets", "attributes"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} {mine} against {theirs}"
        return None

    def storage_difference(self, other: VolumeInfo) -> str | None:
        """First difference between the storage shapes that both name, as far as they matter in this volume, or None."""
        for name in ("chunk_shape", "shard_shape"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine and theirs and self._cut(mine) != self._cut(theirs):
                return f"{name} {mine} against {theirs}"
        return None

    def _cut(self, storage: Triple) -> list[int]:
        return [min(s, extent) for s, extent in zip(storage, self.shape, strict=True)]


def info_of_array(
    shape: Sequence[int],
    dtype: object,
    url: str,
    *,
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
) -> VolumeInfo:
    """The info of an array of 3 (z, y, x) or 4 (c, z, y, x) axes; chunks and shards have as many axes as the array."""
    if len(shape) not in (3, 4):
        raise InvalidVolume(f"{url}: expected an array of 3 (z, y, x) or 4 (c, z, y, x) axes, got shape {tuple(shape)}")
    try:
        return VolumeInfo(
            shape=triple(shape[-3:], "shape"),
            dtype=_dtype(dtype),
            channels=int(shape[0]) if len(shape) == 4 else None,
            chunk_shape=None if chunks is None else triple(chunks[-3:], "chunk_shape"),
            shard_shape=None if shards is None else triple(shards[-3:], "shard_shape"),
        )
    except InvalidInput as error:
        raise InvalidVolume(f"{url}: {error}") from error


def nearest_voxels(offset_nm: Sequence[float], voxel_size_nm: VoxelSize, url: str) -> Triple:
    """A physical offset in whole voxels; one that is not a multiple of the voxel size is rounded, with a warning."""
    exact = [o / v for o, v in zip(offset_nm, voxel_size_nm, strict=True)]
    z, y, x = (round(e) for e in exact)
    if any(abs(e - r) > 0.01 for e, r in zip(exact, (z, y, x), strict=True)):
        logger.warning(
            "%s: offset %s nm is not a multiple of the voxel size %s nm", url, list(offset_nm), voxel_size_nm
        )
    return z, y, x


def _dtype(value: object) -> np.dtype[Any]:
    try:
        dtype = np.dtype(value)  # type: ignore[call-overload]
    except TypeError as error:
        raise InvalidVolume(f"dtype: expected a number type, got {value!r}") from error
    if dtype.name not in _DTYPES:
        raise InvalidVolume(f"dtype: expected one of {', '.join(sorted(_DTYPES))}, got {dtype}")
    native: np.dtype[Any] = dtype.newbyteorder("=")
    return native


def _voxel_size(value: object) -> VoxelSize:
    try:
        z, y, x = (float(item) for item in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise InvalidVolume(f"voxel_size_nm: expected three numbers z, y, x, got {value!r}") from error
    if not all(math.isfinite(item) and item > 0 for item in (z, y, x)):
        raise InvalidVolume(f"voxel_size_nm: expected numbers above 0, got {(z, y, x)}")
    return z, y, x


def _json_mapping(value: Mapping[str, Any]) -> dict[str, Any]:
    try:
        text = json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidVolume(f"attributes: expected a mapping that JSON can hold, got {value!r}: {error}") from error
    loaded: dict[str, Any] = json.loads(text)
    return loaded
