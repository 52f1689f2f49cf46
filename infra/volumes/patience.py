"""Time limits that know how much there is to move: silence is short, a large object on a slow link is not silence.

An operation has a limit; when an answer says how many bytes follow, the operation gets the time that these take at the
slowest rate allowed. A request has a limit until its answer begins, which grows with what it uploads, and one for every
further silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.settings import Settings

if TYPE_CHECKING:
    from aiohttp import ClientRequest, ClientResponse

_operation: ContextVar[tuple[asyncio.Timeout, float] | None] = ContextVar("operation", default=None)


@asynccontextmanager
async def operation_limit(settings: Settings, nbytes: int = 0) -> AsyncIterator[None]:
    """Limit what runs inside to the settings' time for `nbytes` bytes, plus that of answers; raises `TimeoutError`."""
    async with asyncio.timeout(settings.timeout_s(nbytes)) as limit:
        token = _operation.set((limit, settings.storage_slowest_bytes_per_s))
        try:
            yield
        finally:
            _operation.reset(token)


def expect_bytes(nbytes: int) -> None:
    """Give the running operation the time that `nbytes` more bytes may take."""
    running = _operation.get()
    if running is None:
        return
    limit, slowest = running
    until = limit.when()
    if until is not None and not limit.expired():
        limit.reschedule(until + nbytes / slowest)


@dataclass(frozen=True)
class Patience:
    """An aiohttp middleware that gives up silent requests with an error that libraries retry."""

    silence_s: float
    slowest_bytes_per_s: float

    async def __call__(
        self, request: ClientRequest, handler: Callable[[ClientRequest], Awaitable[ClientResponse]]
    ) -> ClientResponse:
        """Send the request; raises `aiohttp.ServerTimeoutError`."""
        from aiohttp import ServerTimeoutError

        upload: int = getattr(request.body, "size", 0) or 0
        limit = self.silence_s + upload / self.slowest_bytes_per_s
        try:
            async with asyncio.timeout(limit):
                response = await handler(request)
        except TimeoutError as error:
            raise ServerTimeoutError(f"no answer within {limit:.0f} s") from error
        protocol = response.connection and response.connection.protocol
        if protocol:  # None where all of the answer is here
            protocol.read_timeout = self.silence_s
            protocol.start_timeout()
        return response
