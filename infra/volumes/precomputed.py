"""Volumes in Neuroglancer's precomputed format, through tensorstore; only here axes are x, y, z, channel.

Labels of 32 and 64 bits are stored as compressed_segmentation, the rest raw, sharded where `shard_shape` asks for it;
any encoding that tensorstore knows can be read. The `info` object is written here, so that it can hold all levels and
our metadata. tensorstore's threads do not survive a fork: start worker processes with "spawn", as Ray does.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from infra.settings import Settings
from infra.volumes.base import Volume
from infra.volumes.info import DOCUMENT, VolumeInfo, info_of_array
from infra.volumes.location import Location
from infra.volumes.presence import confirm_present, has_blank_piece, refuse_vanished_folder
from infra.volumes.stores import Objects, amazon_endpoint
from models.errors import InvalidVolume, NotFound
from models.geometry import Box, Triple, VoxelSize

_DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32")
_LAYERS = ("mesh", "skeletons", "segment_properties")
"""Keys of `info` that say where a segmentation's other layers lie; passed through our attributes."""


class PrecomputedVolume(Volume):
    """One scale of a precomputed volume."""

    format = "precomputed"

    def __init__(self, location: Location, info: VolumeInfo, store: Any, scale: str, **options: Any) -> None:
        super().__init__(location, info, **options)
        self._scale = scale
        zyx = store[ts.d["channel", "z", "y", "x"].transpose[:]][ts.d["z", "y", "x"].translate_to[0, 0, 0]]
        self._store = zyx if info.channels is not None else zyx[0]
        self.write_shape = _zyx(store.chunk_layout.write_chunk.shape[:3])
        """What is stored as one object here, a chunk or a shard; writers must own disjoint boxes aligned to it."""

    def _read(self, box: Box) -> NDArray[Any]:
        nbytes = box.size * self.info.dtype.itemsize * (self.info.channels or 1)
        future = self._store[(..., *box.slices())].read(order="C")
        found = np.asarray(self._finished(future, nbytes))
        if has_blank_piece(found, box, self.info.chunk_shape or self.info.shape):
            confirm_present(self._objects(), "info", self._same)
        return found

    def _same(self, content: bytes) -> bool:
        return _scale_text(json.loads(content), self.level) == self._scale

    def _objects(self) -> Objects:
        return Objects(self.location, self.settings)

    def _write(self, box: Box, array: NDArray[Any]) -> None:
        refuse_vanished_folder(self.location, "info")
        future = self._store[(..., *box.slices())].write(array)
        self._finished(future, array.nbytes)

    def _finished(self, future: Any, nbytes: int) -> Any:
        try:
            return future.result(timeout=self.settings.timeout_s(nbytes))
        except TimeoutError:
            future.cancel()
            raise

    def _stamp(self) -> str:
        return self._objects().stamp("info")


def open_(
    location: Location, *, writable: bool, level: int, voxel_size_nm: VoxelSize | None, settings: Settings
) -> Volume:
    """Open scale `level`."""
    kvstore = _kvstore(location, settings)
    text = Objects(location, settings).read("info")
    if text is None:
        raise NotFound(f"{location}: no precomputed volume is there, expected an object named info")
    stored = json.loads(text)
    try:
        info = _info(stored, level, str(location))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise InvalidVolume(f"{location}: expected the info of a precomputed volume: {error!r}") from error
    spec = {"driver": "neuroglancer_precomputed", "kvstore": kvstore, "scale_index": level}
    opened = ts.open(spec, open=True, read=True, write=writable, context=_context(settings))
    store = opened.result(timeout=settings.timeout_s())
    options = {"writable": writable, "level": level, "voxel_size_nm": voxel_size_nm, "settings": settings}
    volume = PrecomputedVolume(location, info, store, _scale_text(stored, level), **options)
    volume.reaches_out = _leads_out(str(stored["scales"][level]["key"]))
    return volume


def _leads_out(key: str) -> bool:
    """Whether a scale's key leaves the volume's prefix."""
    return key.startswith("/") or "://" in key or ".." in key.split("/")


def _scale_text(stored: Mapping[str, Any], level: int) -> str:
    """What decides how a scale's objects are read."""
    return json.dumps([stored["data_type"], stored.get("num_channels", 1), stored["scales"][level]], sort_keys=True)


def _info(stored: Mapping[str, Any], level: int, url: str) -> VolumeInfo:
    scales = stored["scales"]
    if not 0 <= level < len(scales):
        raise NotFound(f"{url}: expected a level from 0 to {len(scales) - 1}, asked for {level}")
    scale = scales[level]
    channels = int(stored.get("num_channels", 1))
    shape = tuple(scale["size"][::-1])
    document = stored.get(DOCUMENT)
    many = channels > 1 or (isinstance(document, Mapping) and document.get("axes") == "czyx")
    info = info_of_array(
        (channels, *shape) if many else shape, stored["data_type"], url, chunks=_zyx(scale["chunk_sizes"][0])
    )
    if document is not None:
        info = info.with_document(document, url)
    else:
        info = replace(info, attributes={key: stored[key] for key in _LAYERS if key in stored})
    z, y, x = (float(size) for size in scale["resolution"][::-1])
    return replace(info, voxel_size_nm=(z, y, x), offset_voxels=_zyx(scale.get("voxel_offset", (0, 0, 0))))


