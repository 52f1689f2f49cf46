"""Work in threads that stops at its next patch once nobody waits for it any longer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from infra.runtimes.session import SessionAround
from services.endpoints.problems import DeadlineExceeded

Result = TypeVar("Result")

_given_up: ContextVar[threading.Event | None] = ContextVar("given_up", default=None)


async def in_thread(work: Callable[[], Result]) -> Result:
    """Run `work` in a thread; cancellation stops it at its next patch."""
    stop = threading.Event()
    _given_up.set(stop)
    try:
        return await asyncio.to_thread(work)
    except asyncio.CancelledError:
        stop.set()
        raise


class InterruptibleSession(SessionAround):
    """A `Session` that raises `DeadlineExceeded` once the work of `in_thread` that calls it was cancelled."""

    def run(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network; see `infra.runtimes.session.Session.run`."""
        stop = _given_up.get()
        if stop is not None and stop.is_set():
            raise DeadlineExceeded("the request was given up")
        return self._session.run(patches)
