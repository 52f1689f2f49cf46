"""Runs the stages of a pipeline: what is done already is left, what is missing is computed, and each stage is timed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import ray

from infra.chunk_map import ChunkFunction, Done, Failed, Placement, Started, map_chunks
from infra.chunk_names import ChunkNames
from infra.cluster import cluster_resources, node_processors, own_processors
from infra.ledger import Ledger, Markers, why_again
from infra.metrics_export import StageCounters, stage_family
from infra.objects import Folder
from infra.settings import current_settings
from infra.telemetry import StageProgress
from models.geometry import ChunkGrid
from services.pipelines.pending import Pending
from services.pipelines.progress import Heartbeat, PlannedStage, write_plan

logger = logging.getLogger(__name__)

Needs = Literal["a processor", "processors", "a GPU", "endpoints"]
MOST_THREADS = 8
"""Threads of a worker that runs a network on processors; beyond, two workers are faster than one."""
SERVED_CPUS = 0.5
"""What a worker takes that reads, sends, and writes what endpoints predict."""


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline: its markers, its chunks, and `make(*arguments)`: the function for one chunk."""

    ledger: Ledger
    chunks: ChunkGrid
    make: Callable[..., ChunkFunction]
    arguments: tuple[Any, ...]
    needs: Needs = "a processor"
    """What a worker needs: a processor for numpy and numba; a GPU or `number` processors for a network, which it keeps
    loaded; or only the way to endpoints, for `number` workers."""
    number: int = 1
    phase: str = ""
    """The phase that the stage is part of; its intermediate results lie in work/PHASE."""

    def planned(self) -> PlannedStage:
        """The stage as it stands in the run's plan before it begins."""
        chunks = self.chunks
        return PlannedStage(self.ledger.stage, self.ledger.key, len(chunks), chunks.box.size, self.phase)


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

    def joined(self) -> list[StageSummary]:
        """The stages with all levels of an octree or a pyramid in one row: what a reader wants to see."""
        groups: dict[str, list[StageSummary]] = {}
        for stage in self.stages:
            groups.setdefault(stage_family(stage.stage), []).append(stage)
        return [_joined(name, stages) for name, stages in groups.items()]


def _joined(name: str, stages: list[StageSummary]) -> StageSummary:
    voxels = max(stage.voxels_per_s * stage.seconds for stage in stages)
    seconds = sum(stage.seconds for stage in stages)
    chunks, computed = (max(getattr(stage, figure) for stage in stages) for figure in ("chunks", "computed"))
    return StageSummary(name, chunks, computed, seconds, voxels / max(seconds, 1e-9), {})


def announce(stages: Iterable[Stage]) -> None:
    """Write all stages of a phase into the plan of its run before they begin: its status tells what is to come."""
    planned: dict[Folder, list[PlannedStage]] = {}
    for stage in stages:
        planned.setdefault(stage.ledger.folder, []).append(stage.planned())
    for folder, all_of_it in planned.items():
        write_plan(folder, all_of_it, whole_phases={stage.phase for stage in all_of_it} - {""})


