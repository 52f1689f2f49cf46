"""Peak memory of work in a process of its own."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Peak:
    """MB at the peak, MB before the work began, processor seconds of the work and what it returned."""

    mb: float
    before_mb: float
    seconds: float
    result: Any


def peak_of(work: Callable[..., Any], *arguments: Any, warm: tuple[Any, ...] | None = None) -> Peak:
    """Do `work(*arguments)` in a new process, after `work(*warm)`, which compiles and loads what is not to be counted.

    `work` must be importable by the new process: a function of a module in tests/support or of the packages.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        return pool.submit(_measured, work, arguments, warm).result()


def _measured(work: Callable[..., Any], arguments: tuple[Any, ...], warm: tuple[Any, ...] | None) -> Peak:
    if warm is not None:
        work(*warm)
    before, began = _peak_mb(), time.process_time()
    result = work(*arguments)
    return Peak(_peak_mb(), before, time.process_time() - began, result)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
