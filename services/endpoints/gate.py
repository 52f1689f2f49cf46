"""Counts open requests, so that a stopping server can wait for them."""

from __future__ import annotations

import asyncio
import logging

from services.endpoints.problems import Stopping

logger = logging.getLogger(__name__)


class Gate:
    """Counts open requests, and refuses new ones once the server stops."""

    def __init__(self) -> None:
        self.stopping = False
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> None:
        if self.stopping:
            raise Stopping("the server is stopping")
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
