"""Counts open requests, so that a stopping server can wait for them."""

from __future__ import annotations

import asyncio
import logging

from services.endpoints.problems import Overloaded, Unavailable

logger = logging.getLogger(__name__)


class Gate:
    """Counts open requests, and refuses new ones beyond `limit`, or once the server stops.

    An open request may hold a whole image and its affinities, so `limit` also bounds the memory.
    """

    def __init__(self, limit: int) -> None:
        self.stopping = False
        self._limit = limit
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> None:
        if self.stopping:
            raise Unavailable("the server is stopping")
        if self._open >= self._limit:
            raise Overloaded(f"{self._limit} requests are open already")
        self._open += 1
        self._idle.clear()

    async def __aexit__(self, *error: object) -> None:
        self._open -= 1
        if not self._open:
            self._idle.set()

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests and wait for the open ones; returns how many are left after `timeout_s`."""
        self.stopping = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d requests are still open after %g s", self._open, timeout_s)
        return self._open
