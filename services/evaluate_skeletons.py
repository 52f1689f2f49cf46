"""Expected run length of a segmentation of any size: which segment each node of the true skeletons lies in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.volumes import Volume, open_volume
from models.errors import InvalidInput, InvalidVolume
from models.geometry import Box, VoxelSize
from models.metrics.contingency import ContingencyTable, contingency_table, merge_tables
from models.metrics.run_length import RunLength, RunLengthConvention, TrueSkeletons, cable_graph, expected_run_length
from services.evaluate import SEED
from services.label_pair import LabelPair, check_labels, check_placement, check_voxel_size
from services.stages.skeletonize import SkeletonOptions
from services.true_skeletons import Cable, has_skeletons, read_skeletons, trace_labels

_BLOCK = 128  # voxels of a read along an axis


@dataclass(frozen=True)
class RunLengthScores:
    """ERL with everything that decides it.

    `skeletons`: where the true skeletons came from; `box`: the part of the prediction in which cable counts;
    `edges_outside`: edges left out because an end lies beyond it; `mask`: URL of the no-merge mask, or None.
    """

    prediction: str
    truth: str
    skeletons: str
    box: Box
    voxel_size_nm: VoxelSize
    spacing_nm: float | None
    min_cable_nm: float
    mask: str | None
    edges_outside: int
    run_length: RunLength

    def as_json(self) -> dict[str, Any]:
        """One JSON object: the numbers of the run length, and the conventions."""
        numbers = self.run_length.as_json()
        convention = numbers.pop("convention")
        return {
            "prediction": self.prediction,
            "truth": self.truth,
            "box": str(self.box),
            **numbers,
            "edges_outside": self.edges_outside,
            "conventions": {
                **convention,
                "true_skeletons": self.skeletons,
                "voxel_size_nm": list(self.voxel_size_nm),
                "node_spacing_nm": self.spacing_nm,
                "min_cable_nm": self.min_cable_nm,
                "no_merge_mask": self.mask,
                "runs": "all correct cable of one skeleton within one segment",
            },
        }


def evaluate_skeletons(
    prediction: str,
    truth: str,
    *,
    convention: RunLengthConvention | None = None,
    mask: str | None = None,
    box: str | Box | None = None,
    spacing_nm: float | None = None,
    min_cable_nm: float = 0.0,
    swc_unit: str = "nm",
    tracing: SkeletonOptions | None = None,
    voxel_size_nm: VoxelSize | None = None,
    samples: int = 1000,
) -> RunLengthScores:
    """Score a label volume against true skeletons: files (see `read_skeletons`), or a label volume that is traced here.

    Vertices are in nm in the physical frame of the prediction, whose voxel (0, 0, 0) lies at its offset. `box` is in
    voxels of the prediction. `mask`: a volume of the prediction's shape, not 0 where no segment of a true skeleton may
    be. Raises the storage errors; `InvalidVolume` for volumes that do not fit or a voxel size that is not known,
    `InvalidInput` where no cable is left to score.
    """
    pred = open_volume(prediction, voxel_size_nm=voxel_size_nm)
    check_labels(pred)
    size = pred.info.voxel_size_nm
    if size is None:
        raise InvalidVolume(f"{pred.url}: its voxel size is not known; say it with --voxel-size")
    within = Box.parse(box) if isinstance(box, str) else box or pred.box
    if not pred.box.contains(within) or within.size == 0:
        raise InvalidInput(f"box: expected voxels within the prediction's {pred.box}, got {within}")
    if has_skeletons(truth):
        cables: Sequence[Cable] = read_skeletons(truth, unit=swc_unit)
        source = "files"
    else:
        cables, source = _true_cables(pred, truth, within, size, tracing or SkeletonOptions())
    graph, position = cable_graph(cables, spacing_nm=spacing_nm)
    voxels = np.floor(position / size).astype(np.int64) - pred.info.offset_voxels
    graph, outside = _within(graph, voxels, within, min_cable_nm)
    segments = segments_at(pred, voxels, within)
    masked = None if mask is None else _masked(pred, mask, within, np.unique(segments))
    result = expected_run_length(
        graph,
        segments,
        masked_segments=None if masked is None else masked.pred,
        masked_voxels=None if masked is None else masked.counts,
        convention=convention or RunLengthConvention(),
        rng=np.random.default_rng(SEED) if samples else None,
        samples=samples,
    )
    return RunLengthScores(pred.url, truth, source, within, size, spacing_nm, min_cable_nm, mask, outside, result)


def segments_at(volume: Volume, voxels: NDArray[np.int64], box: Box) -> NDArray[np.uint64]:
    """The label at each voxel (n, 3) z, y, x of a volume; 0 outside `box`. Reads only blocks that hold a voxel."""
    found = np.zeros(len(voxels), np.uint64)
    inside = np.flatnonzero(_inside(voxels, box))
    _, block = np.unique(voxels[inside] // _BLOCK, axis=0, return_inverse=True)
    order = np.argsort(block.reshape(-1), kind="stable")
    if not inside.size:
        return found
    for group in np.split(inside[order], np.cumsum(np.bincount(block.reshape(-1)))[:-1]):
        low, high = voxels[group].min(axis=0), voxels[group].max(axis=0) + 1
        part = Box((int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2])))
        labels = volume.read(part)
        found[group] = labels[tuple((voxels[group] - low).T)].astype(np.uint64)
    return found


def _inside(voxels: NDArray[np.int64], box: Box) -> NDArray[np.bool_]:
    return np.asarray(((voxels >= box.start) & (voxels < box.stop)).all(axis=1), dtype=np.bool_)


def _true_cables(
    pred: Volume, truth: str, box: Box, size: VoxelSize, tracing: SkeletonOptions
) -> tuple[Sequence[Cable], str]:
    """Skeletons of a true label volume: of the prediction's shape, or placed by the offsets of both."""
    labels = open_volume(truth)
    check_labels(labels)
    check_voxel_size(labels, pred)
    z, y, x = (a - b for a, b in zip(pred.info.offset_voxels, labels.info.offset_voxels, strict=True))
    if labels.info.shape == pred.info.shape:
        check_placement(labels, pred)
        part, moved = box, (z, y, x)
    else:
        part, moved = box.shifted((z, y, x)), (0, 0, 0)
        if not labels.box.contains(part):
            raise InvalidVolume(
                f"{labels.url}: expected the prediction's shape {pred.info.shape}, or to contain its box "
                f"{box.shifted(pred.info.offset_voxels)} of the physical frame; got shape {labels.info.shape} at "
                f"{labels.info.offset_voxels}"
            )
    traced = trace_labels(labels, part, size, tracing)
    cables = [(name, vertices + np.multiply(moved, size), edges) for name, vertices, edges in traced]
    settings = ", ".join(f"{key} {value:g}" for key, value in tracing.teasar().items())
    return cables, f"labels traced by kimimaro ({settings}; dust {tracing.dust_voxels} voxels)"


