"""Skeletons of a segmentation of any size: trace chunk by chunk, then join the fragments of each segment.

What a chunk knows of its segments, voxels and fragments, goes through an exchange to the bucket of each segment, and a
bucket becomes one shard of the output. Only there it is known how large a segment is: what is too small within a chunk
is not traced, and dust that reaches a chunk's face is traced and dropped when it is joined. No pass over the
volume counts voxels beforehand.

Chunks are boxes of the pyramid's level that is traced. Voxels are counted on the finest level all the same, so dust and
sizes are exact; reading it takes a twentieth of the tracing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infra.chunk_map import ChunkFunction, Report
from infra.exchange import Exchange, Record
from infra.ledger import Ledger
from infra.objects import Folder
from infra.shards import Sharding
from infra.skeletons import PrecomputedSkeletons, Skeleton, decode_precomputed, encode_precomputed, to_swc
from infra.volumes import open_volume
from models.geometry import Box, Chunk, ChunkGrid, Triple, VoxelSize
from services.stages.counting import voxels_of_segments
from services.stages.skeletonize import SkeletonOptions, merge_fragments, overlap_box, possibly_large, skeletonize_chunk


@dataclass(frozen=True)
class SkeletonJob:
    """Which segmentation, what of it, and where the results go; picklable.

    `domain`, `voxel_size_nm` and `offset_voxels`, where voxel (0, 0, 0) lies, are those of the segmentation's finest
    level; `level` is traced, `factor` coarser. Markers go below `ledgers`, intermediates below `work`, results below
    `out` as `precomputed/`, tables of voxels and lengths as `segments/BUCKET.parquet` and, if asked for, `swc/ID.swc`.
    """

    segmentation: str
    domain: Box
    voxel_size_nm: VoxelSize
    offset_voxels: Triple
    options: SkeletonOptions
    out: str
    work: str
    ledgers: str
    key: str
    made_from: Mapping[str, Any] = field(default_factory=dict)
    """In words, what `key` is a digest of."""
    level: int = 0
    factor: Triple = (1, 1, 1)

    @property
    def traced(self) -> Box:
        """The voxels of the traced level that the domain touches."""
        start, stop = self.domain.start, self.domain.stop
        z, y, x = (a // f for a, f in zip(start, self.factor, strict=True))
        oz, oy, ox = (-(-b // f) for b, f in zip(stop, self.factor, strict=True))
        return Box((z, y, x), (oz, oy, ox))

    @property
    def grid(self) -> ChunkGrid:
        """Chunks in which segments are traced, in voxels of the traced level."""
        return ChunkGrid(self.traced, self.options.chunk_voxels)

    def finest(self, box: Box) -> Box:
        """The voxels of the finest level that a box of the traced level covers, within the domain."""
        (z, y, x), (oz, oy, ox), (fz, fy, fx) = box.start, box.stop, self.factor
        return Box((z * fz, y * fy, x * fx), (oz * fz, oy * fy, ox * fx)).intersection(self.domain)

    @property
    def traced_voxel_nm(self) -> VoxelSize:
        """Extent of a voxel of the traced level."""
        z, y, x = (size * f for size, f in zip(self.voxel_size_nm, self.factor, strict=True))
        return z, y, x

    @property
    def origin_nm(self) -> VoxelSize:
        """The corner of voxel (0, 0, 0), which all levels have in common."""
        z, y, x = (offset * size for offset, size in zip(self.offset_voxels, self.voxel_size_nm, strict=True))
        return z, y, x

    @property
    def exchange(self) -> Exchange:
        """How fragments come from the chunks to the shards of the output."""
        return Exchange(Folder(self.work) / "fragments", len(self.grid))

    @property
    def sharding(self) -> Sharding:
        """A shard per bucket."""
        return Sharding(self.exchange.bits)

    def ledger(self, stage: str) -> Ledger:
        """Markers of one of this job's stages."""
        return Ledger(Folder(self.ledgers), stage, self.key, self.made_from)


def trace(job: SkeletonJob) -> ChunkFunction:
    """The stage that traces one chunk and stores its fragments."""
    finest, ledger, grid, exchange = open_volume(job.segmentation), job.ledger("skeletonize"), job.grid, job.exchange
    volume = open_volume(job.segmentation, level=job.level)

    def apply(chunk: Chunk) -> Report:
        ids, voxels = voxels_of_segments(finest, job.finest(chunk.box), job.options.chunk_voxels)
        box = overlap_box(chunk.box, job.traced)
        labels = volume.read(box)
        keep = possibly_large(labels, box, job.traced, ids[voxels >= job.options.dust_voxels])
        traced = skeletonize_chunk(
            labels, box, job.traced_voxel_nm, options=job.options, keep=keep, origin_nm=job.origin_nm
        )
        fragments = dict(traced)
        counts = dict(zip(ids.tolist(), voxels.tolist(), strict=True))
        packed = {segment: encode_precomputed(fragment) for segment, fragment in fragments.items()}
        records = [
            Record(segment, counts.get(segment, 0), packed.get(segment, b""))
            for segment in sorted(counts.keys() | packed.keys())
        ]
        shards = job.sharding.shards(np.array([record.id for record in records], np.uint64))
        ledger.mark(chunk, [exchange.write(grid.rank(chunk), records, shards)])
        return {"fragments": len(fragments)}

    return apply


def join(job: SkeletonJob) -> ChunkFunction:
    """The stage that joins the segments of one bucket, one after the other, and writes them."""
    out, ledger, exchange = Folder(job.out), job.ledger("skeletons"), job.exchange
    precomputed = PrecomputedSkeletons(out.at("precomputed"))

    def apply(chunk: Chunk) -> Report:
        joined: list[tuple[int, Skeleton]] = []
        voxels: list[int] = []
        largest = (0, 0)
        for found in exchange.gather(chunk.index[0]):
            if found.count < job.options.dust_voxels or not found.contents:
                continue
            largest = max(largest, (sum(map(len, found.contents)), found.id))
            fragments = [decode_precomputed(content, f"fragment of {found.id}") for content in found.contents]
            skeleton = merge_fragments(fragments, options=job.options)
            if len(skeleton.vertices):
                joined.append((found.id, skeleton))
                voxels.append(found.count)
        cable = [skeleton.cable_length_nm for _, skeleton in joined]
        ids = np.array([segment for segment, _ in joined], np.uint64)
        table = {"segment": ids, "voxels": np.array(voxels, np.int64), "cable_nm": np.array(cable, np.float64)}
        outputs = [*precomputed.write(chunk.index[0], joined), out.write_table(f"segments/{chunk.name}.parquet", table)]
        if job.options.swc:
            outputs += [out.write(f"swc/{segment}.swc", to_swc(skeleton).encode()) for segment, skeleton in joined]
        ledger.mark(chunk, outputs, {"largest_segment": largest[1], "largest_segment_bytes": largest[0]})
        return {"skeletons": len(joined), "cable_nm": sum(cable)}

    return apply
