"""How far a run is: read from its prefix alone, so it works beside a running pipeline, on a bucket, after a crash."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from infra.chunk_names import ChunkNames
from infra.ledger import Ledger
from infra.objects import Folder
from models.errors import NotFound, StorageFailed
from services.pipelines.progress import RUNNING, PlannedStage, read_plan

SILENT_S = 60.0
"""A driver that has written nothing for so long is taken for dead."""
MOST_FAILURES = 100
"""Failures whose causes are read; more are only counted."""

State = Literal["waiting", "running", "interrupted", "failed", "done"]


@dataclass(frozen=True)
class ChunkAt:
    """A chunk that runs or failed: its box, and where it runs since when, or the cause."""

    chunk: str
    box: str
    note: str


@dataclass(frozen=True)
class StageStatus:
    """One stage: chunks in all, done and failed; what runs; voxels per second and seconds left where known."""

    stage: str
    state: State
    chunks: int
    done: int
    failed: int
    running: tuple[ChunkAt, ...]
    failures: tuple[ChunkAt, ...]
    voxels_per_s: float | None
    seconds_left: float | None


@dataclass(frozen=True)
class RunStatus:
    """A run: whether it is complete, whether a driver is at work, its last sign of life, and its stages in order."""

    url: str
    complete: bool
    alive: bool
    last_sign: str
    stages: tuple[StageStatus, ...]

    def as_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return asdict(self)


def run_status(out: str) -> RunStatus:
    """Read the status of the run below `out`; a listing per stage, whatever the number of chunks.

    Raises `NotFound` where no run is.
    """
    folder = Folder(out)
    if not folder.exists("run.json"):
        raise NotFound(f"{folder.url}: expected the output prefix of a run, there is no run.json")
    complete = folder.exists("progress/complete.json")
    beat = _heartbeat(folder)
    alive = bool(beat) and _age_s(beat.get("time", "")) < SILENT_S
    last_sign = f"{beat['time']}, process {beat.get('pid')} on {beat.get('host')}" if beat.get("time") else ""
    stages = [
        _stage(folder, plan, beat if beat.get("stage") == plan.stage else {}, alive) for plan in read_plan(folder)
    ]
    return RunStatus(folder.url, complete, alive, last_sign, tuple(stages))


def _stage(folder: Folder, plan: PlannedStage, beat: dict[str, Any], alive: bool) -> StageStatus:
    ledger = Ledger(folder, plan.stage, plan.key)
    markers = ledger.markers()
    finished = markers.done.get(plan.key, ChunkNames())
    failed = sorted(markers.failed - finished)
    causes = [(name, ledger.failure(name)) for name in failed[:MOST_FAILURES]]
    running = tuple(
        ChunkAt(name, known["box"], f"process {known['pid']} on {known['host']} since {known['since']}")
        for name, known in sorted(beat.get("chunks", {}).items())
        if alive and name not in finished
    )
    done = min(len(finished), plan.chunks)
    rate = _rate(plan, beat)
    left = plan.voxels * (1 - done / plan.chunks) / rate if rate and beat and alive else None
    return StageStatus(
        stage=plan.stage,
        state=_state(plan, done, len(failed), bool(beat), alive),
        chunks=plan.chunks,
        done=done,
        failed=len(failed),
        running=running,
        failures=tuple(ChunkAt(name, cause.get("box", ""), cause.get("cause", "")) for name, cause in causes),
        voxels_per_s=rate,
        seconds_left=left,
    )


def _state(plan: PlannedStage, done: int, failed: int, beats: bool, alive: bool) -> State:
    if done == plan.chunks:
        return "done"
    if beats and alive:
        return "running"
    if failed:
        return "failed"
    return "interrupted" if done or beats else "waiting"


def _rate(plan: PlannedStage, beat: dict[str, Any]) -> float | None:
    voxels, seconds = (beat["voxels"], beat["seconds"]) if beat else (plan.computed_voxels, plan.seconds)
    return float(voxels / seconds) if voxels and seconds else None


def _heartbeat(folder: Folder) -> dict[str, Any]:
    try:
        return folder.read_json(RUNNING)
    except NotFound:
        return {}
    except StorageFailed:  # a damaged heartbeat tells nothing, and the next one replaces it
        return {}


def _age_s(time: str) -> float:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    except ValueError:
        return float("inf")