def _within(
    graph: TrueSkeletons, voxels: NDArray[np.int64], box: Box, min_cable_nm: float
) -> tuple[TrueSkeletons, int]:
    """The graph without edges that leave the box, and without skeletons that are shorter in it than asked."""
    kept = _inside(voxels, box)[graph.edges].all(axis=1)
    owner = graph.skeleton[graph.edges[:, 0]]
    cable = np.bincount(owner[kept], weights=graph.lengths_nm[kept], minlength=graph.ids.size)
    long_enough = kept & (cable[owner] >= min_cable_nm)
    if not long_enough.any():
        raise InvalidInput(
            f"run length: expected true skeletons of at least {min_cable_nm:g} nm within {box}, got none of "
            f"{graph.ids.size} skeletons with {int((~kept).sum())} edges outside"
        )
    clipped = TrueSkeletons(graph.ids, graph.skeleton, graph.edges[long_enough], graph.lengths_nm[long_enough])
    return clipped, int((~kept).sum())


def _masked(pred: Volume, url: str, box: Box, wanted: NDArray[np.uint64]) -> ContingencyTable:
    """Voxels inside the mask by predicted id, for the ids in `wanted`."""
    mask = open_volume(url)
    if mask.info.shape != pred.info.shape or mask.info.channels is not None or mask.info.dtype.kind not in "iub":
        raise InvalidVolume(
            f"{mask.url}: expected a mask of the prediction's shape {pred.info.shape}, got {mask.info.dtype} of "
            f"{mask.info.array_shape()}"
        )
    check_placement(mask, pred)
    pair = LabelPair(pred, mask, box, (0, 0, 0))

    def tables() -> Iterator[ContingencyTable]:
        for block in pair.blocks():
            labels, inside = pair.read(block)
            yield contingency_table(labels, (inside != 0).astype(np.uint8))

    table = merge_tables(tables())
    hit = np.isin(table.pred, wanted) & (table.pred != 0)
    return ContingencyTable(table.pred[hit], table.truth[hit], table.counts[hit])
