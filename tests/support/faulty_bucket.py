"""A real HTTP proxy between a storage library and a bucket emulator, which injects faults by rule and keeps a record.

The proxy forwards bytes as they are, so the libraries meet the answers, short bodies and dead connections that they
would meet on a network. Which request meets a fault follows from the rules, a seed and the order of arrival.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

Kind = Literal["status", "cut", "reset", "lost", "stall", "delay", "slow", "stale", "gone"]

STEPS = 20
"""Parts in which slow bodies travel."""


@dataclass
class Fault:
    """A rule: what happens to a request whose method and path match the regular expressions.

    status: answered with `status` (and `retry_after` seconds) without asking the bucket; cut: the true head and the
    first half of the body, then the end of the connection; reset: the connection is reset before an answer, the bucket
    never asked; lost: the same, but after the bucket has done what was asked; stall: no answer until the proxy closes;
    delay: the answer `seconds` late; slow: an upload, or the answer to a GET, takes `seconds`; stale: the first answer
    to this request again, where there was one; gone: 404.
    `skip` matches are let through first, `count` at most are hit.
    """

    kind: Kind
    method: str = ""
    path: str = ""
    probability: float = 1.0
    skip: int = 0
    count: int | None = None
    status: int = 503
    retry_after: float | None = None
    seconds: float = 0.0
    hits: int = field(default=0, init=False)


@dataclass(frozen=True)
class Exchange:
    """One request as the proxy saw it; bytes are those of the bodies that went through."""

    method: str
    path: str
    status: int
    sent: int
    received: int
    fault: Kind | None


class FaultyBucket:
    """The proxy, on a free port, in a thread of its own; a context manager. `faults` may be replaced at any time."""

    def __init__(self, upstream: str, seed: int = 0) -> None:
        host, _, port = upstream.removeprefix("http://").partition(":")
        self._upstream = (host, int(port))
        self._random = random.Random(seed)
        self.faults: list[Fault] = []
        self._first: dict[str, bytes] = {}
        self._seen: list[Exchange] = []
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="faulty bucket", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        """Where to send requests."""
        return f"http://127.0.0.1:{self.port}"

    def seen(self, method: str = "", path: str = "") -> list[Exchange]:
        """The exchanges so far whose method and path match."""
        with self._lock:
            return [one for one in self._seen if re.search(method, one.method) and re.search(path, one.path)]

    def forget(self) -> None:
        """Begin a new record."""
        with self._lock:
            self._seen.clear()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = int(server.sockets[0].getsockname()[1])
        self._ready.set()
        await self._closing.wait()
        server.close()
        await asyncio.sleep(0.02)  # connections that are being accepted become some that can be closed
        while others := [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()  # also where the client never takes what was written
        await server.wait_closed()
        await asyncio.sleep(0.02)  # closed transports leave the loop in its next rounds

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client is gone
        except asyncio.CancelledError:
            pass  # the proxy is closing
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        if b"\nexpect: 100-continue" in head.lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"(?i)\r\nexpect: 100-continue", b"", head)
        fault = self._fault(method, path)
        kind = fault.kind if fault else None
        body = await _body(reader, head, b"", fault.seconds if fault and kind == "slow" else 0)

        def record(status: int, answer: bytes) -> None:
            content = _decoded(answer)
            with self._lock:
                self._seen.append(Exchange(method, path, status, len(_decoded(head + body)), len(content), kind))

        if fault and fault.kind == "delay":
            await asyncio.sleep(fault.seconds)
        return await self._answer(writer, (method, path, head + body), fault, record)

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        asked: tuple[str, str, bytes],
        fault: Fault | None,
        record: Callable[[int, bytes], None],
    ) -> bool:
        method, path, request = asked
        kind = fault.kind if fault else None
        if kind in ("stall", "reset"):
            record(0, b"")
            if kind == "stall":
                await asyncio.sleep(3600)
            writer.transport.abort()
            return False
        if fault and kind in ("status", "gone"):
            answer = _refusal(404 if kind == "gone" else fault.status, fault.retry_after)
        elif kind == "stale" and path in self._first:
            answer = self._first[path]
        else:
            answer = await self._ask(method, request)
            if method == "GET":
                self._first.setdefault(path, answer)
        if kind == "lost":
            record(0, b"")
            writer.transport.abort()
            return False
        if kind == "cut":
            end = answer.index(b"\r\n\r\n") + 4
            answer = answer[: end + (len(answer) - end) // 2]
        record(int(answer.split(b" ", 2)[1]), b"" if method == "HEAD" else answer)
        slow_s = fault.seconds if fault and kind == "slow" and method == "GET" else 0
        step = -(-len(answer) // STEPS) if slow_s else len(answer)
        for start in range(0, len(answer), step):
            writer.write(answer[start : start + step])
            await writer.drain()
            await asyncio.sleep(slow_s / STEPS)
        return kind != "cut" and b"\nconnection: close" not in answer.lower()

    async def _ask(self, method: str, request: bytes) -> bytes:
        """The bucket's answer; 502, as a proxy says it, where the bucket is not there."""
        try:
            reader, writer = await asyncio.open_connection(*self._upstream, limit=1 << 24)
        except OSError:
            return _refusal(502, None)
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            empty = method == "HEAD" or head.split(b" ", 2)[1] in (b"204", b"304")
            return head + (b"" if empty else await _body(reader, head, None))
        except (asyncio.IncompleteReadError, OSError):
            return _refusal(502, None)
        finally:
            writer.close()

    def _fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if not re.search(fault.method, method) or not re.search(fault.path, path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                if fault.hits != fault.count and self._random.random() < fault.probability:
                    fault.hits += 1
                    return fault
        return None


def _refusal(status: int, retry_after: float | None) -> bytes:
    body = b'{"error": {"code": %d, "message": "so it is"}}' % status
    wait = b"" if retry_after is None else b"Retry-After: %d\r\n" % retry_after
    return b"HTTP/1.1 %d No\r\n%sContent-Length: %d\r\n\r\n%s" % (status, wait, len(body), body)


def _header(head: bytes, name: bytes) -> bytes | None:
    found = re.search(rb"(?im)^" + name + rb":\s*(.*?)\s*$", head)
    return found.group(1) if found else None


async def _body(reader: asyncio.StreamReader, head: bytes, without: bytes | None, seconds: float = 0) -> bytes:
    """The bytes of a body as they are sent; `without` for a message that gives no length, None: up to the end.

    One that gives its length is read in `seconds`.
    """
    if (_header(head, b"transfer-encoding") or b"").lower() == b"chunked":
        parts: list[bytes] = []
        while True:
            line = await reader.readline()
            size = int(line.split(b";")[0], 16)
            parts += [line, await reader.readexactly(size + 2)]
            if not size:
                return b"".join(parts)
    length = _header(head, b"content-length")
    if length is not None and seconds:
        pieces = []
        step = -(-int(length) // STEPS)
        for start in range(0, int(length), max(1, step)):
            pieces.append(await reader.readexactly(min(step, int(length) - start)))
            await asyncio.sleep(seconds / STEPS)
        return b"".join(pieces)
    if length is not None:
        return await reader.readexactly(int(length))
    return await reader.read() if without is None else without


def _decoded(message: bytes) -> bytes:
    """The content of a message, its transfer encoding undone."""
    head, _, body = message.partition(b"\r\n\r\n")
    if (_header(head, b"transfer-encoding") or b"").lower() != b"chunked":
        return body
    parts: list[bytes] = []
    while body:
        line, _, body = body.partition(b"\r\n")
        size = int(line.split(b";")[0], 16)
        parts.append(body[:size])
        body = body[size + 2 :]
    return b"".join(parts)


def kinds(exchanges: Sequence[Exchange]) -> dict[str, int]:
    """How many exchanges there were by method; for messages of failed tests."""
    return {name: sum(one.method == name for one in exchanges) for name in sorted({one.method for one in exchanges})}
