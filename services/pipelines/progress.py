"""What a run says of itself while it runs, for `petavoxel status`: its stages, and what is running just now.

::

    progress/plan.json       every stage: key, chunks, voxels, and when done: seconds and chunks computed
    progress/running.json    every 10 s from the driver: the stage, what its workers are at, rate; gone after the end

Both are written by the driver alone, so their cost does not depend on the number of chunks.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from infra.attempt import now
from infra.objects import Folder
from models.errors import NotFound, StorageFailed

if TYPE_CHECKING:  # who only reads needs no Ray
    from infra.chunk_map import Started

logger = logging.getLogger(__name__)

PLAN, RUNNING = "progress/plan.json", "progress/running.json"
HEARTBEAT_S = 10.0


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a run: how many chunks and voxels it has, the phase it is part of, and what its last run took."""

    stage: str
    key: str
    chunks: int
    voxels: int
    phase: str = ""
    seconds: float = 0.0
    computed: int = 0
    computed_voxels: int = 0


def read_plan(folder: Folder) -> list[PlannedStage]:
    """The stages of the run below `folder`, in order; empty where no stage has begun yet.

    Raises `StorageFailed` where the plan is damaged.
    """
    try:
        content = folder.read_json(PLAN)
    except NotFound:
        return []
    try:
        return [PlannedStage(**stage) for stage in content["stages"]]
    except (KeyError, TypeError) as error:
        raise StorageFailed(f"{folder.at(PLAN)}: damaged, or of another version ({error})") from error


def write_plan(folder: Folder, stages: Iterable[PlannedStage], *, whole_phases: Container[str] = ()) -> None:
    """Add stages to the plan, or replace those of the same name, keeping what they took if the key is the same.

    Of `whole_phases` these are all stages: others that the plan has of them will never run, and leave it.
    """
    stages = list(stages)
    names = {stage.stage for stage in stages}
    before = {stage.stage: stage for stage in _readable_plan(folder)}
    plan = {name: stage for name, stage in before.items() if name in names or stage.phase not in whole_phases}
    for stage in stages:
        known = plan.get(stage.stage)
        if known is None or (known.key, known.chunks) != (stage.key, stage.chunks) or stage.seconds:
            plan[stage.stage] = stage
    if plan != before:
        folder.write_json(PLAN, {"stages": [asdict(stage) for stage in plan.values()]})


def _readable_plan(folder: Folder) -> list[PlannedStage]:
    try:
        return read_plan(folder)
    except StorageFailed as error:  # it describes; what is done is in the markers
        logger.warning("%s; written again", error)
        return []


class Heartbeat:
    """Tells every 10 s what the workers of a stage are at."""

    def __init__(self, folder: Folder, stage: str) -> None:
        self._folder, self._stage = folder, stage
        self._began, self._last = now(), 0.0
        self._running: dict[str, dict[str, Any]] = {}

    def started(self, event: Started) -> None:
        """A worker has begun with a chunk."""
        chunk = event.chunk
        self._running[chunk.name] = {"box": str(chunk.box), "host": event.host, "pid": event.pid, "since": now()}

    def ended(self, chunk: str) -> None:
        """A chunk was done or given up."""
        self._running.pop(chunk, None)

    def beat(self, voxels: int, seconds: float) -> None:
        """Write what is running if it is time; `voxels` were done in `seconds` since the stage began."""
        if time.monotonic() - self._last < HEARTBEAT_S:
            return
        self._last = time.monotonic()
        try:
            self._folder.write_json(
                RUNNING,
                {
                    "stage": self._stage,
                    "began": self._began,
                    "time": now(),
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "voxels": voxels,
                    "seconds": round(seconds, 1),
                    "chunks": self._running,
                },
            )
        except StorageFailed as error:  # the stage itself will say so if this lasts
            logger.warning("progress could not be written: %s", error)

    def end(self) -> None:
        """Nothing of this stage runs any more."""
        try:
            self._folder.delete([RUNNING])
        except StorageFailed as error:
            logger.warning("progress could not be removed: %s", error)
