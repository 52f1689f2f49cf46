"""`petavoxel report`: a run on one HTML page: stages or training curves, scores, the worst mistakes, configuration."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infra.objects import Folder
from infra.volumes import Volume, open_volume
from models.errors import InvalidVolume, NotFound, RuntimeUnavailable
from models.geometry import Box, Triple, VoxelSize
from models.metrics.contingency import ContingencyTable
from models.metrics.objects import object_terms
from services.evaluate import SegmentationScores, scores_of
from services.label_pair import LabelPair
from services.overlay import blend
from services.report_page import Page
from services.sweep import Sweep, evaluate_sweep
from services.worst_objects import Kind, WorstObject, locate, worst_objects

_SHOWN_NM = 2500.0
"""Half the extent of a picture around a mistake, cut to `_SHOWN_VOXELS`."""
_SHOWN_VOXELS = 160
_COLUMN, _GAP = 360, 6
"""Pixels: width of a column of a picture, and between them."""


def write_report(
    run: str, out: str | None = None, *, truth: str | None = None, box: str | None = None, worst: int = 6
) -> str:
    """Write the page of a run and return its URL (default: report.html in the run).

    `run`: output prefix of `petavoxel segment`, or folder of `petavoxel train`. With `truth` (labels of the image's
    shape or the run's box) a segmentation is scored and swept over thresholds, and its `worst` splits and mergers are
    shown. Raises `NotFound` for what is no run, and the errors of reading and scoring.
    """
    folder = Folder(run)
    if folder.exists("run.json"):
        page = _segmentation_page(folder, truth, box, worst)
    elif folder.exists("config.yaml"):
        page = _training_page(folder)
    else:
        raise NotFound(f"{folder.url}: expected a run: run.json of a segmentation, or config.yaml of a training")
    target = out or folder.at("report.html")
    parent, _, name = target.rpartition("/")
    Folder(parent or ".").write(name, page.html().encode())
    return target


def _segmentation_page(folder: Folder, truth: str | None, box: str | None, worst: int) -> Page:
    described = folder.read_json("run.json")
    if "box" not in described or "options" not in described or "image" not in described:
        raise InvalidVolume(f"{folder.at('run.json')}: expected the description of a segmentation")
    model = described.get("model", {})
    page = Page(
        f"Segmentation {folder.url}", f"{described['image']}, box {described['box']}, model {model.get('name')}"
    )
    if folder.exists("progress/summary.json"):
        stages = folder.read_json("progress/summary.json")["stages"]
        page.section("Stages")
        page.table(
            ("stage", "chunks", "computed", "seconds", "Mvoxel/s"),
            [(s["stage"], s["chunks"], s["computed"], s["seconds"], s["voxels_per_s"] / 1e6) for s in stages],
        )
    else:
        page.text("The run has not finished: no summary of its stages.")
    if truth is not None:
        pair = LabelPair.open(folder.url, truth, box)
        found = _add_scores(page, pair, evaluate_sweep(folder.url, truth, box=box))
        _add_worst(page, pair, found, _Shown.of(described), worst)
    page.section("Configuration")
    page.preformatted(json.dumps(described, indent=1, sort_keys=True))
    return page


@dataclass(frozen=True)
class _Shown:
    """The image behind the labels, its voxel size, and the box of it that the run covers."""

    image: Volume
    voxel_size_nm: VoxelSize
    covered: Box

    @classmethod
    def of(cls, described: dict[str, Any]) -> _Shown:
        z, y, x = (float(size) for size in described["voxel_size_nm"])
        image = open_volume(str(described["image"]), voxel_size_nm=(z, y, x))
        return cls(image, (z, y, x), Box.parse(str(described["box"])))


def _add_scores(page: Page, pair: LabelPair, swept: Sweep) -> ContingencyTable:
    """Scores with intervals, and scores over thresholds; returns the table they come from."""
    table = pair.table()
    scores = scores_of(pair, table, "segment", 1000)
    page.section("Scores")
    page.text(f"Against {pair.truth.url}, box {pair.box}; true 0 is ignored, predicted 0 is one segment; VOI in bits.")
    page.table(("score", "value", "95 % interval over true objects"), _score_rows(scores))
    page.section("Thresholds")
    x = [point.threshold for point in swept.points]
    lines = [
        ("VOI sum", x, [point.voi.total for point in swept.points]),
        ("VOI split", x, [point.voi.split for point in swept.points]),
        ("VOI merge", x, [point.voi.merge for point in swept.points]),
        ("adapted Rand error", x, [point.rand.error for point in swept.points]),
    ]
    page.curves("Scores over thresholds", "threshold (mean affinity)", lines)
    page.text(
        f"Best VOI {swept.best.voi.total:.4f} at {swept.best.threshold:g}, best adapted Rand error "
        f"{swept.best_rand.rand.error:.4f} at {swept.best_rand.threshold:g}; the run's own is {swept.threshold:g}."
    )
    return table


def _add_worst(page: Page, pair: LabelPair, table: ContingencyTable, shown: _Shown, worst: int) -> None:
    terms = object_terms(table)
    kinds: tuple[tuple[Kind, str], ...] = (("split", "Worst splits"), ("merge", "Worst mergers"))
    for kind, heading in kinds:
        found = worst_objects(table, terms, kind, worst)
        page.section(heading)
        page.text(
            "The true objects that cost most bits of VOI this way. Only the segments and objects of the mistake are "
            "coloured."
        )
        page.table(
            ("object", "voxels", "bits", "segments", "others in its segment"),
            [(str(o.truth), o.voxels, o.cost_bits, o.segments, o.others) for o in found],
        )
        for item, place in zip(found, locate(pair, found), strict=True):
            page.picture(*_picture(pair, item, place, shown))


def _score_rows(scores: SegmentationScores) -> Iterator[tuple[object, ...]]:
    for name, value in (
        ("VOI split", scores.voi.split),
        ("VOI merge", scores.voi.merge),
        ("VOI sum", scores.voi.total),
        ("adapted Rand error", scores.rand.error),
        ("CREMI score", scores.cremi),
    ):
        key = name.lower().replace(" ", "_")
        yield name, value, str(scores.intervals.get(key, "too few objects"))


def _picture(pair: LabelPair, item: WorstObject, place: Triple, shown: _Shown) -> tuple[bytes, str]:
    """One section around a mistake as JPEG, and its caption: image, segments in question, true objects in question."""
    half = [min(_SHOWN_VOXELS, max(16, round(_SHOWN_NM / extent))) for extent in shown.voxel_size_nm[1:]]
    (z, y, x) = place
    around = Box((z, y - half[0], x - half[1]), (z + 1, y + half[0], x + half[1])).intersection(pair.box)
    pred, truth = (labels[0] for labels in pair.read(around))
    if item.kind == "split":
        segments = np.where(truth == item.truth, pred, 0)
        objects = np.where(truth == item.truth, truth, 0)
    else:
        segments = np.where(pred == item.segment, pred, 0)
        objects = np.where(pred == item.segment, truth, 0)
    origin = [a + b for a, b in zip(pair.shift, shown.covered.start, strict=True)]
    section = shown.image.read(around.shifted((origin[0], origin[1], origin[2])))[0].astype(np.float64)
    low, high = np.percentile(section, (0.5, 99.5))
    grey = Image.fromarray(np.uint8(255 * np.clip((section - low) / max(high - low, 1e-9), 0, 1)))
    heights = [extent * size for extent, size in zip(section.shape, shown.voxel_size_nm[1:], strict=True)]
    size = (_COLUMN, max(1, round(_COLUMN * heights[0] / heights[1])))
    base = np.asarray(grey.resize(size, Image.Resampling.BICUBIC))
    rows, columns = (np.arange(n) * extent // n for n, extent in zip(base.shape, section.shape, strict=True))
    nearest = np.ix_(rows, columns)
    panels = [np.repeat(base[..., None], 3, axis=2), blend(base, segments[nearest]), blend(base, objects[nearest])]
    gap = np.full((size[1], _GAP, 3), 255, np.uint8)
    sink = io.BytesIO()
    Image.fromarray(np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)).save(sink, "jpeg", quality=85)
    extent_um = " x ".join(f"{extent / 1000:.2f}" for extent in heights)
    caption = (
        f"object {item.truth}, {item.kind}: {item.cost_bits:.4f} bits; xy at {place} (z, y, x), {extent_um} um: "
        "image, segments, truth"
    )
    return sink.getvalue(), caption


def _training_page(folder: Folder) -> Page:
    page = Page(f"Training {folder.url}")
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise RuntimeUnavailable(f"report: expected the package tensorboard to be installed ({error})") from error
    logs = Path(folder.url) / "logs"
    if not logs.is_dir():
        raise NotFound(f"{logs}: no logs there; has the training begun?")
    events = EventAccumulator(str(logs), size_guidance={"scalars": 10_000})
    events.Reload()
    names: list[str] = sorted(events.Tags()["scalars"])
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition("/")[0], []).append(name)
    page.section("Curves")
    last = []
    for group, members in groups.items():
        lines = []
        for name in members:
            found = events.Scalars(name)
            values = [event.value for event in found]
            lines.append((name, [event.step for event in found], values))
            last.append((name, found[-1].step, values[-1], min(values), max(values)))
        page.curves(group, "step", lines)
    page.section("Last values")
    page.table(("figure", "step", "value", "smallest", "largest"), last)
    page.section("Configuration")
    page.preformatted(folder.read("config.yaml").decode())
    return page
