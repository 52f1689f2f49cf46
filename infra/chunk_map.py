"""Runs one function over the chunks of a stage with Ray Data, and ends whatever happens.

A row is a chunk's description; the function reads, computes and writes its own voxels, and returns a small report.

::

    round 1   a window of chunks, several to a task  →  done, failed, or lost: their worker died
    round 2   those that were lost, one to a task,
              by half as many workers                →  …
    round n   a chunk whose worker died `tries` times is given up: poisoned; then the next window

Errors inside a chunk are caught where they happen (`chunk_worker`): storage failures are tried again, and a chunk that
keeps failing is reported with its box and cause after all others are done, so one poisoned chunk costs nothing but
itself. Ray's own retries are off, for they are endless: a chunk that kills its worker would be run for ever. What was
running when a worker or node died is run again here, which is safe: outputs are idempotent.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

import ray
import ray.data

from infra.chunk_worker import ChunkFunction, Message, Report, Rules, Worker, work_once
from models.errors import ChunkFailed
from models.geometry import Chunk

__all__ = ["ChunkFunction", "Done", "Event", "Failed", "Placement", "Report", "Started", "Waiting", "map_chunks"]

logger = logging.getLogger(__name__)

TICK_S = 1.0
"""Silence after which the caller hears `Waiting`."""
STOP_S = 10.0
"""How long an abandoned dataset may take to end."""
LARGEST_TASK = 32
"""Chunks in one task: Ray Data looks at its tasks every 0.1 s, too slow for tasks that are as short."""
WINDOW = 1 << 16
"""Chunks that the driver knows at a time, at least; it waits for all of them before the next ones."""
WINDOW_PER_WORKER = 64
"""And for every worker, so that the wait at a window's end is short beside the window."""
MOST_NAMED = 20
"""Failures that the last error names; all are in the log and in the ledger."""
TASKS_PER_WORKER = 4
"""At least so many tasks for every worker, where there are chunks enough, so that all end at about the same time."""


@dataclass(frozen=True)
class Placement:
    """Where a stage's chunks run.

    `workers` run at a time, each with `cpus` and `gpus`; `stateful` workers are kept for the whole stage (a loaded
    model), and with `prefetch` the next task already waits there. A task has several chunks where there are many, so
    that a worker can read ahead. A chunk gets `tries`; storage failures wait `pause_s`, doubled each time, in between.
    One try may take `timeout_s`, then its worker is ended. Where nothing begins or ends for `stall_s` while nothing
    runs, the stage is given up: the cluster has no place for it.
    """

    workers: int = 1
    cpus: float = 1
    gpus: float = 0
    stateful: bool = False
    prefetch: bool = True
    tries: int = 3
    pause_s: float = 1.0
    timeout_s: float = 3600.0
    stall_s: float = 900.0


@dataclass(frozen=True)
class Started:
    """A worker has begun with a chunk."""

    chunk: Chunk
    host: str
    pid: int


@dataclass(frozen=True)
class Done:
    """A chunk's output is stored."""

    chunk: Chunk
    report: Report


@dataclass(frozen=True)
class Failed:
    """A chunk was given up."""

    chunk: Chunk
    cause: str
    tries: int


@dataclass(frozen=True)
class Waiting:
    """Nothing happened for `TICK_S`."""


Event = Started | Done | Failed | Waiting


