"""`petavoxel export-precomputed`: a finished run to what Neuroglancer and proofreading tools open.

::

    DESTINATION/segmentation/   info, scales (compressed_segmentation), skeletons/, mesh/, segment_properties/
    DESTINATION/image/          info, scales, if asked for
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from infra.ledger import Ledger, digest
from infra.objects import Folder
from infra.shards import Sharding
from infra.volumes import Volume, VolumeInfo, create_pyramid, open_volume
from models.errors import InvalidInput, InvalidVolume, NotFound
from models.geometry import Box, ChunkGrid, Triple, VoxelSize
from services.pipelines.claim import claim
from services.pipelines.levels import checked_labels, label_levels
from services.pipelines.stage import Stage, Summary, run_stage
from services.stages.export import SHARDS_PER_TASK, ExportLevel, copy_image, copy_labels, copy_shards

_PIECE = (64, 64, 64)
_SHARD = (256, 256, 256)
_MOST_PROPERTIES = 200_000
"""Segments listed by size in `segment_properties`, which a viewer loads as a whole."""
_MOST_TABLES = 4096


@dataclass(frozen=True)
class Export:
    """What is exported from where; `layers` are folders of sharded objects by the name they get below segmentation/."""

    segmentation: Volume
    voxel_size_nm: VoxelSize
    shapes: list[Triple]
    factors: list[Triple]
    image: Volume | None
    image_begin: Triple
    layers: Mapping[str, str]
    tables: str | None
    sharded: bool
    out: Folder
    key: str


def prepare_export(run: str, destination: str, *, image: bool, sharded: bool, meshes: str | None) -> Export:
    """Find what there is to export of the run at prefix `run`, and claim `destination`; nothing is copied yet.

    `sharded` stores 256^3 voxels as one object, else 64^3. `meshes` is the output of `petavoxel mesh`; None takes
    meshes/ in the run, if it is there. Raises `NotFound` for what is no run, `InvalidInput` where it has not finished,
    `RunConflict` where `destination` holds something else.
    """
    folder = Folder(run)
    if not folder.exists("run.json"):
        raise NotFound(f"{run}: no run is there, expected run.json")
    if not folder.exists("progress/complete.json"):
        raise InvalidInput(f"{run}: expected a finished run; the same `petavoxel segment` again finishes it")
    described = folder.read_json("run.json")
    segmentation, voxel_size = checked_labels(folder.at("segmentation.zarr"))
    shapes, factors = label_levels(segmentation, voxel_size)
    picture, begin = _image_of(described, run) if image else (None, (0, 0, 0))
    layers = _layers_of(folder, meshes)
    tables = folder.at("skeletons/segments") if "skeletons" in layers else None
    held = {name: Folder(url).read_json("info") for name, url in layers.items()}
    identity = picture.identity() if picture else None
    key = digest("export", described.get("key"), segmentation.identity(), identity, held, sharded)
    out = Folder(destination)
    exported = {"exported_from": folder.url, "image": picture and picture.url, "layers": layers, "sharded": sharded}
    claim(out, {"key": key, **exported})
    return Export(segmentation, voxel_size, shapes, factors, picture, begin, layers, tables, sharded, out, key)


def export_precomputed(export: Export) -> Summary:
    """Export, on the Ray that this process belongs to. A second call goes on where the first stopped.

    Raises `ChunkFailed` where chunks failed repeatedly.
    """
    summary = Summary()
    if not export.out.exists("progress/complete.json"):
        create_targets(export)
        for stage in export_stages(export):
            run_stage(stage, summary)
        export.out.write_json("progress/complete.json", {"key": export.key})
    return summary


def _layers_of(folder: Folder, meshes: str | None) -> dict[str, str]:
    """Folders of a run's skeletons and meshes, as far as they are there."""
    layers = {"skeletons": folder.at("skeletons/precomputed"), "mesh": folder.at("meshes/precomputed")}
    if meshes is not None:
        layers["mesh"] = Folder(meshes).at("precomputed")
        if not Folder(layers["mesh"]).exists("info"):
            raise NotFound(f"{meshes}: expected an output of `petavoxel mesh`, with precomputed/info")
    return {name: url for name, url in layers.items() if Folder(url).exists("info")}


def create_targets(export: Export) -> None:
    """Write all info objects, or find those of the interrupted export."""
    properties = _segment_properties(export)
    names = {name: name for name in export.layers}
    if properties is not None:
        names["segment_properties"] = "segment_properties"
    source = export.segmentation.info
    steps = _steps(export.factors)
    labels = _info(export, source, np.dtype("uint64"), source.offset_voxels, names)
    create_pyramid(_layer(export, "segmentation"), labels, steps, exists="reuse")
    if properties is not None:
        export.out.write_json("segmentation/segment_properties/info", properties)
    for name, url in export.layers.items():
        export.out.write_json(f"segmentation/{name}/info", Folder(url).read_json("info"))
    if export.image is not None:
        offset = export.image.info.offset_voxels
        z, y, x = (o + b for o, b in zip(offset, export.image_begin, strict=True))
        picture = _info(export, source, export.image.info.dtype, (z, y, x), {})
        create_pyramid(_layer(export, "image"), picture, steps, exists="reuse")


