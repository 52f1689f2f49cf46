"""What of a run is brought to Neuroglancer's precomputed format: labels and image box by box, shards file by file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infra.chunk_map import ChunkFunction, Report
from infra.ledger import Ledger
from infra.objects import Folder
from infra.shards import Sharding
from infra.volumes import open_volume
from infra.written import Written
from models.errors import NotFound
from models.geometry import Box, Chunk, Triple
from models.segmentation.coarsening import means

SHARDS_PER_TASK = 16


@dataclass(frozen=True)
class ExportLevel:
    """One level of a volume on its way; picklable.

    `source` is the box `begin` and onwards of a volume's `level`; `target` a precomputed volume, whose level `into` is
    written. `factor` is by what the target is coarser than the source.
    """

    source: str
    level: int
    begin: Triple
    factor: Triple
    target: str
    into: int


def copy_labels(task: ExportLevel, ledger: Ledger) -> ChunkFunction:
    """The stage that writes one box of labels, as uint64."""
    source = open_volume(task.source, level=task.level)
    target = open_volume(task.target, "r+", level=task.into)

    def apply(chunk: Chunk) -> Report:
        labels = source.read(chunk.box.shifted(task.begin)).astype(np.uint64, copy=False)
        target.write(chunk.box, labels)
        ledger.mark(chunk, [Written.voxels(target.url, chunk.box, labels, task.into)])
        return {}

    return apply


def copy_image(task: ExportLevel, ledger: Ledger) -> ChunkFunction:
    """The stage that writes one box of an image, averaged where the target is coarser."""
    source = open_volume(task.source, level=task.level)
    target = open_volume(task.target, "r+", level=task.into)

    def apply(chunk: Chunk) -> Report:
        start, stop = (
            tuple(a * f + b for a, f, b in zip(corner, task.factor, task.begin, strict=True))
            for corner in (chunk.box.start, chunk.box.stop)
        )
        voxels = source.read(Box(start, stop).intersection(source.box))  # type: ignore[arg-type]
        voxels = means(voxels, task.factor) if task.factor != (1, 1, 1) else voxels
        target.write(chunk.box, voxels)
        ledger.mark(chunk, [Written.voxels(target.url, chunk.box, voxels, task.into)])
        return {}

    return apply


def copy_shards(source: str, target: str, sharding: Sharding, ledger: Ledger) -> ChunkFunction:
    """The stage that copies the files of a block of shards; shards without objects have none."""
    here, there = Folder(source), Folder(target)

    def apply(chunk: Chunk) -> Report:
        outputs = []
        for shard in range(chunk.box.start[0], chunk.box.stop[0]):
            name = sharding.name(shard)
            try:
                content = here.read(name)
            except NotFound:
                continue
            outputs.append(there.write(name, content))
        ledger.mark(chunk, outputs)
        return {"files": len(outputs)}

    return apply
