"""Who may call a route, how many at a time, for how long, and under which id: what all routes share."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any
from uuid import uuid4

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import PetavoxelError
from services.endpoints import logs, tracing
from services.endpoints.gate import Gate
from services.endpoints.problems import DeadlineExceeded
from services.endpoints.tokens import SCOPES, Tokens
from services.endpoints.tokens import Scope as Permission

logger = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_QUIET = ("/healthz", "/readyz", "/v2/health/")


class Access:
    """Checks tokens, and counts open requests; its methods give the dependencies of routes."""

    def __init__(self, tokens: Tokens, gate: Gate, *, closed: bool) -> None:
        self._tokens, self._gate = tokens, gate
        self._bearer = HTTPBearer(auto_error=False, description=f"Scopes: {', '.join(SCOPES)}.") if closed else None

    def needs(self, permission: Permission) -> list[Any]:
        """The dependency of a route that a token with this scope may call."""

        async def check(request: Request) -> None:
            self.check(request, permission)

        documented = [] if self._bearer is None else [Security(self._bearer)]
        return [Depends(check), *documented]

    def works(self) -> list[Any]:
        """The dependencies of a route that computes: the scope "predict", and a place that ends with the reply."""

        async def admitted() -> AsyncIterator[None]:
            async with self._gate:
                yield

        return [*self.needs("predict"), Depends(admitted)]

    def check(self, request: Request, permission: Permission) -> None:
        """Raises `Unauthorized` or `Forbidden`."""
        self._tokens.check(request.headers.get("authorization"), permission)


@asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    """Gives up what is inside after `seconds`, with `DeadlineExceeded`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        if isinstance(error, PetavoxelError):
            raise
        raise DeadlineExceeded(f"the request took longer than {seconds:g} s") from error


class RequestLog:
    """Gives every request an id, the client's X-Request-Id where it has a usable one, and logs a line at its end.

    With `proxied`, Serve's proxy puts the id into the reply, else this does.
    """

    def __init__(self, app: ASGIApp, *, proxied: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._proxied, self._clock = app, proxied, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        current = given if _ID.fullmatch(given) else uuid4().hex
        began, status, sent = self._clock(), 0, 0

        async def observed(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                if not self._proxied:
                    MutableHeaders(scope=message)["X-Request-Id"] = current
            sent += len(message.get("body", b""))
            await send(message)

        token = logs.request_id.set(current)
        quiet = scope["path"] == "/" or scope["path"].startswith(_QUIET)
        try:
            with nullcontext() if quiet else tracing.request_span(scope["method"], headers):
                try:
                    await self._app(scope, receive, observed)
                finally:
                    if not quiet:
                        tracing.finish_request(scope["method"], getattr(scope.get("route"), "path", ""), status)
                        line = {"method": scope["method"], "path": scope["path"][:500], "status": status}
                        line |= {"bytes_out": sent, "seconds": round(self._clock() - began, 4)}
                        logger.info("%s %s %s", line["method"], line["path"], status or "no reply", extra=line)
        finally:
            logs.request_id.reset(token)
