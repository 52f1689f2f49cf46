"""Work in threads that stops at its next patch once nobody waits for it any longer.

A turn belongs to the thread, not to the request: a store that is silent keeps its threads long after their requests
were given up, and would fill the pool of threads, which all work shares.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from infra.runtimes.session import SessionAround
from services.endpoints import tracing
from services.endpoints.problems import DeadlineExceeded

Result = TypeVar("Result")

_REASON = "the request was given up"
_given_up: ContextVar[threading.Event | None] = ContextVar("given_up", default=None)


async def in_turn(turns: asyncio.Semaphore, work: Callable[[], Result]) -> Result:
    """Run `work` as `in_thread` does, in one of `turns`, in the order in which they are asked for; the wait is a span.

    The turn ends with the thread's work, also where that was cancelled before.
    """
    with tracing.span("queue"):
        await turns.acquire()
    return await in_thread(work, turns.release)


async def in_thread(work: Callable[[], Result], ended: Callable[[], None] = lambda: None) -> Result:
    """Run `work` in a thread, then `ended` here; cancellation stops it before it begins or at its next patch."""
    stop = threading.Event()
    _given_up.set(stop)
    context = contextvars.copy_context()

    def begin() -> Result:
        if stop.is_set():
            raise DeadlineExceeded(_REASON)
        return context.run(work)

    def end(done: asyncio.Future[Result]) -> None:
        ended()
        if not done.cancelled():
            done.exception()  # nobody asks for that of abandoned work

    try:
        running = asyncio.get_running_loop().run_in_executor(None, begin)
    except RuntimeError:  # the pool of threads is shut down
        ended()
        raise
    running.add_done_callback(end)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        raise


class InterruptibleSession(SessionAround):
    """A `Session` that raises `DeadlineExceeded` once the work of `in_thread` that calls it was cancelled."""

    def run(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network; see `infra.runtimes.session.Session.run`."""
        stop = _given_up.get()
        if stop is not None and stop.is_set():
            raise DeadlineExceeded(_REASON)
        return self._session.run(patches)
