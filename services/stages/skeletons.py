"""Skeletons of a segmentation of any size: count voxels, trace chunk by chunk, join the fragments of each segment.

Fragments are spilled to the work folder in buckets by segment id, so a joining worker holds one bucket of segments,
never all of them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from infra.chunk_map import ChunkFunction, Report
from infra.ledger import Ledger
from infra.objects import Arrays, Folder
from infra.skeletons import PrecomputedSkeletons, Skeleton, to_swc
from infra.volumes import open_volume
from models.geometry import Box, Chunk, ChunkGrid, VoxelSize
from models.segmentation.region_graph import segment_sizes
from services.stages.skeletonize import (
    SkeletonOptions,
    large_segments,
    merge_fragments,
    overlap_box,
    skeletonize_chunk,
)


@dataclass(frozen=True)
class SkeletonJob:
    """Which segmentation, what of it, and where the results go; picklable.

    `domain` is in voxels of the segmentation, whose voxel (0, 0, 0) lies at `offset_voxels`. Markers go below
    `ledgers`, intermediates below `work`, results below `out` as `swc/ID.swc` and `precomputed/`.
    """

    segmentation: str
    domain: Box
    voxel_size_nm: VoxelSize
    offset_voxels: tuple[int, int, int]
    options: SkeletonOptions
    out: str
    work: str
    ledgers: str
    key: str

    @property
    def grid(self) -> ChunkGrid:
        """Chunks in which segments are traced."""
        return ChunkGrid(self.domain, self.options.chunk_voxels)

    @property
    def buckets(self) -> list[Chunk]:
        """Units of the joining stage; the index is the bucket's number on the first axis."""
        count = max(1, min(256, len(self.grid) // 4))
        return [Chunk((i, 0, 0), Box((i, 0, 0), (i + 1, 1, 1))) for i in range(count)]

    def ledger(self, stage: str) -> Ledger:
        """Markers of one of this job's stages: count, skeletonize, skeletons."""
        return Ledger(Folder(self.ledgers), stage, self.key)


def count(job: SkeletonJob) -> ChunkFunction:
    """The stage that counts each segment's voxels per chunk."""
    volume, work, ledger = open_volume(job.segmentation), Folder(job.work), job.ledger("count")

    def apply(chunk: Chunk) -> Report:
        ids, voxels = segment_sizes(volume.read(chunk.box).astype(np.uint64, copy=False))
        ledger.mark(chunk, [work.write_table(f"counts/{chunk.name}.parquet", {"segment": ids, "voxels": voxels})])
        return {}

    return apply


def select(job: SkeletonJob) -> None:
    """Store which segments are large enough, from the counts of all chunks."""
    work = Folder(job.work)
    tables = [work.read_table(f"counts/{chunk.name}.parquet") for chunk in job.grid]
    ids, voxels = (np.concatenate([table[name] for table in tables]) for name in ("segment", "voxels"))
    work.write_table("large.parquet", {"segment": large_segments(ids, voxels, job.options)})


def trace(job: SkeletonJob) -> ChunkFunction:
    """The stage that traces one chunk and spills its fragments."""
    volume, work, ledger = open_volume(job.segmentation), Folder(job.work), job.ledger("skeletonize")
    keep = work.read_table("large.parquet")["segment"]
    buckets = len(job.buckets)

    def apply(chunk: Chunk) -> Report:
        box = overlap_box(chunk.box, job.domain)
        placed = box.shifted(job.offset_voxels)
        fragments = skeletonize_chunk(volume.read(box), placed, job.voxel_size_nm, options=job.options, keep=keep)
        spilled: dict[int, list[tuple[int, Skeleton]]] = defaultdict(list)
        for segment, fragment in fragments:
            spilled[segment % buckets].append((segment, fragment))
        arrays = [_pack(spilled[bucket]) for bucket in range(buckets)]
        outputs = [
            work.write_arrays(f"fragments/{bucket}/{chunk.name}.npz", packed) for bucket, packed in enumerate(arrays)
        ]
        ledger.mark(chunk, outputs)
        return {"fragments": len(fragments)}

    return apply


def join(job: SkeletonJob) -> ChunkFunction:
    """The stage that joins the segments of one bucket and writes them."""
    work, out, ledger = Folder(job.work), Folder(job.out), job.ledger("skeletons")
    precomputed = PrecomputedSkeletons(out.at("precomputed"))

    def apply(chunk: Chunk) -> Report:
        bucket = chunk.index[0]
        segments: dict[int, list[Skeleton]] = defaultdict(list)
        for part in job.grid:
            for segment, fragment in _unpack(work.read_arrays(f"fragments/{bucket}/{part.name}.npz")):
                segments[segment].append(fragment)
        joined = [(segment, merge_fragments(segments[segment], options=job.options)) for segment in sorted(segments)]
        joined = [(segment, skeleton) for segment, skeleton in joined if len(skeleton.vertices)]
        outputs = [out.write(f"swc/{segment}.swc", to_swc(skeleton).encode()) for segment, skeleton in joined]
        precomputed.write(joined)
        ledger.mark(chunk, outputs, {"skeletons": len(joined)})
        return {"skeletons": len(joined), "cable_nm": sum(s.cable_length_nm for _, s in joined)}

    return apply


def _pack(fragments: list[tuple[int, Skeleton]]) -> Arrays:
    skeletons = [skeleton for _, skeleton in fragments]
    return {
        "segment": np.array([segment for segment, _ in fragments], np.uint64),
        "vertex_count": np.array([len(s.vertices) for s in skeletons], np.int64),
        "edge_count": np.array([len(s.edges) for s in skeletons], np.int64),
        "vertices": np.concatenate([np.empty((0, 3), np.float32), *(s.vertices for s in skeletons)]),
        "edges": np.concatenate([np.empty((0, 2), np.uint32), *(s.edges for s in skeletons)]),
        "radii": np.concatenate([np.empty(0, np.float32), *(s.radii for s in skeletons)]),
    }


def _unpack(arrays: Arrays) -> list[tuple[int, Skeleton]]:
    at_vertex, at_edge = np.cumsum(arrays["vertex_count"])[:-1], np.cumsum(arrays["edge_count"])[:-1]
    parts = (
        zip(
            arrays["segment"],
            np.split(arrays["vertices"], at_vertex),
            np.split(arrays["edges"], at_edge),
            np.split(arrays["radii"], at_vertex),
            strict=True,
        )
        if arrays["segment"].size
        else ()
    )
    return [(int(segment), Skeleton(vertices, edges, radii)) for segment, vertices, edges, radii in parts]
