"""Runs patches of different requests together where the engine gains from it.

Nothing waits for company: while the engine runs one batch, requests that come meanwhile make up the next. A batch is
always filled up to the same size, so the values of a patch do not depend on what else was in it.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from infra.runtimes.session import Session, SessionAround
from services.endpoints import tracing

Patches = NDArray[np.float32]
Place = tuple[Patches, "Future[Patches]"]


class BatchedSession(SessionAround):
    """A `Session` that joins single patches of several threads into batches of `max_batch`, by patch shape.

    `observe` is called with the number of patches of each batch, padding not counted. With a `max_batch` of 1, and for
    calls that bring several patches themselves, it runs what it is given.
    """

    def __init__(self, session: Session, max_batch: int, observe: Callable[[int], None]) -> None:
        super().__init__(session)
        self._max, self._observe = max_batch, observe
        self._running, self._queues_lock = threading.Lock(), threading.Lock()
        self._queues: dict[tuple[int, ...], deque[Place]] = defaultdict(deque)

    def run(self, patches: Patches) -> Patches:
        """Run the network; see `infra.runtimes.session.Session.run`."""
        if self._max == 1 or len(patches) > 1:
            return self._observed(patches, len(patches))
        place: Place = (patches, Future())
        with self._queues_lock:
            self._queues[patches.shape].append(place)
        with tracing.span("batch"):
            while not place[1].done():
                with self._running:  # whoever holds it runs a batch for all that wait
                    if not place[1].done():
                        self._run_batch(patches.shape)
        return place[1].result()

    def _observed(self, patches: Patches, count: int) -> Patches:
        """Run a batch, of which `count` patches are no padding."""
        self._observe(count)
        with tracing.span("runtime", patches=count):
            return self._session.run(patches)

    def _run_batch(self, shape: tuple[int, ...]) -> None:
        with self._queues_lock:
            queue = self._queues[shape]
            places = [queue.popleft() for _ in range(min(self._max, len(queue)))]
            if not queue:
                del self._queues[shape]
        padding = [places[0][0]] * (self._max - len(places))
        try:
            found = self._observed(np.concatenate([*(patches for patches, _ in places), *padding]), len(places))
        except BaseException as error:
            for _, future in places:
                future.set_exception(error)
            return
        for row, (_, future) in enumerate(places):
            future.set_result(found[row : row + 1])
