"""Centre lines of segments: one chunk at a time, and the fragments of a segment joined into one skeleton.

The only module that imports kimimaro, which is GPL-3; everything else here goes on without it.

Skeletons are traced on a coarser level of the label pyramid, whose voxels are enough for a centre line: kimimaro's time
goes with the voxels. `labels`, boxes and voxel sizes here are those of that level.

Chunks are read with one more plane at their far faces (`overlap_box`), so that neighbours share a plane of voxels. On
it kimimaro ends both fragments at the same voxel of the same cross-section, and the fragments meet exactly::

    chunk 0 |-----------|          the planes of voxels at
    chunk 1             |-----------|   the bars are read by both

TEASAR works within a chunk, so a skeleton depends on the grid of chunks (though not on their order): skeletons have a
chunk shape of their own, `SkeletonOptions.chunk_voxels`, whatever the other stages use. Method: M. Sato et al.,
"TEASAR: tree-structure extraction algorithm for accurate and robust skeletons", Pacific Graphics 2000, DOI
10.1109/PCCGA.2000.883951.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from infra.skeletons import Skeleton
from models.errors import InvalidInput, InvalidVolume, RuntimeUnavailable
from models.geometry import Box, Triple, VoxelSize
from models.segmentation.relabel import distinct
from models.tracing.forest import clean_forest


class SkeletonOptions(BaseModel):
    """How segments become skeletons; the defaults suit neurites in FIB-SEM of about 10 nm.

    - `voxel_nm`: the pyramid's coarsest level is traced whose voxels are at most this large along the axes that it
      coarsens; 0 for the finest. At 32 no object was lost in the volumes of `tests/benchmarks/test_skeleton_levels.py`.
    - `scale`, `const_nm`: a traced path claims the voxels within scale x (distance to the border) + const_nm, so side
      branches shorter than that are not followed.
    - `pdrf_scale`, `pdrf_exponent`: how strongly paths are drawn to the middle.
    - `soma_*`: an object with voxels this far from the border is filled (detection), rooted in its middle (acceptance).
    - `dust_voxels`: segments with fewer voxels of the finest level in the whole volume have no skeleton, nor have
      separate parts with fewer that lie inside of a chunk.
    - `join_nm`: gaps up to this between parts of one segment are closed when fragments are merged.
    - `chunk_voxels`: extent of the chunks in which segments are traced, in voxels of the traced level.
    - `swc`: also write a file per segment, which a bucket does not like for millions of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    voxel_nm: float = Field(default=32.0, ge=0)
    scale: float = Field(default=1.5, ge=0)
    const_nm: float = Field(default=300.0, ge=0)
    pdrf_scale: float = Field(default=100_000.0, gt=0)
    pdrf_exponent: int = Field(default=4, ge=1)
    soma_detection_nm: float = Field(default=750.0, gt=0)
    soma_acceptance_nm: float = Field(default=3500.0, gt=0)
    soma_invalidation_scale: float = Field(default=1.0, ge=0)
    soma_invalidation_const_nm: float = Field(default=300.0, ge=0)
    dust_voxels: int = Field(default=1000, ge=0)
    join_nm: float = Field(default=50.0, ge=0)
    chunk_voxels: Triple = (128, 128, 128)
    swc: bool = True

    def teasar(self) -> dict[str, Any]:
        """The parameters under kimimaro's names."""
        return {
            "scale": self.scale,
            "const": self.const_nm,
            "pdrf_scale": self.pdrf_scale,
            "pdrf_exponent": self.pdrf_exponent,
            "soma_detection_threshold": self.soma_detection_nm,
            "soma_acceptance_threshold": self.soma_acceptance_nm,
            "soma_invalidation_scale": self.soma_invalidation_scale,
            "soma_invalidation_const": self.soma_invalidation_const_nm,
        }


def overlap_box(chunk: Box, volume: Box) -> Box:
    """The box to read for a chunk: one more plane at its far faces, within the volume."""
    return chunk.grown((0, 0, 0), (1, 1, 1)).intersection(volume)


