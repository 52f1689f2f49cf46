"""Scores a segmentation of any size against truth, chunk by chunk in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

from infra.volumes import Volume, open_volume
from models.errors import InvalidInput, InvalidVolume
from models.geometry import Box, ChunkGrid, Triple
from models.metrics.contingency import ContingencyTable, PredBackground, contingency_table, merge_tables
from models.metrics.rand import AdaptedRand, adapted_rand
from models.metrics.voi import VOI, variation_of_information

_EXTENT = 128  # voxels of a read along an axis, about; 2 million voxels, 32 MB as two arrays of uint64


@dataclass(frozen=True)
class SegmentationScores:
    """Scores with the conventions under which they hold.

    `box` is the part of the truth that was read; `voxels_scored` those that count, `voxels_ignored` those with true id
    0, `voxels_unlabelled` those among the counted that the prediction leaves at 0 (scored as `pred_background` says).
    """

    prediction: str
    truth: str
    box: Box
    voi: VOI
    rand: AdaptedRand
    voxels_scored: int
    voxels_ignored: int
    voxels_unlabelled: int
    pred_background: PredBackground

    def as_json(self) -> dict[str, Any]:
        """One JSON object: flat names, VOI in bits."""
        return {
            "prediction": self.prediction,
            "truth": self.truth,
            "box": str(self.box),
            "voi_split": self.voi.split,
            "voi_merge": self.voi.merge,
            "voi_sum": self.voi.total,
            **{f"adapted_rand_{name}": value for name, value in asdict(self.rand).items()},
            "voxels_scored": self.voxels_scored,
            "voxels_ignored": self.voxels_ignored,
            "voxels_unlabelled": self.voxels_unlabelled,
            "conventions": {"ignored_truth": [0], "predicted_background": self.pred_background, "voi_unit": "bits"},
        }


def evaluate_segmentation(
    prediction: str,
    truth: str,
    *,
    box: str | Box | None = None,
    pred_background: PredBackground = "segment",
    on_progress: Callable[[int, int], None] | None = None,
) -> SegmentationScores:
    """Compare two label volumes (URLs) voxel by voxel; true 0 is ignored.

    Both have the same shape; `box` then scores a part of both. Or the prediction is of a part of the truth only: `box`
    says which, and has the prediction's shape. `on_progress` gets voxels read and in total after each chunk.

    Raises `NotFound` and the other storage errors; `InvalidVolume` for volumes that are not integer labels, do not fit
    each other in shape, voxel size or offset; `InvalidInput` for a wrong box or where no voxel has a true id.
    """
    if pred_background not in get_args(PredBackground):
        raise InvalidInput(f"pred_background: expected {', '.join(get_args(PredBackground))}, got {pred_background!r}")
    with open_volume(prediction) as pred_volume, open_volume(truth) as truth_volume:
        for volume in (pred_volume, truth_volume):
            _check_labels(volume)
        scored, shift = _placement(pred_volume, truth_volume, Box.parse(box) if isinstance(box, str) else box)
        table = merge_tables(_tables(pred_volume, truth_volume, scored, shift, on_progress))
    labelled = table.voxels - (table.unlabelled if pred_background == "ignore" else 0)
    return SegmentationScores(
        prediction=pred_volume.url,
        truth=truth_volume.url,
        box=scored,
        voi=variation_of_information(table, pred_background=pred_background),
        rand=adapted_rand(table, pred_background=pred_background),
        voxels_scored=labelled,
        voxels_ignored=table.ignored,
        voxels_unlabelled=table.unlabelled,
        pred_background=pred_background,
    )


def _check_labels(volume: Volume) -> None:
    info = volume.info
    if info.channels is not None or info.dtype.kind not in "iu":
        raise InvalidVolume(
            f"{volume.url}: expected integer labels (z, y, x), got {info.dtype} of shape {info.array_shape()}"
        )


def _placement(pred: Volume, truth: Volume, box: Box | None) -> tuple[Box, Triple]:
    """The box of the truth to score, and the shift that leads from it to the prediction's voxels."""
    sizes = pred.info.voxel_size_nm, truth.info.voxel_size_nm
    if sizes[0] and sizes[1] and any(abs(a / b - 1) > 0.01 for a, b in zip(sizes[0], sizes[1], strict=True)):
        raise InvalidVolume(f"{pred.url}: expected the truth's voxel size of {sizes[1]} nm, got {sizes[0]} nm")
    scored = truth.box if box is None else box
    if not truth.box.contains(scored) or scored.size == 0:
        raise InvalidInput(f"box: expected voxels within the truth's {truth.box}, got {scored}")
    if pred.info.shape == truth.info.shape:
        offsets = pred.info.offset_voxels, truth.info.offset_voxels
        if (0, 0, 0) not in offsets and offsets[0] != offsets[1]:  # an offset of 0 may just not be known
            raise InvalidVolume(f"{pred.url}: expected the truth's offset of {offsets[1]} voxels, got {offsets[0]}")
        return scored, (0, 0, 0)
    if pred.info.shape == scored.shape:
        z, y, x = scored.start
        return scored, (-z, -y, -x)
    raise InvalidVolume(
        f"{pred.url}: expected the shape of the truth {truth.info.shape} or of the box {scored.shape} "
        f"(--box says which part of the truth a smaller prediction covers), got {pred.info.shape}"
    )


def _tables(
    pred: Volume, truth: Volume, scored: Box, shift: Triple, on_progress: Callable[[int, int], None] | None
) -> Iterator[ContingencyTable]:
    stored = pred.info.chunk_shape or (_EXTENT,) * 3
    z, y, x = (extent * max(1, _EXTENT // extent) if extent <= 2 * _EXTENT else _EXTENT for extent in stored)
    done = 0
    for chunk in ChunkGrid(scored, (z, y, x)):
        yield contingency_table(pred.read(chunk.box.shifted(shift)), truth.read(chunk.box))
        done += chunk.box.size
        if on_progress is not None:
            on_progress(done, scored.size)