def export_stages(export: Export) -> Iterator[Stage]:
    """The stages, in order; a level of the image needs the one before."""
    target = _layer(export, "segmentation")
    for level in range(len(export.shapes)):
        ledger = _ledger(export, f"segmentation_{level}")
        task = ExportLevel(export.segmentation.url, level, (0, 0, 0), (1, 1, 1), target, level)
        yield Stage(ledger, _grid(target, level), copy_labels, (task, ledger))
    for name, url in export.layers.items():
        ledger, sharding = _ledger(export, name), Sharding.of(Folder(url).read_json("info").get("sharding"), url)
        blocks = ChunkGrid(Box((0, 0, 0), (1 << sharding.shard_bits, 1, 1)), (SHARDS_PER_TASK, 1, 1))
        copied = export.out.at(f"segmentation/{name}")
        yield Stage(ledger, blocks, copy_shards, (url, copied, sharding, ledger))
    if export.image is not None:
        target = _layer(export, "image")
        first = ExportLevel(export.image.url, 0, export.image_begin, (1, 1, 1), target, 0)
        steps = enumerate(_steps(export.factors), start=1)
        tasks = [first, *(ExportLevel(target, n - 1, (0, 0, 0), step, target, n) for n, step in steps)]
        for task in tasks:
            ledger = _ledger(export, f"image_{task.into}")
            yield Stage(ledger, _grid(target, task.into), copy_image, (task, ledger))


def _image_of(described: Mapping[str, Any], run: str) -> tuple[Volume, Triple]:
    """The image of a run, and where in it the segmentation begins."""
    try:
        url, begin = described["image"], Box.parse(described["box"]).start
    except KeyError as error:
        raise InvalidVolume(f"{run}/run.json: expected a run of `petavoxel segment`, {error} is missing") from error
    image = open_volume(url)
    if image.info.channels is not None:
        raise InvalidVolume(f"{image.url}: expected an image (z, y, x), got {image.info.channels} channels")
    return image, begin


def _info(
    export: Export, source: VolumeInfo, dtype: np.dtype[Any], offset: Triple, layers: Mapping[str, str]
) -> VolumeInfo:
    return VolumeInfo(
        shape=source.shape,
        dtype=dtype,
        voxel_size_nm=source.voxel_size_nm,
        offset_voxels=offset,
        chunk_shape=_PIECE,
        shard_shape=_SHARD if export.sharded else None,
        attributes=dict(layers),
    )


def _steps(factors: list[Triple]) -> list[Triple]:
    """Factors of each level against the one before."""
    return [(z // a, y // b, x // c) for (a, b, c), (z, y, x) in pairwise(factors)]


def _layer(export: Export, name: str) -> str:
    return f"precomputed://{export.out.at(name)}"


def _ledger(export: Export, stage: str) -> Ledger:
    return Ledger(export.out, stage, export.key)


def _grid(target: str, level: int) -> ChunkGrid:
    """Boxes of about 256^3 voxels that share no stored object."""
    from infra.volumes.precomputed import PrecomputedVolume

    volume = open_volume(target, level=level)
    pieces = volume.write_shape if isinstance(volume, PrecomputedVolume) else _SHARD
    z, y, x = (piece * max(1, extent // piece) for piece, extent in zip(pieces, _SHARD, strict=True))
    return ChunkGrid(volume.box, (z, y, x))


def _segment_properties(export: Export) -> dict[str, Any] | None:
    """Volume and length of the largest segments, None where they are not known or too many tables hold them."""
    tables = Folder(export.tables) if export.tables else None
    names = [] if tables is None else tables.names()
    if tables is None or not names or len(names) > _MOST_TABLES:
        return None
    read = [tables.read_table(name) for name in names]
    ids, voxels, cable = (
        np.concatenate([table[column] for table in read]) for column in ("segment", "voxels", "cable_nm")
    )
    order = np.lexsort((ids, -voxels))[:_MOST_PROPERTIES]
    voxel_um3 = float(np.prod(export.voxel_size_nm)) / 1e9
    numbers = {"volume_um3": voxels[order] * voxel_um3, "cable_um": cable[order] / 1e3}
    return {
        "@type": "neuroglancer_segment_properties",
        "inline": {
            "ids": [str(segment) for segment in ids[order].tolist()],
            "properties": [
                {"id": name, "type": "number", "data_type": "float32", "values": np.float32(values).tolist()}
                for name, values in numbers.items()
            ],
        },
    }
