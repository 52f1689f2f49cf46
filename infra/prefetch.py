"""Reads what the next chunk needs while the present one is computed.

A stage that gives its two steps apart, what it loads and what it makes of it, is wrapped in `Prefetched`, and told
before each chunk which one comes next:

::

    load a │ compute a │ compute b │ compute c
           │ load b    │ load c    │

One load runs ahead, in one thread, and begins when the present chunk's inputs have arrived, so a worker holds the
inputs of two chunks at most: the one that it computes and the one that waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from infra.volumes.metering import book, set_aside
from models.geometry import Chunk

Inputs = TypeVar("Inputs")


class Prefetched(Generic[Inputs]):
    """A function of a chunk, `work(chunk, load(chunk))`, that loads the next chunk's inputs meanwhile.

    One thread calls it, and `load` runs in another, so `load` must not depend on what `work` stores. An error of `load`
    is raised by the chunk that it belongs to; a further try of that chunk loads again, at once. Its requests are
    metered with that chunk too, except tensorstore's, which count while they are made.
    """

    def __init__(self, load: Callable[[Chunk], Inputs], work: Callable[[Chunk, Inputs], dict[str, Any]]) -> None:
        self._load, self._work = load, work
        self._next: Chunk | None = None
        self._ahead: _Ahead[Inputs] | None = None
        self._thread: threading.Thread | None = None

    def expect(self, chunk: Chunk | None) -> None:
        """Say which chunk comes after the one that comes now; None where nobody knows or none does."""
        self._next = chunk

    def __call__(self, chunk: Chunk) -> dict[str, Any]:
        """Do one chunk; raises what `load` or `work` raise."""
        inputs = self._inputs(chunk)
        idle = self._ahead is None and (self._thread is None or not self._thread.is_alive())
        if self._next is not None and self._next != chunk and idle:
            self._begin(self._next)
        return self._work(chunk, inputs)

    def _inputs(self, chunk: Chunk) -> Inputs:
        ahead = self._ahead
        if ahead is not None and ahead.chunk == chunk:
            self._ahead = None
            return ahead.taken()
        if ahead is not None and ahead.chunk != self._next:  # not what was expected
            self._ahead = None
            ahead.drop()
        return self._load(chunk)

    def _begin(self, chunk: Chunk) -> None:
        ahead = self._ahead = _Ahead(chunk, Future())
        # A daemon, so that a worker that is told to end does not wait for inputs that nobody will use.
        self._thread = threading.Thread(
            target=ahead.run, args=(self._load,), name=f"prefetch {chunk.name}", daemon=True
        )
        self._thread.start()


@dataclass(frozen=True)
class _Ahead(Generic[Inputs]):
    """Inputs on their way: what came, or the error, and what was requested for them."""

    chunk: Chunk
    loading: Future[tuple[Inputs | None, BaseException | None, dict[str, int]]]

    def run(self, load: Callable[[Chunk], Inputs]) -> None:
        """Load, in the prefetching thread."""
        inputs: Inputs | None = None
        failed: BaseException | None = None
        with set_aside() as requests:
            try:
                inputs = load(self.chunk)
            except BaseException as error:  # raised by the chunk that it belongs to
                failed = error
        self.loading.set_result((inputs, failed, requests))

    def taken(self) -> Inputs:
        """The inputs, waited for; raises the error of loading them."""
        inputs, failed, requests = self.loading.result()
        book(requests)
        if failed is not None:
            raise failed
        return inputs  # type: ignore[return-value]

    def drop(self) -> None:
        """Nobody will take the inputs; what was requested for them counts all the same."""
        self.loading.add_done_callback(lambda loading: book(loading.result()[2]))
