"""`petavoxel demo`: segment a real crop that ships with the code, score it against truth, and write a picture."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from infra.objects import Folder
from infra.volumes import open_volume
from services.evaluate import SegmentationScores, evaluate_segmentation
from services.overlay import write_overlay
from services.pipelines.preparation import Request, check, prepare
from services.pipelines.segment import segment
from services.pipelines.stage import Summary
from services.run import SegmentOptions

CROP = Path(__file__).parent / "fib25_crop.h5"
MODEL = "fib25-affinity"


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made: stages, scores against truth, wall seconds of all stages, and the picture."""

    summary: Summary
    scores: SegmentationScores
    seconds: float
    voxels: int
    picture: Path


def demo(out: Path) -> DemoResult:
    """Segment the crop into `out` on the Ray that this process belongs to; what a finished run left there is redone."""
    folder, image = Folder(str(out)), f"{CROP}:/raw"
    if folder.exists("progress/complete.json") and folder.read_json("run.json").get("image") == open_volume(image).url:
        folder.remove("")
    began = time.monotonic()
    summary = segment(prepare(check(Request(image, str(out), MODEL, SegmentOptions()))))
    seconds = time.monotonic() - began
    labels = open_volume(folder.at("segmentation.zarr"))
    truth = open_volume(f"{CROP}:/neurons")
    scores = evaluate_segmentation(labels.url, truth.url)
    picture = out / "overlay.png"
    raw = open_volume(image)
    write_overlay(
        raw.read(raw.box),
        labels.read(labels.box),
        picture,
        voxel_size_nm=(10.0, 10.0, 10.0),
        caption=f"FIB-25, sections 110-160: image, petavoxel, truth; VOI {scores.voi.total:.2f}",
        truth=truth.read(truth.box),
    )
    return DemoResult(summary, scores, seconds, labels.box.size, picture)