def run_stage(stage: Stage, summary: Summary) -> None:
    """Compute the chunks that the ledger does not know as done; raises `ChunkFailed` after trying all of them."""
    ledger, plan = stage.ledger, stage.planned()
    write_plan(ledger.folder, [plan])
    pending, failed = _pending(stage)
    count = len(pending)
    totals: dict[str, float] = {}
    heartbeat, counters = Heartbeat(ledger.folder, ledger.stage), StageCounters(ledger.stage)
    with StageProgress(ledger.stage, len(stage.chunks), len(stage.chunks) - count) as progress:
        try:
            for event in map_chunks(pending, stage.make, stage.arguments, placement(stage)):
                match event:
                    case Started():
                        heartbeat.started(event)
                    case Done(chunk, report):
                        heartbeat.ended(chunk.name)
                        if chunk.name in failed:
                            ledger.forget_failures([chunk.name])
                        for figure, value in report.items():
                            before = totals.get(figure, 0)
                            largest = figure.startswith("largest_")
                            totals[figure] = max(before, value) if largest else before + value
                        progress.advance(chunk.box.size)
                        counters.done(chunk.box.size, report)
                    case Failed(chunk, cause, tries):
                        heartbeat.ended(chunk.name)
                        ledger.mark_failed(chunk.name, str(chunk.box), cause, tries)
                        counters.failed()
                heartbeat.beat(progress.voxels, progress.seconds)
        finally:
            if count:
                heartbeat.end()
    took = StageSummary(ledger.stage, len(stage.chunks), count, progress.seconds, progress.rate, totals)
    summary.stages.append(took)
    if count:
        spent = replace(plan, seconds=progress.seconds, computed=count, computed_voxels=progress.voxels)
        write_plan(ledger.folder, [spent])
    logger.info("%s: %d of %d chunks computed in %.1f s", took.stage, took.computed, took.chunks, took.seconds)


def _pending(stage: Stage) -> tuple[Pending, ChunkNames]:
    """Chunks that are not done, and which of them failed before; markers of other keys are removed."""
    ledger, markers = stage.ledger, stage.ledger.markers()
    pending = Pending.of(stage.chunks, markers.done.get(ledger.key, ChunkNames()))
    names = pending.names()
    if names and (markers.done or markers.failed):
        why = why_again(ledger, names, markers)
        logger.info("%s: %d of %d chunks to do (%s)", ledger.stage, len(names), len(stage.chunks), why)
    failed = markers.failed & names
    forget_others(ledger, markers)
    ledger.forget_failures(markers.failed - failed)
    return pending, failed


def forget_others(ledger: Ledger, markers: Markers) -> None:
    """Remove markers of other keys before anything is overwritten, lest they vouch for what is no longer there."""
    for key, names in markers.done.items():
        if key != ledger.key:
            ledger.with_key(key).forget(names)


def inference_threads() -> int:
    """Threads of one prediction worker on processors: those of the largest node, at most 8.

    On a single node, and where there is no cluster yet, one logical processor is left to Ray Data.
    """
    if not ray.is_initialized():
        return min(MOST_THREADS, own_processors())
    nodes = [int(number) for number in node_processors()] or [1]
    return max(1, min(MOST_THREADS, nodes[0] - 1 if len(nodes) == 1 else max(nodes)))


def placement(stage: Stage) -> Placement:
    """Where a stage runs, with the time limits of this installation.

    Stages of numpy and numba: one task per processor. Those of a network: a worker per GPU, or workers of
    `stage.number` processors, as many as each node has room for; where endpoints predict, as many light ones as keep
    the replicas busy. On a single node one processor is left to the driver.
    """
    settings, resources, nodes = current_settings(), cluster_resources(), node_processors()
    processors, gpus = int(resources["CPU"]), int(resources["GPU"])
    if not processors:
        logger.warning("the cluster has no processor yet; PETAVOXEL_CLUSTER_CPUS says how many one gets that grows")
    processors = max(1, processors if len(nodes) > 1 else processors - 1)
    limits: dict[str, Any] = {"timeout_s": settings.chunk_timeout_s, "stall_s": settings.stall_s}
    match stage.needs:
        case "a GPU":
            return Placement(workers=max(1, gpus), gpus=1, stateful=True, **limits)
        case "processors":
            threads = min(stage.number, processors)
            known = len(nodes) > 1 and settings.cluster_cpus is None
            workers = sum(int(number) // threads for number in nodes) if known else processors // threads
            return Placement(workers=max(1, workers), cpus=threads, stateful=True, **limits)
        case "endpoints":
            return Placement(workers=min(stage.number, 2 * processors), cpus=SERVED_CPUS, stateful=True, **limits)
        case _:
            return Placement(workers=processors, **limits)
