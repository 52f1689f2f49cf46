"""The worker's side of `map_chunks`: applies a stage's function to chunks and tells what becomes of each.

Rows travel as JSON in one column. A worker says that a chunk has begun before it begins, so that the driver knows what
was being worked on when a worker dies, and who is to blame. A row costs the driver some milliseconds, so quick chunks
share theirs; which of them killed the worker shows when they are run again, one to a task.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.attempt import attempt
from infra.prefetch import Prefetched
from infra.volumes.metering import metered
from models.errors import PetavoxelError, StorageFailed
from models.geometry import Box, Chunk

logger = logging.getLogger(__name__)

QUIET_S = 2.0
"""How long a worker that does quick chunks is silent: a row of some milliseconds then costs the driver little."""
Report = dict[str, Any]
ChunkFunction = Callable[[Chunk], Report]
Message = dict[str, Any]
Batch = dict[str, Any]


@dataclass(frozen=True)
class Rules:
    """How often a chunk is tried, how long a try may take, and the pause after a storage failure, doubled each time."""

    tries: int
    timeout_s: float
    pause_s: float


class Worker:
    """Applies `make(*arguments)` to chunks; the function is made when the first chunk comes, and kept.

    Making it belongs to the first chunk's work: what cannot be made, or kills the worker, is then reported with a chunk
    instead of starting workers for ever.
    """

    def __init__(self, make: Callable[..., ChunkFunction], arguments: tuple[Any, ...], rules: Rules) -> None:
        self._make, self._arguments, self._rules = make, arguments, rules
        self._apply: ChunkFunction | None = None
        self._place = {"host": socket.gethostname(), "pid": os.getpid()}

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        """Rows of what happened last: that chunks have begun, their reports or errors, often with the next ones' begin.

        Chunks that take less than `QUIET_S` are announced several at a time, and told of together.
        """
        rows = [json.loads(str(text)) for text in batch["row"]]
        chunks = [Chunk(tuple(row["index"]), Box.parse(row["box"])) for row in rows]
        happened: list[Message] = []
        at, size = 0, 1
        while at < len(chunks):
            group = range(at, min(at + size, len(chunks)))
            yield _row([*happened, *(_message("started", chunks[i], **self._place, alone=size == 1) for i in group)])
            happened, began, told = [], time.monotonic(), time.monotonic()
            for i in group:
                following = chunks[i + 1] if i + 1 < len(chunks) else None
                happened.append(self._metered(chunks[i], following, int(rows[i]["try"])))
                if time.monotonic() - told > QUIET_S and i != group[-1]:
                    yield _row(happened)
                    happened, told = [], time.monotonic()
            at, each = group.stop, (time.monotonic() - began) / len(group)
            size = max(1, int(QUIET_S / max(each, 0.001)))
        yield _row(happened)

    def _metered(self, chunk: Chunk, following: Chunk | None, first: int) -> Message:
        """Do a chunk, and add to its report what it took."""
        spent = time.process_time()
        with metered() as requests:
            message = self._work(chunk, following, first)
        if message["kind"] == "done":
            message["report"]["cpu_seconds"] = time.process_time() - spent
            message["report"] |= {f"io_{name}": value for name, value in requests.items() if value}
        return message

    def _work(self, chunk: Chunk, following: Chunk | None, first: int) -> Message:
        """Do a chunk; `following` is the one that this worker will do next, if that is known."""
        began, cause = time.monotonic(), ""
        for number in range(first, first + self._rules.tries):
            try:
                with attempt(number), time_limit(self._rules.timeout_s):
                    self._apply = self._apply or self._make(*self._arguments)
                    if isinstance(self._apply, Prefetched):
                        self._apply.expect(following)
                    report = self._apply(chunk)
            except StorageFailed as error:
                cause = f"{error} (tried {number} times)"
                if number < first + self._rules.tries - 1:
                    time.sleep(self._rules.pause_s * 2 ** (number - first))
            except PetavoxelError as error:
                return _message("failed", chunk, cause=f"{type(error).__name__}: {error}", tries=number)
            except Exception as error:  # a bug in one chunk must not hide the state of all others
                logger.exception("chunk %s", chunk.name)
                return _message("failed", chunk, cause=f"{type(error).__name__}: {error}", tries=number)
            else:
                seconds = time.monotonic() - began
                return _message("done", chunk, report={"seconds": seconds, "tries": number, **report})
        return _message("failed", chunk, cause=cause, tries=first + self._rules.tries - 1)


def work_once(
    batch: Batch, make: Callable[..., ChunkFunction], arguments: tuple[Any, ...], rules: Rules
) -> Iterator[Batch]:
    """`Worker` as a function, for workers that are not kept."""
    yield from Worker(make, arguments, rules)(batch)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End this process where the block takes longer, with a trace of all its threads in the worker's log.

    It works from outside the interpreter, so it also ends what is stuck in native code.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _message(kind: str, chunk: Chunk, **facts: Any) -> Message:
    return {"kind": kind, "chunk": chunk.name, **facts}


def _row(messages: list[Message]) -> Batch:
    return {"row": np.array([json.dumps(messages)])}