def create(location: Location, info: VolumeInfo, settings: Settings) -> None:
    """Create a volume of one scale."""
    create_levels(location, [info], [(1, 1, 1)], settings)


def create_levels(
    location: Location, levels: Sequence[VolumeInfo], factors: Sequence[Triple], settings: Settings
) -> None:
    """Create a volume whose scales are `levels`, finest first; `factors` of each level against the finest."""
    first = levels[0]
    _kvstore(location, settings)
    if first.dtype.name not in _DTYPES:
        raise InvalidVolume(f"{location}: precomputed holds {', '.join(_DTYPES)}, got {first.dtype}")
    labels = first.dtype.name in ("uint32", "uint64")
    scales = [_scale(info, location, labels=labels) for info in levels]
    if len({scale["key"] for scale in scales}) < len(scales):
        raise InvalidVolume(f"{location}: expected levels of different voxel sizes, got the factors {list(factors)}")
    stored = {
        "@type": "neuroglancer_multiscale_volume",
        "type": "segmentation" if labels else "image",
        "data_type": first.dtype.name,
        "num_channels": first.channels or 1,
        "scales": scales,
        **{key: first.attributes[key] for key in _LAYERS if key in first.attributes},
        DOCUMENT: first.document(),
    }
    Objects(location, settings).write("info", json.dumps(stored, indent=2).encode())


def _scale(info: VolumeInfo, location: Location, *, labels: bool) -> dict[str, Any]:
    if info.voxel_size_nm is None:
        raise InvalidVolume(f"{location}: precomputed needs a voxel size, got voxel_size_nm None")
    chunk = info.chunk_shape or tuple(min(64, extent) for extent in info.shape)
    size = [int(s) if s == int(s) else s for s in info.voxel_size_nm[::-1]]
    blocks = {"compressed_segmentation_block_size": [8, 8, 8]} if labels else {}
    return {
        "key": "_".join(str(s) for s in size),
        "size": list(info.shape[::-1]),
        "resolution": size,
        "voxel_offset": list(info.offset_voxels[::-1]),
        "chunk_sizes": [list(chunk[::-1])],
        "encoding": "compressed_segmentation" if labels else "raw",
        **blocks,
        **({} if info.shard_shape is None else {"sharding": _sharding(info.shape, chunk, info.shard_shape)}),
    }


def _sharding(shape: Triple, chunk: Sequence[int], shard: Triple) -> dict[str, Any]:
    """Shards of as many chunks as `shard` holds, or fewer: what follows each other on the Z curve of chunks."""
    wanted = math.prod(s // c for s, c in zip(shard, chunk, strict=True)).bit_length() - 1
    there = sum((-(-s // c) - 1).bit_length() for s, c in zip(shape, chunk, strict=True))
    inside = min(wanted, there)
    return {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": inside // 2,  # chunks that lie together in the file
        "hash": "identity",
        "minishard_bits": inside - inside // 2,
        "shard_bits": there - inside,
        "minishard_index_encoding": "gzip",
        "data_encoding": "gzip",
    }


def delete(location: Location, settings: Settings) -> None:
    """Delete the volume with all scales, and whatever else lies below its prefix."""
    Objects(location, settings).delete_all()


def _zyx(xyz: Sequence[int]) -> Triple:
    x, y, z = (int(value) for value in xyz)
    return z, y, x


def _kvstore(location: Location, settings: Settings) -> dict[str, Any]:
    if location.scheme == "file":
        return {"driver": "file", "path": f"{location.path}/"}
    _limit_silence(settings)
    bucket, _, key = location.path.partition("/")
    path = f"{key}/" if key else ""
    if location.scheme == "gs":
        return {"driver": "gcs", "bucket": bucket, "path": path}
    if location.scheme == "s3":
        spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": path}
        if endpoint := amazon_endpoint():
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
            spec |= {"endpoint": endpoint, "aws_region": region}
        if settings.storage_anonymous:
            spec["aws_credentials"] = {"type": "anonymous"}
        return spec
    raise InvalidVolume(
        f"{location}: precomputed cannot lie in memory://, tensorstore does not see that memory; use zarr or a file"
    )


def _limit_silence(settings: Settings) -> None:
    """Have tensorstore give up requests that are silent; without it one stalled request uses up the whole operation.

    It takes these limits from the environment alone, in whole seconds, when its first request is made.
    """
    seconds = str(max(1, round(min(settings.storage_request_timeout_s, settings.storage_timeout_s))))
    os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", seconds)
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", seconds)
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")


def _context(settings: Settings) -> Any:
    retries = {"max_retries": 5, "initial_delay": "1s", "max_delay": f"{min(16.0, settings.storage_timeout_s):g}s"}
    return ts.Context({"gcs_request_retries": retries, "s3_request_retries": retries})
