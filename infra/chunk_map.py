"""Runs one function over the chunks of a stage with Ray Data.

A row is a chunk's description; the function reads, computes and writes its own voxels, and returns a small report. An
error inside a chunk is caught where it happens: storage failures are tried again, and a chunk that keeps failing is
reported with its box and cause after all other chunks are done, so one poisoned chunk costs nothing but itself. A
worker or node that dies is Ray's to replace; its chunk is simply run again, which is safe: outputs are idempotent.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from models.errors import ChunkFailed, PetavoxelError, StorageFailed
from models.geometry import Box, Chunk

logger = logging.getLogger(__name__)

Report = dict[str, Any]
ChunkFunction = Callable[[Chunk], Report]


@dataclass(frozen=True)
class Placement:
    """Where a stage's chunks run.

    `workers` run at a time, each with `cpus` and `gpus`; `stateful` workers are kept for the whole stage (a loaded
    model), others are plain tasks. `tries` per chunk; storage failures wait `pause_s`, doubled each time, in between.
    """

    workers: int = 1
    cpus: float = 1
    gpus: float = 0
    stateful: bool = False
    tries: int = 3
    pause_s: float = 1.0


def map_chunks(
    chunks: Sequence[Chunk], make: Callable[..., ChunkFunction], arguments: tuple[Any, ...], placement: Placement
) -> Iterator[tuple[Chunk, Report]]:
    """Yield each chunk with its report as it is done, in any order.

    Parameters
    ----------
    chunks
        What to do.
    make, arguments
        `make(*arguments)` is called once in every worker and returns the function that is applied to its chunks; both
        must be picklable.

    Raises `ChunkFailed` after the last chunk, naming each chunk that failed, its box and the cause.
    """
    if not chunks:
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [{"index": list(chunk.index), "box": str(chunk.box)} for chunk in chunks]
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    options: dict[str, Any] = {"num_cpus": placement.cpus, "num_gpus": placement.gpus or None, "batch_size": 1}
    size = min(placement.workers, len(rows))
    if placement.stateful:
        dataset = dataset.map_batches(
            _Worker,
            fn_constructor_args=(make, arguments, placement),
            compute=ray.data.ActorPoolStrategy(size=size),
            **options,
        )
    else:
        dataset = dataset.map_batches(
            _run_once,  # type: ignore[arg-type]
            fn_args=(make, arguments, placement),
            compute=ray.data.TaskPoolStrategy(size=size),
            **options,
        )
    failures = []
    for row in dataset.iter_rows():
        chunk = Chunk(tuple(int(i) for i in row["index"]), Box.parse(row["box"]))  # type: ignore[arg-type]
        if row["error"]:
            failures.append(f"chunk {chunk.name} (box {chunk.box}): {row['error']}")
            logger.error("%s", failures[-1])
        else:
            yield chunk, json.loads(row["report"])
    if failures:
        raise ChunkFailed(f"{len(failures)} of {len(chunks)} chunks failed: " + "; ".join(failures[:20]))


class _Worker:
    """Holds the chunk function of one worker and applies it to batches of one row."""

    def __init__(self, make: Callable[..., ChunkFunction], arguments: tuple[Any, ...], placement: Placement) -> None:
        self._apply, self._error = None, ""
        try:
            self._apply = make(*arguments)
        except PetavoxelError as error:  # reported with every chunk instead of restarting the worker for ever
            self._error = f"{type(error).__name__}: {error}"
        self._placement = placement

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        chunk = Chunk(tuple(int(i) for i in batch["index"][0]), Box.parse(str(batch["box"][0])))  # type: ignore[arg-type]
        report, error = ({}, self._error) if self._apply is None else self._attempt(self._apply, chunk)
        return {"index": [list(chunk.index)], "box": [str(chunk.box)], "error": [error], "report": [json.dumps(report)]}

    def _attempt(self, apply: ChunkFunction, chunk: Chunk) -> tuple[Report, str]:
        began, cause = time.monotonic(), ""
        for attempt in range(1, self._placement.tries + 1):
            try:
                report = apply(chunk)
            except StorageFailed as error:
                cause = f"{error} (tried {attempt} times)"
                if attempt < self._placement.tries:
                    time.sleep(self._placement.pause_s * 2 ** (attempt - 1))
            except PetavoxelError as error:
                return {}, f"{type(error).__name__}: {error}"
            except Exception as error:  # a bug in one chunk must not hide the state of all others
                logger.exception("chunk %s", chunk.name)
                return {}, f"{type(error).__name__}: {error}"
            else:
                return {"seconds": time.monotonic() - began, "tries": attempt, **report}, ""
        return {}, cause


def _run_once(
    batch: dict[str, Any], make: Callable[..., ChunkFunction], arguments: tuple[Any, ...], placement: Placement
) -> dict[str, Any]:
    return _Worker(make, arguments, placement)(batch)
