"""What a worker is at: which try of a chunk, and since when. Markers tell it without every stage passing it on."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class Attempt:
    """One try of a chunk: its number, 1 for the first, and when it began on the monotonic clock."""

    number: int
    began: float


_current: ContextVar[Attempt | None] = ContextVar("attempt", default=None)


@contextmanager
def attempt(number: int) -> Iterator[Attempt]:
    """Say that what runs inside is the `number`th try of a chunk."""
    current = Attempt(number, time.monotonic())
    token = _current.set(current)
    try:
        yield current
    finally:
        _current.reset(token)


def attempt_figures() -> dict[str, Any]:
    """JSON-able: host and time (UTC), and inside `attempt` also the number of tries and seconds so far."""
    figures: dict[str, Any] = {"host": socket.gethostname(), "time": now()}
    current = _current.get()
    if current is not None:
        figures |= {"tries": current.number, "seconds": round(time.monotonic() - current.began, 3)}
    return figures


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
