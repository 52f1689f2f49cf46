"""Counts requests to stores, and the bytes that they move: what a bucket's bill counts.

Counts belong to the process. Buckets behind fsspec are counted where aiohttp sends and receives, so every attempt of a
library's own retries counts; tensorstore counts for itself, and its figures are added. Local files count as operations:
one per object or file read or written, and one per box of the formats that keep a file open.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from infra.volumes.patience import expect_bytes

if TYPE_CHECKING:
    from aiohttp import TraceConfig

Kind = Literal["get", "put", "list", "head", "delete", "other"]

KEYS = ("get", "put", "list", "head", "delete", "other", "bytes_in", "bytes_out")
"""What a snapshot holds. Requests by kind: object bytes, uploads (each part of a large one), listings, metadata of
objects and buckets, deletions, the rest (credentials, tensorstore's retries); then bytes of bodies, without headers."""

_lock = Lock()
_process = dict.fromkeys(KEYS, 0)
_aside: ContextVar[dict[str, int]] = ContextVar("metering", default=_process)


def count(kind: Kind, *, bytes_in: int = 0, bytes_out: int = 0) -> None:
    """Count one request or operation, and bytes that it moved."""
    book({kind: 1, "bytes_in": bytes_in, "bytes_out": bytes_out}, _aside.get())


def book(amounts: dict[str, int], into: dict[str, int] = _process) -> None:
    """Add amounts, by `KEYS`, to what this process has counted."""
    with _lock:
        for key, amount in amounts.items():
            into[key] += amount


@contextmanager
def set_aside() -> Iterator[dict[str, int]]:
    """Gives a dictionary that counts, instead of the process, what this thread requests inside; `book` adds it later.

    For work done ahead of its time. tensorstore's figures are the process's, they cannot be set aside.
    """
    found = dict.fromkeys(KEYS, 0)
    token = _aside.set(found)  # asyncio carries it to the tasks that this thread's calls start
    try:
        yield found
    finally:
        _aside.reset(token)


def snapshot() -> dict[str, int]:
    """Requests and bytes of this process so far, by `KEYS`."""
    with _lock:
        found = dict(_process)
    if "tensorstore" in sys.modules:
        for key, value in _tensorstore().items():
            found[key] += value
    return found


@contextmanager
def metered() -> Iterator[dict[str, int]]:
    """Gives a dictionary that holds, once the block has ended, what this process requested meanwhile.

    What other threads request counts too, so windows that overlap count the same request each.
    """
    found = dict.fromkeys(KEYS, 0)
    before = snapshot()
    try:
        yield found
    finally:
        after = snapshot()
        found.update({key: after[key] - before[key] for key in KEYS})


@cache
def http_trace() -> TraceConfig:
    """The tracer that counts what an aiohttp session does; requests that found no connection do not count.

    It also tells the running operation's time limit how many bytes are on their way.
    """
    from aiohttp import TraceConfig

    async def sent(session: Any, context: Any, request: Any) -> None:
        count(kind_of(request.method, request.url.raw_path, request.url.query))

    async def uploaded(session: Any, context: Any, part: Any) -> None:
        book({"bytes_out": len(part.chunk)}, _aside.get())

    async def answered(session: Any, context: Any, end: Any) -> None:
        content, into = end.response.content, _aside.get()
        expect_bytes(0 if end.method == "HEAD" else end.response.content_length or 0)
        content.on_eof(lambda: book({"bytes_in": content.total_bytes and content.total_raw_bytes}, into))

    trace = TraceConfig()
    trace.on_request_headers_sent.append(sent)
    trace.on_request_chunk_sent.append(uploaded)
    trace.on_request_end.append(answered)
    return trace


def kind_of(method: str, path: str, query: Any) -> Kind:
    """The kind of a request to the JSON interface of Google or the REST interface of S3; `query` is a mapping."""
    if method == "DELETE" or path.startswith("/batch/"):
        return "delete"
    if method == "HEAD":
        return "head"
    if google := re.match(r"(/download|/upload)?/storage/v1/b(?:/[^/]+)?(/o(?:/[^/]+)?)?/?$", path):
        return _google_kind(method, google.group(1), google.group(2) or "", query)
    listing = {"list-type", "prefix", "uploads", "versions"} & set(query)
    amazon: dict[str, Kind] = {
        "GET": "list" if listing else "get",
        "PUT": "put",
        "POST": "delete" if "delete" in query else "put",
    }
    return amazon.get(method, "other")


def _google_kind(method: str, service: str | None, objects: str, query: Any) -> Kind:
    if service == "/upload" or method in ("PUT", "POST", "PATCH"):
        return "put"
    if method != "GET":
        return "other"
    if objects in ("", "/o"):
        return "list" if objects else "head"
    return "get" if service == "/download" or query.get("alt") == "media" else "head"


_TENSORSTORE = {"read": "get", "write": "put", "list": "list", "delete_range": "delete"}


def _tensorstore() -> dict[str, int]:
    """What tensorstore says of itself; its deletions of single keys count as "put", its retries as "other"."""
    import tensorstore as ts

    found = dict.fromkeys(KEYS, 0)
    remote = 0
    for driver in ("gcs", "s3", "file"):
        for metric in ts.experimental_collect_matching_metrics(f"/tensorstore/kvstore/{driver}/"):
            name = metric["name"].rsplit("/", 1)[-1]
            value = sum(int(entry.get("value", 0)) for entry in metric["values"])
            if name in _TENSORSTORE:
                found[_TENSORSTORE[name]] += value
                remote += value if driver != "file" else 0
            elif driver == "file" and name in ("bytes_read", "bytes_written"):
                found["bytes_in" if name == "bytes_read" else "bytes_out"] += value
    for metric in ts.experimental_collect_matching_metrics("/tensorstore/http/"):
        name, values = metric["name"].rsplit("/", 1)[-1], metric["values"]
        if name == "request_started":
            found["other"] += max(0, sum(int(entry["value"]) for entry in values) - remote)
        elif name in ("response_bytes", "request_bytes"):
            key = "bytes_in" if name == "response_bytes" else "bytes_out"
            found[key] += sum(round(entry["mean"] * entry["count"]) for entry in values)
    return found
