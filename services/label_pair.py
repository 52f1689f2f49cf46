"""A prediction and its truth, placed on each other and read block by block: what every score of labels begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.ledger import Ledger
from infra.objects import Folder
from infra.volumes import Volume, open_volume
from infra.volumes.location import Location
from models.errors import InvalidInput, InvalidVolume
from models.geometry import Box, ChunkGrid, Triple
from models.metrics.contingency import ContingencyTable, contingency_table, merge_tables
from services.pipelines.progress import read_plan
from services.run import LAST, finished_with

_DECIDED = {
    "affinities.zarr": ("predict", "predict"),
    "supervoxels.zarr": ("watershed", "watershed"),
    "segmentation.zarr": ("cut", "relabel"),
}
"""The arrays of a run: the stage whose key decides the voxels, and the phase that writes them."""
_EXTENT = 128  # voxels of a read along an axis, about; 2 million voxels, 32 MB as two arrays of uint64

Progress = Callable[[int, int], None]
"""Gets voxels read and voxels in total after each block."""


@dataclass(frozen=True)
class LabelPair:
    """Two opened label volumes; picklable. `box` is the part of the truth to score, `shift` leads to the prediction."""

    pred: Volume
    truth: Volume
    box: Box
    shift: Triple

    @classmethod
    def open(
        cls, prediction: str, truth: str, box: str | Box | None = None, *, covered: Box | None = None
    ) -> LabelPair:
        """Open both and check that they fit.

        Both have the same shape; `box` then names a part of both. Or the prediction is of a part of the truth only:
        `box` says which, and has its shape; or `covered` does, and `box` is a part of that. The output prefix of a run
        stands for its segmentation, and the box of the run for `covered`. Raises the storage errors; `InvalidVolume`
        for volumes that are not integer labels or differ in shape, voxel size or offset, `InvalidInput` for a box that
        is not within.
        """
        run = None if covered is not None else segmentation_of_run(prediction)
        if run is not None:
            prediction, covered = run
        pred, true = open_volume(prediction), open_volume(truth)
        for volume in (pred, true):
            check_labels(volume)
        wanted = Box.parse(box) if isinstance(box, str) else box
        scored, shift = placement(pred, true, wanted, covered)
        return cls(pred, true, scored, shift)

    def described(self) -> dict[str, Any]:
        """Which volumes, as they are now, and what of them: what decides all that is measured."""
        return {
            "prediction": self.pred.url,
            "prediction_identity": voxels_identity(self.pred),
            "truth": self.truth.url,
            "truth_identity": voxels_identity(self.truth),
            "box": str(self.box),
        }

    def blocks(self, box: Box | None = None) -> Iterator[Box]:
        """Boxes of the truth that tile `box` (default: all), aligned to what the prediction stores as one piece."""
        within = self.box if box is None else box
        stored = self.pred.info.chunk_shape or (_EXTENT,) * 3
        extent = [n * max(1, _EXTENT // n) if n <= 2 * _EXTENT else _EXTENT for n in stored]
        start = [a - (a + s) % n for a, s, n in zip(within.start, self.shift, extent, strict=True)]
        grid = ChunkGrid(Box(_three(start), within.stop), _three(extent))
        for chunk in grid:
            block = chunk.box.intersection(within)
            if block.size:
                yield block

    def read(self, box: Box) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Prediction and truth of a box of the truth, (z, y, x) each."""
        return self.pred.read(box.shifted(self.shift)), self.truth.read(box)

    def table(
        self, box: Box | None = None, *, ignore_truth: tuple[int, ...] = (0,), on_progress: Progress | None = None
    ) -> ContingencyTable:
        """The contingency table of `box` (default: all), read block by block in bounded memory."""
        within = self.box if box is None else box
        return merge_tables(self._tables(within, ignore_truth, on_progress))

    def _tables(
        self, box: Box, ignore_truth: tuple[int, ...], on_progress: Progress | None
    ) -> Iterator[ContingencyTable]:
        done = 0
        for block in self.blocks(box):
            yield contingency_table(*self.read(block), ignore_truth=ignore_truth)
            done += block.size
            if on_progress is not None:
                on_progress(done, box.size)


def segmentation_of_run(url: str) -> tuple[str, Box] | None:
    """The labels of a run and the box of its image that they cover, None where `url` is no prefix of one.

    Raises `InvalidVolume` where the run's description is damaged, `InvalidInput` where not all labels have been written
    with its present options.
    """
    folder = None if Location.parse(url).member else Folder(url)
    if folder is None or not folder.exists("run.json"):
        return None
    described = folder.read_json("run.json")
    try:
        box = Box.parse(described["box"])
    except (KeyError, TypeError) as error:
        raise InvalidVolume(f"{folder.at('run.json')}: expected the description of a run, missing {error}") from error
    try:
        check_phase(folder, described, "relabel")
    except InvalidInput:  # skeletons come after all labels
        if not _all_done(folder, "relabel", described["keys"].get("relabel", "")):
            raise
    return folder.at("segmentation.zarr"), box


