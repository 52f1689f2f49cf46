"""The HTTP session of s3fs, with our counter and limits; a module of its own, because importing aiobotocore is slow."""

from __future__ import annotations

from typing import Any

from aiobotocore.httpsession import AIOHTTPSession
from aiohttp import ClientSession

from infra.settings import Settings
from infra.volumes.metering import http_trace


class MeteredSession(AIOHTTPSession):  # type: ignore[misc]
    """aiobotocore's session, whose requests are counted; silence may last longer while much is uploaded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._slowest = Settings().storage_slowest_bytes_per_s

    async def send(self, request: Any) -> Any:
        """Send a request of botocore's."""
        upload = int(request.headers.get("Content-Length") or 0)
        if upload:
            request.context["read_timeout"] = self._timeout.sock_read + upload / self._slowest
        return await super().send(request)

    async def _get_session(self, proxy_url: str | None) -> ClientSession:
        session: ClientSession = await super()._get_session(proxy_url)
        trace = http_trace()
        if trace not in session.trace_configs:
            trace.freeze()
            session.trace_configs.append(trace)
        return session
