"""Runs the stages of a pipeline: what is done already is left, what is missing is computed, and each stage is timed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import ray

from infra.chunk_map import ChunkFunction, Placement, map_chunks
from infra.ledger import Ledger
from infra.telemetry import StageProgress
from models.geometry import Chunk

logger = logging.getLogger(__name__)


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


def run_stage(
    ledger: Ledger,
    chunks: Iterable[Chunk],
    make: Callable[..., ChunkFunction],
    arguments: tuple[Any, ...],
    placement: Placement,
    summary: Summary,
) -> None:
    """Compute the chunks that the ledger does not know as done; raises `ChunkFailed` after trying all of them."""
    everything = list(chunks)
    done = ledger.done()
    pending = [chunk for chunk in everything if chunk.name not in done]
    totals: dict[str, float] = {}
    with StageProgress(ledger.stage, len(everything), len(everything) - len(pending)) as progress:
        for chunk, report in map_chunks(pending, make, arguments, placement):
            for name, value in report.items():
                totals[name] = totals.get(name, 0) + value
            progress.advance(chunk.box.size)
    summary.stages.append(
        StageSummary(ledger.stage, len(everything), len(pending), progress.seconds, progress.rate, totals)
    )
    logger.info("%s: %d of %d chunks computed in %.1f s", ledger.stage, len(pending), len(everything), progress.seconds)


def plain() -> Placement:
    """Stages of numpy and numba: one task per processor, one processor left to Ray Data."""
    return Placement(workers=max(1, int(ray.cluster_resources().get("CPU", 1)) - 1))


def inference(threads: int) -> Placement:
    """The prediction stage: a worker per GPU, or workers of `threads` threads on processors."""
    resources = ray.cluster_resources()
    if resources.get("GPU", 0):
        return Placement(workers=int(resources["GPU"]), gpus=1, stateful=True)
    processors = max(1, int(resources.get("CPU", 1)) - 1)
    return Placement(workers=max(1, processors // threads), cpus=min(threads, processors), stateful=True)


def inference_threads() -> int:
    """Threads of one prediction worker: all cores of a small machine, at most 8."""
    return max(1, min(8, os.cpu_count() or 1))