def check_phase(folder: Folder, described: Mapping[str, Any], phase: str) -> None:
    """Raise `InvalidInput` where a phase has not finished with the options of the run that `described` tells of.

    What it wrote may then be of other options, or in part. Without keys the description is not of a run of ours.
    """
    keys = described.get("keys")
    if isinstance(keys, dict) and (finished_with(folder, phase) or "never") != keys.get(LAST[phase]):
        raise InvalidInput(f"{folder.url}: expected a run whose {phase} has finished with its present options")


def _all_done(folder: Folder, stage: str, key: str) -> bool:
    done = Ledger(folder, stage, key).markers().done.get(key, ())
    return any((one.stage, one.key, one.chunks) == (stage, key, len(done)) for one in read_plan(folder))


def voxels_identity(volume: Volume) -> str:
    """A text that differs once other voxels are in a volume: its identity, and in a run the key of what decided them.

    The phases of a run write over its arrays in place, which `Volume.identity` need not show. Where the phase has not
    finished with the run's present options, the text says so. Raises `InvalidInput` while a phase that had finished is
    done again with other options: the voxels may then be of both. Raises `InvalidVolume` or `StorageFailed` for a
    damaged description.
    """
    location = volume.location
    names = location.path.split("/")
    at = next((place for place in reversed(range(1, len(names))) if names[place] in _DECIDED), None)
    if at is None:
        return volume.identity()
    decides, phase = _DECIDED[names[at]]
    folder = Folder(f"{location.scheme}://{'/'.join(names[:at]) or '/'}")
    described = folder.read_json("run.json") if folder.exists("run.json") else {}
    if "keys" not in described:
        return f"{volume.identity()} run={described['key']}" if "key" in described else volume.identity()
    finished = finished_with(folder, phase)
    if finished == "":
        raise InvalidInput(f"{volume.url}: {phase} is being done again with other options and has not finished")
    try:
        state = "" if finished == described["keys"][LAST[phase]] else f" unfinished, before: {finished}"
        return f"{volume.identity()} {decides}={described['keys'][decides]}{state}"
    except (KeyError, TypeError) as error:
        raise InvalidVolume(f"{folder.at('run.json')}: expected the description of a run, missing {error}") from error


def check_labels(volume: Volume) -> None:
    """Raise `InvalidVolume` unless a volume holds integer labels (z, y, x)."""
    info = volume.info
    if info.channels is not None or info.dtype.kind not in "iu":
        raise InvalidVolume(
            f"{volume.url}: expected integer labels (z, y, x), got {info.dtype} of shape {info.array_shape()}"
        )


def check_placement(volume: Volume, other: Volume) -> None:
    """Raise `InvalidVolume` where two volumes of one shape say that they differ in voxel size or place."""
    check_voxel_size(volume, other)
    offsets = volume.info.offset_voxels, other.info.offset_voxels
    if (0, 0, 0) not in offsets and offsets[0] != offsets[1]:  # an offset of 0 may just not be known
        raise InvalidVolume(f"{volume.url}: expected the truth's offset of {offsets[1]} voxels, got {offsets[0]}")


def check_voxel_size(volume: Volume, other: Volume) -> None:
    """Raise `InvalidVolume` where both voxel sizes are known and differ by more than 1 %."""
    sizes = volume.info.voxel_size_nm, other.info.voxel_size_nm
    if sizes[0] and sizes[1] and any(abs(a / b - 1) > 0.01 for a, b in zip(sizes[0], sizes[1], strict=True)):
        raise InvalidVolume(f"{volume.url}: expected the truth's voxel size of {sizes[1]} nm, got {sizes[0]} nm")


def placement(pred: Volume, truth: Volume, box: Box | None = None, covered: Box | None = None) -> tuple[Box, Triple]:
    """The box of the truth to score, and the shift to the prediction's voxels; arguments and errors as in `open`."""
    check_voxel_size(pred, truth)
    scored = truth.box if box is None else box
    if not truth.box.contains(scored) or scored.size == 0:
        raise InvalidInput(f"box: expected voxels within the truth's {truth.box}, got {scored}")
    if pred.info.shape == truth.info.shape:
        check_placement(pred, truth)
        return scored, (0, 0, 0)
    if covered is not None and covered.shape == pred.info.shape and truth.box.contains(covered):
        if box is not None and not covered.contains(box):
            raise InvalidInput(f"box: expected voxels within the predicted {covered}, got {box}")
        return box or covered, _three([-a for a in covered.start])
    if pred.info.shape == scored.shape:
        return scored, _three([-a for a in scored.start])
    raise InvalidVolume(
        f"{pred.url}: expected the shape of the truth {truth.info.shape} or of the box {scored.shape} "
        f"(--box says which part of the truth a smaller prediction covers), got {pred.info.shape}"
    )


def _three(values: list[int]) -> Triple:
    z, y, x = values
    return z, y, x