def possibly_large(labels: NDArray[np.integer], box: Box, volume: Box, large: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Ids of the segments in `box`, which `labels` fill, that may be large enough for a skeleton; ascending.

    Those that are (`large`), and those that touch a face of the box inside `volume`. All others are dust: each would
    cost kimimaro milliseconds, and there may be many.
    """
    at_faces = [np.empty(0, np.uint64)]
    for axis in range(3):
        for side, open_face in ((0, box.start[axis] > volume.start[axis]), (-1, box.stop[axis] < volume.stop[axis])):
            if open_face:
                at_faces.append(np.unique(labels.take(side, axis)).astype(np.uint64))
    found = distinct(np.concatenate([large, *at_faces]))
    kept: NDArray[np.uint64] = found[found != 0]
    return kept


def skeletonize_chunk(
    labels: NDArray[np.integer],
    box: Box,
    voxel_size_nm: VoxelSize,
    *,
    options: SkeletonOptions,
    keep: NDArray[np.uint64] | None = None,
    origin_nm: VoxelSize = (0.0, 0.0, 0.0),
) -> list[tuple[int, Skeleton]]:
    """Trace the segments of one chunk; return (segment id, fragment) by ascending id.

    `labels` is (z, y, x) of any integer dtype with ids from 0 to 2^64 - 1, 0 is background; `box` says where it lies in
    the volume (for chunks of a grid: `overlap_box`). `keep` names the ids to trace (default: all). Vertices are centres
    of voxels, (index + 0.5) x voxel size + `origin_nm`. Parts of one voxel have no fragment. Deterministic.

    Raises `InvalidVolume` where labels are not integers from 0, or do not fill the box; `RuntimeUnavailable` without
    kimimaro.
    """
    if labels.dtype.kind not in "iu" or labels.shape != box.shape:
        raise InvalidVolume(
            f"labels: expected integers of shape {box.shape} for box {box}, got {labels.dtype} of shape {labels.shape}"
        )
    if labels.dtype.kind == "i" and labels.size and int(labels.min()) < 0:
        raise InvalidVolume(f"labels: expected ids of at least 0, got {int(labels.min())} in box {box}")
    if not all(np.isfinite(size) and size > 0 for size in voxel_size_nm):
        raise InvalidInput(f"voxel_size_nm: expected three numbers above 0, got {voxel_size_nm}")
    numbered, ids = _numbered(labels, keep)
    if len(ids) == 1:
        return []
    traced = _kimimaro().skeletonize(
        numbered.T,  # x, y, z in Fortran order: no copy is turned around
        teasar_params=options.teasar(),
        anisotropy=voxel_size_nm[::-1],
        dust_threshold=0,  # dust is a matter of the whole segment
        fix_branching=True,
        fix_borders=True,
        in_place=True,
        progress=False,
        parallel=1,
    )
    fragments = []
    for number in sorted(traced):
        skeleton = traced[number]
        local = np.rint(skeleton.vertices.astype(np.float64) / voxel_size_nm[::-1])[:, ::-1]
        # From whole voxel numbers, so that neighbouring chunks get the same float32 for a shared voxel.
        vertices = (local + box.start + 0.5) * voxel_size_nm + origin_nm
        fragments.append((int(ids[number]), Skeleton(vertices.astype(np.float32), skeleton.edges, skeleton.radii)))
    return fragments


def merge_fragments(fragments: Sequence[Skeleton], *, options: SkeletonOptions) -> Skeleton:
    """Join the fragments of one segment at the vertices they share; the same skeleton for any order of fragments.

    The result is a forest, normally one tree: cycles are opened, gaps up to `join_nm` closed and side branches removed
    that TEASAR would not have followed in one piece (see `clean_forest`). A shared vertex takes the smaller radius, as
    each chunk sees only the borders within it. Vertices are sorted by z, y, x. No fragment gives an empty skeleton.
    """
    if not fragments:
        return Skeleton(np.empty((0, 3), np.float32), np.empty((0, 2), np.uint32), np.empty(0, np.float32))
    firsts = np.cumsum([0, *(len(fragment.vertices) for fragment in fragments)])
    vertices, inverse = np.unique(
        np.concatenate([fragment.vertices for fragment in fragments]), axis=0, return_inverse=True
    )
    inverse = inverse.reshape(-1)
    radii = np.full(len(vertices), np.inf, dtype=np.float32)
    np.minimum.at(radii, inverse, np.concatenate([fragment.radii for fragment in fragments]))
    edges = np.concatenate(
        [fragment.edges.astype(np.int64) + first for fragment, first in zip(fragments, firsts, strict=False)]
    )
    reach = options.scale * radii + options.const_nm
    alive, kept = clean_forest(vertices, inverse[edges], radii, reach_nm=reach, join_nm=options.join_nm)
    numbers = np.cumsum(alive) - 1
    return Skeleton(vertices[alive], numbers[kept].astype(np.uint32), radii[alive])


def _numbered(
    labels: NDArray[np.integer], keep: NDArray[np.uint64] | None
) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
    """Labels renamed to 0, 1, 2, … by ascending kept id, and those ids (0 first): small numbers for kimimaro."""
    import fastremap

    found = fastremap.unique(labels).astype(np.uint64)
    found = found[found != 0]
    kept = found if keep is None else found[np.isin(found, keep)]
    ids = np.concatenate([np.zeros(1, np.uint64), kept])
    if len(ids) == 1:
        return np.zeros((0, 0, 0), np.uint32), ids
    table = {int(segment): number for number, segment in enumerate(ids)}
    renamed = fastremap.remap(
        np.array(labels, dtype=np.uint64, order="C"), {**dict.fromkeys(found.tolist(), 0), **table}, in_place=True
    )
    return renamed.astype(np.uint32), ids


def _kimimaro() -> Any:
    try:
        import kimimaro
    except ImportError as error:
        raise RuntimeUnavailable(f"skeletons: expected the package kimimaro to be installed ({error})") from error
    return kimimaro
