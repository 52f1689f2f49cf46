"""Scores a segmentation of any size on a cluster: contingency tables of chunks, added up, equal to those of the whole.

Writes `contingency.parquet` (predicted id, true id, voxels; true 0 included) and `scores.json` below the output prefix;
the same command again goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infra.ledger import digest
from infra.objects import Folder
from models.errors import RunConflict
from models.geometry import Box, Triple
from models.metrics.contingency import PredBackground, without_truth
from services.evaluate import SegmentationScores, check_background, scores_of
from services.label_pair import LabelPair
from services.pipelines.stage import Stage, Summary, run_stage
from services.stages.contingency import (
    ContingencyJob,
    add_up,
    contingency,
    read_contingency,
    whole_table,
    write_contingency,
)
from services.stages.measure import Measure, MeasureJob, measured

CHUNK: Triple = (512, 512, 512)
"""Voxels of one task; it reads them in blocks of about 128 on a side, so its memory does not follow them."""


def evaluate(
    prediction: str,
    truth: str,
    out: str,
    *,
    box: str | Box | None = None,
    pred_background: PredBackground = "segment",
    samples: int = 0,
    chunk_shape: Triple = CHUNK,
) -> tuple[SegmentationScores, Summary]:
    """Compare two label volumes on the Ray that this process belongs to.

    Arguments and errors as in `services.evaluate.evaluate_segmentation`; also `RunConflict` where `out` holds something
    else, and `ChunkFailed`.
    """
    check_background(pred_background)
    job = evaluation_job(LabelPair.open(prediction, truth, box), out, chunk_shape)
    summary = Summary()
    for stage in evaluation_stages(job):
        run_stage(stage, summary)
    scores = finish(job, pred_background, samples)
    return scores, summary


def evaluate_measure(measure: Measure, out: str, *, chunk_shape: Triple = CHUNK) -> tuple[Any, Summary]:
    """Measure chunks on the Ray that this process belongs to, and score what was measured; resumes as `evaluate` does.

    Also writes `scores.json`. Raises `RunConflict` where `out` holds something else, `ChunkFailed`, and the errors of
    the score itself.
    """
    job = measure_job(measure, out, chunk_shape)
    summary = Summary()
    run_stage(measure_stage(job), summary)
    return finish_measure(job), summary


def measure_job(measure: Measure, out: str, chunk_shape: Triple) -> MeasureJob:
    """Claim the output prefix for this measure; raises `RunConflict` where it holds something else."""
    source = {**measure.described(), "chunk_shape": list(chunk_shape)}
    folder = Folder(out)
    return MeasureJob(measure, chunk_shape, folder.url, _claim(folder, source))


def measure_stage(job: MeasureJob) -> Stage:
    """The one stage of a measure."""
    return Stage(job.ledger, job.grid, measured, (job,))


def finish_measure(job: MeasureJob) -> Any:
    """Score all chunks and store the scores. The parts stay, so that the same command costs nothing again."""
    scores = job.measure.scores(job.parts())
    job.folder.write_json("scores.json", scores.as_json())
    job.folder.write_json("progress/complete.json", {"key": job.key})
    return scores


def evaluation_job(pair: LabelPair, out: str, chunk_shape: Triple) -> ContingencyJob:
    """Claim the output prefix for this pair of volumes; raises `RunConflict` where it holds something else."""
    source = {**pair.described(), "chunk_shape": list(chunk_shape)}
    folder = Folder(out)
    return ContingencyJob(pair, chunk_shape, folder.url, _claim(folder, source))


def _claim(folder: Folder, source: dict[str, Any]) -> str:
    """The key of what is to be done at `folder`, stored there in words."""
    key = digest("evaluate", source)
    if folder.exists("run.json"):
        held = folder.read_json("run.json")
        if held.get("key") != key:
            raise RunConflict(f"{folder.url}: holds another run, of {held.get('prediction') or held.get('image')}")
    elif folder.occupied():
        raise RunConflict(f"{folder.url}: expected an empty output prefix or one of this evaluation")
    folder.write_json("run.json", {**source, "key": key})
    return key


def evaluation_stages(job: ContingencyJob) -> Iterator[Stage]:
    """The stages, in order; each needs the ones before it."""
    if job.folder.exists("contingency.parquet"):
        return
    yield Stage(job.ledger("contingency"), job.grid, contingency, (job,))
    for level in range(1, job.levels + 1):
        yield Stage(job.ledger(f"sum_{level}"), job.units(level), add_up, (job, level))


def finish(job: ContingencyJob, pred_background: PredBackground, samples: int) -> SegmentationScores:
    """Store the whole table and the scores, and remove what only the stages needed."""
    if not job.folder.exists("contingency.parquet"):
        write_contingency(job.folder, "contingency.parquet", whole_table(job))
    table = without_truth(read_contingency(job.folder, "contingency.parquet"))
    scores = scores_of(job.pair, table, pred_background, samples)
    job.folder.write_json("scores.json", scores.as_json())
    job.folder.write_json("progress/complete.json", {"key": job.key})
    job.folder.remove("work")
    return scores
