"""True skeletons for run lengths: from files, or traced from true labels.

Files are SWC (one, or a folder of them), Neuroglancer's precomputed skeletons, and the graph files (.npz) of the AxonEM
challenge. Labels are traced here, in one process; `petavoxel skeletonize` does it on a cluster and its output is
read like any other folder.
"""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from infra.objects import Folder
from infra.skeletons import PrecomputedSkeletons, Skeleton, from_swc
from infra.volumes import Volume
from infra.volumes.location import Location
from models.errors import InvalidInput, InvalidVolume, NotFound
from models.geometry import Box, ChunkGrid, VoxelSize
from models.metrics.contingency import ContingencyTable, contingency_table, merge_tables
from services.stages.skeletonize import SkeletonOptions, merge_fragments, overlap_box, skeletonize_chunk

Cable = tuple[int, NDArray[np.floating], NDArray[np.integer]]
"""Id, vertices (n, 3) z, y, x in nm, and edges (m, 2) of one skeleton."""


def has_skeletons(url: str) -> bool:
    """Whether `url` names files of skeletons, by its ending or by what lies there; False for a volume."""
    path = PurePosixPath(Location.parse(url).path)
    if path.suffix.lower() == ".swc":
        return True
    if path.suffix.lower() == ".npz":
        return Location.parse(url).member is None
    if path.suffix:
        return False
    folder = Folder(url)
    return _is_precomputed(folder) or any(name.endswith(".swc") for name in _names(folder))


def read_skeletons(url: str, *, unit: str = "nm") -> list[Cable]:
    """All skeletons of a file or folder, by id; `unit` (nm or um) is that of SWC files that do not say their own.

    An SWC file's id is its name where that is a number, else its place in the sorted list, from 1. Raises `NotFound`,
    `InvalidVolume` for damaged files.
    """
    location = Location.parse(url)
    path = PurePosixPath(location.path)
    if path.suffix.lower() == ".npz":
        return _read_graph_file(url)
    if path.suffix.lower() == ".swc":
        folder, names = Folder(url[: -len(path.name)] or "."), [path.name]
    else:
        folder = Folder(url)
        if _is_precomputed(folder):
            store = PrecomputedSkeletons(folder.url)
            return [_cable(segment, store.read(segment)) for segment in sorted(store.ids())]
        names = [name for name in _names(folder) if name.endswith(".swc")]
        folder = folder if any(name.endswith(".swc") for name in folder.names()) else folder / "swc"
    if not names:
        raise NotFound(f"{url}: expected skeletons: .swc files, precomputed skeletons or a graph .npz")
    stems = [PurePosixPath(name).stem for name in names]
    numbered = all(stem.isdigit() for stem in stems)
    found = []
    for number, (name, stem) in enumerate(zip(names, stems, strict=True), start=1):
        try:
            skeleton = from_swc(folder.read(name).decode(errors="replace"), unit=unit)
        except InvalidInput as error:
            raise InvalidVolume(f"{folder.at(name)}: {error}") from error
        found.append(_cable(int(stem) if numbered else number, skeleton))
    return found


def trace_labels(truth: Volume, box: Box, voxel_size_nm: VoxelSize, options: SkeletonOptions) -> list[Cable]:
    """Skeletons of the true labels in `box`, traced by kimimaro chunk by chunk; background 0 has none.

    Memory holds one chunk and all skeletons. Raises `RuntimeUnavailable` without kimimaro.
    """
    grid = ChunkGrid(box, options.chunk_voxels)
    sizes = merge_tables(_sizes(truth.read(chunk.box)) for chunk in grid)
    large = np.sort(sizes.truth[sizes.counts >= options.dust_voxels])
    fragments: dict[int, list[Skeleton]] = defaultdict(list)
    for chunk in grid:
        whole = overlap_box(chunk.box, box)
        placed = whole.shifted(truth.info.offset_voxels)
        for segment, skeleton in skeletonize_chunk(
            truth.read(whole), placed, voxel_size_nm, options=options, keep=large
        ):
            fragments[segment].append(skeleton)
    return [_cable(segment, merge_fragments(fragments[segment], options=options)) for segment in sorted(fragments)]


def _sizes(labels: NDArray[np.integer]) -> ContingencyTable:
    return contingency_table(np.zeros(labels.shape, np.uint8), labels)


def _cable(segment: int, skeleton: Skeleton) -> Cable:
    return segment, skeleton.vertices, skeleton.edges


def _names(folder: Folder) -> list[str]:
    """Files of the folder, or of its swc/ where it is what `petavoxel skeletonize` wrote."""
    own = folder.names()
    return own if any(name.endswith(".swc") for name in own) else folder.names("swc")


def _is_precomputed(folder: Folder) -> bool:
    return folder.exists("info") and folder.read_json("info").get("@type") == "neuroglancer_skeletons"


def _read_graph_file(url: str) -> list[Cable]:
    """A graph of the AxonEM challenge: ids, lengths, nodes (skeleton, z, y, x in nm), then edges per skeleton."""
    location = Location.parse(url)
    folder, name = Folder(str(PurePosixPath(location.path).parent)), PurePosixPath(location.path).name
    if location.scheme != "file":
        raise InvalidInput(f"{url}: graph files are read from local disks only, got {location.scheme}://")
    try:
        with np.load(io.BytesIO(folder.read(name)), allow_pickle=False) as bundle:
            arrays = [bundle[key] for key in bundle.files]
        ids, nodes, edges = arrays[0], arrays[2], arrays[3:]
        owners = nodes[:, 0].astype(np.int64)
        found = []
        for index, segment in enumerate(ids):
            own = np.flatnonzero(owners == index)
            pairs = edges[index].reshape(-1, 3)[:, :2].astype(np.int64)
            found.append((int(segment), nodes[own, 1:4].astype(np.float64), np.searchsorted(own, pairs)))
    except (ValueError, IndexError, KeyError, OSError) as error:
        if isinstance(error, NotFound):
            raise
        raise InvalidVolume(f"{url}: expected a graph of skeletons (ids, lengths, nodes, edges …), {error}") from error
    return found
