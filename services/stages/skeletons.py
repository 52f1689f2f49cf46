"""Skeletons of a segmentation of any size: trace chunk by chunk, then join the fragments of each segment.

What a chunk knows of its segments, voxels and fragments, goes through an exchange to the bucket of each segment, and a
bucket becomes one shard of the output. Only there it is known how large a segment is: what is too small within a chunk
is not traced, and dust that reaches a chunk's face is traced and dropped when it is joined. No pass over the
volume counts voxels beforehand.
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
from models.segmentation.region_graph import segment_sizes
from services.stages.skeletonize import SkeletonOptions, merge_fragments, overlap_box, possibly_large, skeletonize_chunk


@dataclass(frozen=True)
class SkeletonJob:
    """Which segmentation, what of it, and where the results go; picklable.

    `domain` is in voxels of the segmentation, whose voxel (0, 0, 0) lies at `offset_voxels`. Markers go below
    `ledgers`, intermediates below `work`, results below `out` as `precomputed/`, tables of voxels and
    lengths as `segments/BUCKET.parquet` and, if asked for, `swc/ID.swc`.
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

    @property
    def grid(self) -> ChunkGrid:
        """Chunks in which segments are traced."""
        return ChunkGrid(self.domain, self.options.chunk_voxels)

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
    volume, ledger, grid, exchange = open_volume(job.segmentation), job.ledger("skeletonize"), job.grid, job.exchange

    def apply(chunk: Chunk) -> Report:
        box = overlap_box(chunk.box, job.domain)
        labels = volume.read(box)
        keep = possibly_large(labels, box, job.domain, job.options)
        placed = box.shifted(job.offset_voxels)
        fragments = dict(skeletonize_chunk(labels, placed, job.voxel_size_nm, options=job.options, keep=keep))
        ids, voxels = segment_sizes(labels[chunk.box.slices(box.start)].astype(np.uint64))
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
