"""The HTTP session of s3fs, with our counter; a module of its own, because importing aiobotocore is slow."""

from __future__ import annotations

from aiobotocore.httpsession import AIOHTTPSession
from aiohttp import ClientSession

from infra.volumes.metering import http_trace


class MeteredSession(AIOHTTPSession):  # type: ignore[misc]
    """aiobotocore's session, whose requests are counted."""

    async def _get_session(self, proxy_url: str | None) -> ClientSession:
        session: ClientSession = await super()._get_session(proxy_url)
        trace = http_trace()
        if trace not in session.trace_configs:
            trace.freeze()
            session.trace_configs.append(trace)
        return session
