"""Turns and threads: what a request takes is taken until its thread has ended, also where the request was given up."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.endpoints.interruption import in_turn


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("error", [None, OSError("the store is gone")])
def test_an_abandoned_thread_keeps_its_turn(error: OSError | None, caplog: pytest.LogCaptureFixture) -> None:
    begun, silent = threading.Event(), threading.Event()

    def read() -> None:
        begun.set()
        silent.wait(20)
        if error is not None:
            raise error

    async def main() -> None:
        stores, turns = asyncio.Semaphore(1), asyncio.Semaphore(1)
        request = asyncio.create_task(in_turn(stores, read))
        await _until(begun.is_set)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert stores.locked(), "its thread still reads"
        assert await in_turn(turns, lambda: 7) == 7, "what needs no store goes on"
        waiting = asyncio.create_task(in_turn(stores, lambda: 8))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        silent.set()
        assert await waiting == 8
        assert not stores.locked()

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert not caplog.records, "nobody waits for the error either"


def test_silent_stores_leave_the_pool_of_threads_to_others() -> None:
    silent = threading.Event()

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4))
        stores, turns = asyncio.Semaphore(2), asyncio.Semaphore(2)
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(in_turn(stores, lambda: silent.wait(20)), 0.02)
        try:
            assert await asyncio.wait_for(in_turn(turns, lambda: 7), 10) == 7
        finally:
            silent.set()
        await _until(lambda: not stores.locked())
        assert [await in_turn(stores, lambda: 1) for _ in range(4)] == [1] * 4

    asyncio.run(main())


def test_work_that_is_given_up_before_it_begins_never_begins() -> None:
    silent, ran = threading.Event(), threading.Event()

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        stores, turns = asyncio.Semaphore(1), asyncio.Semaphore(1)
        first = asyncio.create_task(in_turn(stores, lambda: silent.wait(20)))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(in_turn(turns, ran.set))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.wait({second})
        assert turns.locked()
        silent.set()
        await first
        await _until(lambda: not turns.locked())

    asyncio.run(main())
    assert not ran.is_set()


def test_turns_end_however_the_wait_or_the_work_does() -> None:
    release = threading.Event()

    def fail() -> None:
        raise OSError("no")

    async def main() -> None:
        turns = asyncio.Semaphore(1)
        first = asyncio.create_task(in_turn(turns, lambda: release.wait(20)))
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(in_turn(turns, lambda: True)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in waiting[:2]:
            task.cancel()
        release.set()
        assert await first
        assert await waiting[2]
        with pytest.raises(OSError, match="no"):
            await in_turn(turns, fail)
        assert not turns.locked()
        await turns.acquire()
        assert turns.locked(), "no turn was given back twice"

    asyncio.run(main())
