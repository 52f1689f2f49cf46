"""Runs the stages of a pipeline: what is done already is left, what is missing is computed, and each stage is timed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import ray

from infra.chunk_map import ChunkFunction, Placement, map_chunks
from infra.ledger import Ledger
from infra.telemetry import StageProgress
from models.geometry import Chunk

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline: its markers, its chunks, and `make(*arguments)`: the function for one chunk."""

    ledger: Ledger
    chunks: tuple[Chunk, ...]
    make: Callable[..., ChunkFunction]
    arguments: tuple[Any, ...]
    inference_threads: int = 0
    """Threads of a worker that runs a network; 0 for stages of numpy and numba."""


@dataclass(frozen=True)
class StageSummary:
    """What one stage did: chunks in all, chunks computed now, wall seconds, and voxels per wall second."""

    stage: str
    chunks: int
    computed: int
    seconds: float
    voxels_per_s: float
    totals: dict[str, float]


@dataclass
class Summary:
    """The stages of a run, in order."""

    stages: list[StageSummary] = field(default_factory=list)

    def as_json(self) -> list[dict[str, Any]]:
        """A JSON-able list, a dictionary per stage."""
        return [asdict(stage) for stage in self.stages]


def run_stage(stage: Stage, summary: Summary) -> None:
    """Compute the chunks that the ledger does not know as done; raises `ChunkFailed` after trying all of them."""
    name, done = stage.ledger.stage, stage.ledger.done()
    pending = [chunk for chunk in stage.chunks if chunk.name not in done]
    placement = _inference(stage.inference_threads) if stage.inference_threads else _plain()
    totals: dict[str, float] = {}
    with StageProgress(name, len(stage.chunks), len(stage.chunks) - len(pending)) as progress:
        for chunk, report in map_chunks(pending, stage.make, stage.arguments, placement):
            for figure, value in report.items():
                totals[figure] = totals.get(figure, 0) + value
            progress.advance(chunk.box.size)
    summary.stages.append(StageSummary(name, len(stage.chunks), len(pending), progress.seconds, progress.rate, totals))
    logger.info("%s: %d of %d chunks computed in %.1f s", name, len(pending), len(stage.chunks), progress.seconds)


def inference_threads() -> int:
    """Threads of one prediction worker: all cores of a small machine, at most 8."""
    return max(1, min(8, os.cpu_count() or 1))


def _plain() -> Placement:
    """Stages of numpy and numba: one task per processor, one processor left to Ray Data."""
    return Placement(workers=_processors())


def _inference(threads: int) -> Placement:
    """The prediction stage: a worker per GPU, or workers of `threads` threads on processors."""
    gpus = int(_resources().get("GPU", 0))
    if gpus:
        return Placement(workers=gpus, gpus=1, stateful=True)
    processors = _processors()
    return Placement(workers=max(1, processors // threads), cpus=min(threads, processors), stateful=True)


def _processors() -> int:
    """Logical processors of the cluster, one left to Ray Data."""
    return max(1, int(_resources().get("CPU", 1)) - 1)


def _resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources
