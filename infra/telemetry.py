"""Progress of a stage: a bar on a terminal, a line every 30 seconds in a log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

LOG_EVERY_S = 30.0


class StageProgress:
    """Shows chunks done, Mvoxel/s and time left of one stage; a context manager."""

    def __init__(self, stage: str, chunks: int, done: int = 0) -> None:
        self.stage, self.chunks, self.completed = stage, chunks, done
        self.voxels, self.began, self._logged = 0, time.monotonic(), time.monotonic()
        self._done_before = done
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>14}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task(stage, total=chunks, completed=done, rate="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def seconds(self) -> float:
        """Wall time since the stage began."""
        return time.monotonic() - self.began

    @property
    def rate(self) -> float:
        """Voxels per second since the stage began."""
        return self.voxels / max(self.seconds, 1e-9)

    def advance(self, voxels: int) -> None:
        """Count one chunk of `voxels` voxels as done."""
        self.completed += 1
        self.voxels += voxels
        self._bar.update(self._task, completed=self.completed, rate=f"{self.rate / 1e6:.2f} Mvoxel/s")
        now = time.monotonic()
        if self._bar.disable and now - self._logged >= LOG_EVERY_S:
            self._logged = now
            fresh = max(1, self.completed - self._done_before)
            left = (self.chunks - self.completed) * self.seconds / fresh
            logger.info(
                "%s: %d of %d chunks, %.2f Mvoxel/s, %.0f s left",
                self.stage,
                self.completed,
                self.chunks,
                self.rate / 1e6,
                left,
            )
