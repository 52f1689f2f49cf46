"""Scores of a segmentation run over thresholds: its supervoxels against truth once, then its own merge tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.objects import Folder
from models.errors import InvalidInput, InvalidVolume, NotFound, RuntimeUnavailable, StorageFailed
from models.geometry import Box
from models.metrics.contingency import PredBackground
from models.metrics.sweep import SweepPoint, sweep
from models.segmentation.merge_tree import MergeTree
from services.evaluate import check_background
from services.label_pair import LabelPair, Progress, check_phase

_COLUMNS = ("a", "b", "affinity_sum", "face_count")
_STEP = Fraction(1, 50)


@dataclass(frozen=True)
class Sweep:
    """Scores by threshold, the highest first, and the convention under which they hold."""

    run: str
    truth: str
    box: Box
    floor: float
    threshold: float | None
    supervoxels: int
    pred_background: PredBackground
    points: tuple[SweepPoint, ...]

    @property
    def best(self) -> SweepPoint:
        """The point of the smallest VOI sum; of equal ones the highest threshold."""
        return min(self.points, key=lambda point: point.voi.total)

    @property
    def best_rand(self) -> SweepPoint:
        """The point of the smallest adapted Rand error."""
        return min(self.points, key=lambda point: point.rand.error)

    def as_json(self) -> dict[str, Any]:
        """One JSON object, a list of points."""
        return {
            "run": self.run,
            "truth": self.truth,
            "box": str(self.box),
            "merge_tree_floor": self.floor,
            "threshold_of_the_run": self.threshold,
            "supervoxels": self.supervoxels,
            "best_threshold_voi": self.best.threshold,
            "best_threshold_rand": self.best_rand.threshold,
            "points": [
                {
                    "threshold": point.threshold,
                    "voi_split": point.voi.split,
                    "voi_merge": point.voi.merge,
                    "voi_sum": point.voi.total,
                    "adapted_rand_error": point.rand.error,
                    "adapted_rand_precision": point.rand.precision,
                    "adapted_rand_recall": point.rand.recall,
                    "cremi_score": point.cremi,
                    "segments": point.segments,
                }
                for point in self.points
            ],
            "conventions": {
                "ignored_truth": [0],
                "predicted_background": self.pred_background,
                "voi_unit": "bits",
                "merged": "pairs whose mean affinity is at least the threshold",
            },
        }


def evaluate_sweep(
    run: str,
    truth: str,
    *,
    thresholds: Sequence[float | Fraction] | None = None,
    box: str | Box | None = None,
    pred_background: PredBackground = "segment",
    on_progress: Progress | None = None,
) -> Sweep:
    """Score the run at the prefix `run` against a label volume at many thresholds.

    `truth` has the shape of the run's image or of its box; `box` is in the truth's voxels. `thresholds`: 0 to 1,
    default every 0.02 from the floor of the run's merge tree. Each point is exactly what relabelling the supervoxels at
    that threshold would score. Raises `NotFound` for what is no run, `InvalidInput` for thresholds outside the tree,
    and as `services.evaluate.evaluate_segmentation`.
    """
    check_background(pred_background)
    folder = Folder(run)
    described = folder.read_json("run.json")
    try:
        covered, options = Box.parse(described["box"]), described["options"]["agglomeration"]
        chosen = float(options["threshold"])
        floor = min(chosen, float(options["tree_floor"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidVolume(f"{folder.at('run.json')}: expected the description of a segmentation, {error}") from error
    check_phase(folder, described, "agglomerate")
    wanted = list(thresholds) if thresholds is not None else _every_step(floor)
    below = [float(t) for t in wanted if float(t) < floor]
    if below:
        raise InvalidInput(f"thresholds: the merge tree of {folder.url} goes down to {floor:g}, got {below[0]:g}")
    pair = LabelPair.open(folder.at("supervoxels.zarr"), truth, box, covered=covered)
    basins, tree = read_basins(folder), read_merges(folder, "agglomeration/merges")
    table = pair.table(on_progress=on_progress)
    points = sweep(table, tree, wanted, basins=basins, pred_background=pred_background)
    supervoxels = int(np.unique(table.pred).size)
    return Sweep(folder.url, pair.truth.url, pair.box, floor, chosen, supervoxels, pred_background, tuple(points))


def read_basins(folder: Folder) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The basin of every supervoxel: two columns, supervoxel and basin; supervoxels in several chunks come repeatedly.

    Raises `NotFound` where there is no table.
    """
    files = list(_files(folder, "agglomeration/basin_of"))
    if not files:
        raise NotFound(f"{folder.at('agglomeration/basin_of')}: no basins there; has the agglomeration finished?")
    tables = [folder.read_table(file) for file in files]
    supervoxels, basins = (np.concatenate([table[name] for table in tables]) for name in ("supervoxel", "basin"))
    return supervoxels, basins


