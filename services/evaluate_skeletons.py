"""Expected run length of a segmentation of any size: which segment each node of the true skeletons lies in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.objects import Arrays
from infra.volumes import Volume, open_volume
from infra.written import checksum
from models.errors import InvalidInput, InvalidVolume
from models.geometry import Box, VoxelSize
from models.metrics.contingency import ContingencyTable, contingency_table, merge_tables
from models.metrics.run_length import RunLength, RunLengthConvention, TrueSkeletons, cable_graph, expected_run_length
from services.evaluate import SEED
from services.label_pair import (
    LabelPair,
    Progress,
    check_labels,
    check_placement,
    check_voxel_size,
    segmentation_of_run,
    voxels_identity,
)
from services.stages.skeletonize import SkeletonOptions
from services.true_skeletons import Cable, has_skeletons, read_skeletons, trace_labels

_BLOCK = 128  # voxels of a read along an axis
_NOWHERE = -1  # a voxel's position on all axes, outside of every box


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


@dataclass(frozen=True, eq=False)
class RunLengthMeasure:
    """Which segment the nodes of the true skeletons lie in, for any box of the prediction. Picklable, with its nodes.

    `voxels`: int64 (n, 3), the nodes' voxels of the prediction; `mask`: the opened no-merge mask, if there is one.
    """

    pred: Volume
    mask: Volume | None
    graph: TrueSkeletons
    voxels: NDArray[np.int64]
    convention: RunLengthConvention
    samples: int
    told: dict[str, Any]

    @classmethod
    def open(
        cls,
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
    ) -> RunLengthMeasure:
        """Open a label volume, or a run's, and true skeletons: files (see `read_skeletons`), or labels to trace here.

        Vertices are in nm in the physical frame of the prediction, whose voxel (0, 0, 0) lies at its offset. `box` is
        in voxels of the prediction. `mask`: a volume of the prediction's shape, not 0 where no segment of a true
        skeleton may be. Raises the storage errors; `InvalidVolume` for volumes that do not fit or a voxel size that is
        not known, `InvalidInput` where no cable is left to score.
        """
        run = segmentation_of_run(prediction)
        pred = open_volume(run[0] if run else prediction, voxel_size_nm=voxel_size_nm)
        check_labels(pred)
        size = pred.info.voxel_size_nm
        if size is None:
            raise InvalidVolume(f"{pred.url}: its voxel size is not known; say it with --voxel-size")
        within = Box.parse(box) if isinstance(box, str) else box or pred.box
        if not pred.box.contains(within) or within.size == 0:
            raise InvalidInput(f"box: expected voxels within the prediction's {pred.box}, got {within}")
        opened = None if mask is None else _open_mask(pred, mask)
        if has_skeletons(truth):
            cables: Sequence[Cable] = read_skeletons(truth, unit=swc_unit)
            source = "files"
        else:
            cables, source = _true_cables(pred, truth, within, size, tracing or SkeletonOptions())
        graph, position = cable_graph(cables, spacing_nm=spacing_nm)
        voxels = np.floor(position / size).astype(np.int64) - pred.info.offset_voxels
        graph, voxels, outside = _within(graph, voxels, within, min_cable_nm)
        told = {
            "prediction": pred.url,
            "truth": truth,
            "skeletons": source,
            "box": within,
            "voxel_size_nm": size,
            "spacing_nm": spacing_nm,
            "min_cable_nm": min_cable_nm,
            "mask": mask,
            "edges_outside": outside,
        }
        return cls(pred, opened, graph, voxels, convention or RunLengthConvention(), samples, told)

    @property
    def box(self) -> Box:
        """What is scored, in voxels of the prediction."""
        box: Box = self.told["box"]
        return box

    def described(self) -> dict[str, Any]:
        """What decides which segments are found."""
        return {
            "score": "run length",
            "prediction_identity": voxels_identity(self.pred),
            "mask_identity": self.mask and voxels_identity(self.mask),
            "nodes": checksum([self.voxels]),
            **{name: str(value) for name, value in self.told.items()},
        }

    def measured(self, box: Box, on_progress: Progress | None = None) -> Arrays:
        """The nodes in `box` with their segments (0 left out), and voxels inside the mask by predicted id."""
        segments = segments_at(self.pred, self.voxels, box)
        nodes = np.flatnonzero(segments)
        masked = merge_tables(() if self.mask is None else [_masked(LabelPair(self.pred, self.mask, box, (0, 0, 0)))])
        if on_progress is not None:
            on_progress(box.size, box.size)
        return {"node": nodes, "segment": segments[nodes], "masked": masked.pred, "voxels": masked.counts}

    def scores(self, parts: Iterable[Arrays]) -> RunLengthScores:
        """The scores of what was measured in disjoint boxes."""
        segments, tables = np.zeros(len(self.voxels), np.uint64), []
        for part in parts:
            segments[part["node"]] = part["segment"]
            tables.append(ContingencyTable(part["masked"], np.ones_like(part["masked"]), part["voxels"]))
        masked = merge_tables(tables)
        result = expected_run_length(
            self.graph,
            segments,
            masked_segments=masked.pred,
            masked_voxels=masked.counts,
            convention=self.convention,
            rng=np.random.default_rng(SEED) if self.samples else None,
            samples=self.samples,
        )
        return RunLengthScores(**self.told, run_length=result)


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
) -> tuple[TrueSkeletons, NDArray[np.int64], int]:
    """The graph without edges that leave the box and skeletons that are shorter in it than asked.

    Nodes of the latter get voxels that lie nowhere, so they merge nothing; the number is that of edges outside.
    """
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
    left_out = (cable < min_cable_nm)[graph.skeleton]
    return clipped, np.where(left_out[:, None], _NOWHERE, voxels), int((~kept).sum())


def _open_mask(pred: Volume, url: str) -> Volume:
    mask = open_volume(url)
    if mask.info.shape != pred.info.shape or mask.info.channels is not None or mask.info.dtype.kind not in "iub":
        raise InvalidVolume(
            f"{mask.url}: expected a mask of the prediction's shape {pred.info.shape}, got {mask.info.dtype} of "
            f"{mask.info.array_shape()}"
        )
    check_placement(mask, pred)
    return mask


def _masked(pair: LabelPair) -> ContingencyTable:
    """Voxels inside the mask, which takes the place of the truth, by predicted id."""

    def tables() -> Iterator[ContingencyTable]:
        for block in pair.blocks():
            labels, inside = pair.read(block)
            yield contingency_table(labels, (inside != 0).astype(np.uint8))

    table = merge_tables(tables())
    hit = table.pred != 0
    return ContingencyTable(table.pred[hit], table.truth[hit], table.counts[hit])