class Chunks(Protocol):
    """Chunks that are made as they are asked for, and how many."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Chunk]: ...


def map_chunks(
    chunks: Chunks, make: Callable[..., ChunkFunction], arguments: tuple[Any, ...], placement: Placement
) -> Iterator[Event]:
    """Yield what happens to the chunks, in any order: each ends once, with `Done` or `Failed`.

    Parameters
    ----------
    chunks
        What to do; a window of them is held at a time, so memory does not follow their number.
    make, arguments
        `make(*arguments)` is called in every worker and returns the function that is applied to its chunks; both must
        be picklable.

    Raises `ChunkFailed` after the last chunk, naming the first 20 chunks that failed, their boxes and causes; and at
    once where the cluster has no place for a worker, or workers die before they begin.
    """
    failed, texts, source = 0, [], iter(chunks)
    size = max(WINDOW, WINDOW_PER_WORKER * placement.workers)
    while window := {chunk.name: _Chunk(chunk) for chunk in islice(source, size)}:
        for event in _window(window, make, arguments, placement):
            if isinstance(event, Failed):
                failed += 1
                text = f"chunk {event.chunk.name} (box {event.chunk.box}): {event.cause}"
                logger.error("%s", text)
                if failed <= MOST_NAMED:
                    texts.append(text)
            yield event
    if failed:
        raise ChunkFailed(f"{failed} of {len(chunks)} chunks failed: " + "; ".join(texts))


def _window(
    left: dict[str, _Chunk], make: Callable[..., ChunkFunction], arguments: tuple[Any, ...], placement: Placement
) -> Iterator[Event]:
    """Run chunks in rounds until each has ended; what ended is taken out of `left`."""
    first, barren, count, workers = True, 0, len(left), placement.workers
    while left:
        before = len(left)
        size = _task_size(len(left), placement) if first else 1
        rows = [state.row() for state in left.values()]
        where = replace(placement, workers=workers, prefetch=first and placement.prefetch)
        pump = _Pump(_dataset(rows, size, make, arguments, where))
        yield from _round(left, pump, placement)
        moved = len(left) < before or any(state.started for state in left.values())
        alone = not pump.error and size == 1 and not (first and placement.stateful)
        for state in [state for state in left.values() if state.blamed or alone]:
            state.deaths += 1
            moved = True
            if state.deaths >= placement.tries:
                yield Failed(left.pop(state.chunk.name).chunk, _death(state, placement), state.deaths)
        if left:
            barren = 0 if moved else barren + 1
            if barren >= placement.tries:
                raise ChunkFailed(
                    f"{len(left)} of {count} chunks: workers die before they begin, {barren} times: {pump.error}"
                )
            logger.warning("%d chunks were lost with their workers and are run again %s", len(left), pump.error)
            if barren:  # what kills workers before they begin may pass, such as a device that is still being released
                yield Waiting()
                time.sleep(placement.pause_s * 2**barren)
        first, workers = False, max(1, workers // 2)  # what killed them may be each other's memory


@dataclass
class _Chunk:
    """A chunk that has not ended: how often its worker died, and who had it last in this round.

    `blamed`: it was the only one that its worker had begun with.
    """

    chunk: Chunk
    deaths: int = 0
    started: bool = False
    blamed: bool = False
    worker: str = "a worker that never answered"

    def row(self) -> dict[str, str]:
        """What a worker is told."""
        told = {"index": self.chunk.index, "box": str(self.chunk.box), "try": 1 + self.deaths}
        return {"row": json.dumps(told)}


def _task_size(chunks: int, placement: Placement) -> int:
    return max(1, min(LARGEST_TASK, chunks // (TASKS_PER_WORKER * placement.workers)))


def _death(state: _Chunk, placement: Placement) -> str:
    return (
        f"its worker died {state.deaths} times, last {state.worker}: out of memory, a crash, a lost node, "
        f"or longer than {placement.timeout_s:.0f} s"
    )


def _round(left: dict[str, _Chunk], pump: _Pump, placement: Placement) -> Iterator[Event]:
    """Run all chunks that are left once; what ended is taken out of `left`, what was lost stays."""
    for state in left.values():
        state.started = state.blamed = False
    running: set[str] = set()
    last = time.monotonic()
    try:
        while True:
            message = pump.next(TICK_S)
            if message is None:
                _check_stall(time.monotonic() - last, left, running, placement)
                yield Waiting()
                continue
            if not message:
                return
            last = time.monotonic()
            name = message["chunk"]
            if name not in left:
                continue
            state = left[name]
            if message["kind"] == "started":
                state.started, state.blamed = True, message["alone"]
                state.worker = f"process {message['pid']} on {message['host']}"
                running.add(name)
                yield Started(state.chunk, message["host"], message["pid"])
                continue
            running.discard(name)
            del left[name]
            if message["kind"] == "done":
                yield Done(state.chunk, message["report"])
            else:
                yield Failed(state.chunk, message["cause"], message["tries"])
    finally:
        pump.stop()


def _check_stall(silent_s: float, left: dict[str, _Chunk], running: set[str], placement: Placement) -> None:
    limit = placement.stall_s + (placement.timeout_s if running else 0)
    if silent_s < limit:
        return
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    has = f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free"
    which = [f"{left[name].chunk.name} (box {left[name].chunk.box})" for name in sorted(running)[:20] if name in left]
    hung = f"; begun and never ended: {', '.join(which)}" if which else ""
    raise ChunkFailed(
        f"{len(left)} chunks left, nothing happened for {silent_s:.0f} s; the cluster has {has}, a worker needs "
        f"{placement.cpus:g} CPU and {placement.gpus:g} GPU{hung}"
    )


def _dataset(
    rows: list[dict[str, str]],
    size: int,
    make: Callable[..., ChunkFunction],
    arguments: tuple[Any, ...],
    placement: Placement,
) -> Callable[[], ray.data.Dataset]:
    tasks = -(-len(rows) // size)
    workers = min(placement.workers, tasks)
    rules = Rules(placement.tries, placement.timeout_s, placement.pause_s)

    ahead = 2 if placement.prefetch and tasks >= 2 * workers else 1  # else some hold two where others have none

    def build() -> ray.data.Dataset:
        _configure()
        dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=tasks)
        options: dict[str, Any] = {"num_cpus": placement.cpus, "num_gpus": placement.gpus or None}
        # Ray Data wants a size where there are GPUs; the smallest block's keeps each block a task of its own.
        options["batch_size"] = len(rows) // tasks if placement.gpus else None
        if placement.stateful:
            return dataset.map_batches(
                Worker,
                fn_constructor_args=(make, arguments, rules),
                compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=ahead),
                max_restarts=-1,
                max_task_retries=0,
                **options,
            )
        return dataset.map_batches(
            work_once,  # type: ignore[arg-type]
            fn_args=(make, arguments, rules),
            compute=ray.data.TaskPoolStrategy(size=workers),
            max_retries=0,
            **options,
        )

    return build


def _configure() -> None:
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it prints traces of what is reported here in one line
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # what dies is run again here, the others go on
    context.target_max_block_size = 1  # every row is sent at once
    context.execution_no_progress_timeout_s = -1  # chunks may take longer; what hangs is noticed here
    # Shares of datasets are counted anew every second: a stage would begin with one task, and wait for other runs'.
    context.op_resource_reservation_enabled = False


@dataclass
class _Pump:
    """Runs a dataset in a thread of its own, so that waiting for its rows has a limit."""

    build: Callable[[], ray.data.Dataset]
    messages: queue.SimpleQueue[Message] = field(default_factory=queue.SimpleQueue)
    stopped: threading.Event = field(default_factory=threading.Event)
    error: str = ""
    """Why the dataset ended early, empty where it did not."""
    executor: Any = None
    """What runs the dataset, once its first row is there."""

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="chunk-map", daemon=True)
        self._thread.start()

    def next(self, timeout_s: float) -> Message | None:
        """The next message, an empty one after the last, None where none came in time."""
        try:
            return self.messages.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def stop(self) -> None:
        """End what still runs; Ray ends the whole process, without a word, if it is shut down under a dataset."""
        self.stopped.set()
        if self.executor is not None:
            self.executor.shutdown(force=True)
            self._thread.join(STOP_S)

    def _run(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                bundles, _, self.executor = self.build()._execute_to_iterator()  # as iter_internal_ref_bundles does
            for bundle in bundles:
                for reference in bundle.block_refs:
                    self._send(reference)
                if self.stopped.is_set():
                    return
        except Exception as error:  # whatever ends the dataset: what has not ended by then is lost, and run again
            self.error = f"({type(error).__name__}: {_shortened(str(error))})"
        finally:
            self.messages.put({})

    def _send(self, reference: Any) -> None:
        try:
            table = ray.get(reference, timeout=60)
        except (ray.exceptions.RayError, TimeoutError) as error:  # the node that held the row died
            logger.warning("a report was lost: %s", type(error).__name__)
            return
        for text in table.column("row").to_pylist():
            for message in json.loads(text):
                self.messages.put(message)


def _shortened(text: str) -> str:
    """One line of an error; Ray says at the beginning what died, and at the end why."""
    line = " ".join(text.split())
    return line if len(line) <= 500 else f"{line[:100]} … {line[-400:]}"