def read_merges(folder: Folder, name: str) -> MergeTree:
    """All merges below `name`: the Parquet files of the folder itself and of its levels 0, 1, ….

    Columns a, b, affinity_sum, face_count, as in `MergeTree`; rows in any order. Raises `NotFound` where there is no
    file, `InvalidVolume` for other columns.
    """
    files = list(_files(folder, name))
    if not files:
        raise NotFound(f"{folder.at(name)}: no merges there; has the agglomeration finished?")
    parts = []
    for file in files:
        columns = folder.read_table(file)
        missing = [column for column in _COLUMNS if column not in columns]
        if missing:
            raise InvalidVolume(f"{folder.at(file)}: expected columns {', '.join(_COLUMNS)}, missing {missing[0]}")
        parts.append(MergeTree(*(columns[column] for column in _COLUMNS)))
    return MergeTree.joined(parts)


def write_plot(result: Sweep, path: str | Path) -> None:
    """Draw VOI split, merge and sum, and adapted Rand error over thresholds; the name's ending says the format.

    Raises `RuntimeUnavailable` without matplotlib, `StorageFailed` where the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeUnavailable(f"plot: expected the package matplotlib to be installed ({error})") from error
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    x = [point.threshold for point in result.points]
    for name, values in (
        ("VOI sum", [p.voi.total for p in result.points]),
        ("VOI split", [p.voi.split for p in result.points]),
        ("VOI merge", [p.voi.merge for p in result.points]),
        ("adapted Rand error", [p.rand.error for p in result.points]),
    ):
        axes.plot(x, values, marker=".", label=name)
    axes.axvline(result.best.threshold, color="0.6", linestyle="--", label=f"best VOI: {result.best.threshold:g}")
    axes.set(xlabel="threshold (mean affinity)", ylabel="bits; Rand error 0 to 1", ylim=(0, None))
    axes.set_title(f"{result.run}\nagainst {result.truth}", fontsize=8)
    axes.legend()
    try:
        figure.savefig(path)
    except ValueError as error:
        raise InvalidInput(f"{path}: expected a name ending in .png, .svg or .pdf") from error
    except OSError as error:
        raise StorageFailed(f"{path}: the plot cannot be written ({error.strerror})") from error


def _every_step(floor: float) -> list[Fraction]:
    first = -(-Fraction(floor).limit_denominator(10**6) // _STEP)
    return [_STEP * i for i in range(int(first), int(1 / _STEP) + 1)]


def _files(folder: Folder, name: str) -> Iterator[str]:
    yield from _tables_in(folder, name, folder.names(name))
    level = 0
    while found := folder.names(f"{name}/{level}"):
        yield from _tables_in(folder, f"{name}/{level}", found)
        level += 1


def _tables_in(folder: Folder, name: str, found: Iterable[str]) -> Iterator[str]:
    for file in found:
        if file.endswith(".parquet"):
            yield f"{name}/{file}"
