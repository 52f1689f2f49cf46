"""Errors over HTTP as problem details (RFC 9457): the error tree, and what only a request can get wrong.

A replica returns a `Problem` instead of raising, so no exception has to survive the way between processes, and no
traceback can reach a client.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from starlette.responses import JSONResponse

from models.errors import InvalidInput, PetavoxelError

MEDIA_TYPE = "application/problem+json"
TYPES = "/problems/"
"""Path below which each problem type is described."""


class MalformedBody(InvalidInput):
    """The body or a header cannot be read as what it claims to be."""

    status = 400


class Unauthorized(PetavoxelError, PermissionError):
    """The request needs a bearer token that this server knows."""

    status = 401


class Forbidden(PetavoxelError, PermissionError):
    """The token does not allow this."""

    status = 403


class NotAcceptable(InvalidInput):
    """None of the media types that the client accepts can be produced."""

    status = 406


class PayloadTooLarge(InvalidInput):
    """The image, or the work that it asks for, is larger than this server allows."""

    status = 413


class UnsupportedMediaType(InvalidInput):
    """The body has a media type or encoding that this endpoint does not read."""

    status = 415


class Overloaded(PetavoxelError, RuntimeError):
    """Too many requests wait already; try again later."""

    status = 429


class Unavailable(PetavoxelError, RuntimeError):
    """The server or its model is starting, stopping or being replaced; try again later."""

    status = 503


class ModelUnavailable(PetavoxelError, RuntimeError):
    """The model cannot be loaded on the server; other models are served on."""

    status = 503


class DeadlineExceeded(PetavoxelError, TimeoutError):
    """The request took longer than this server allows, and was given up."""

    status = 504


class InternalError(PetavoxelError, RuntimeError):
    """The server failed in a way that the request did not cause; its log holds the cause."""

    status = 500


RETRY_AFTER_S = {429: 1, 503: 5, 504: 5}


@dataclass(frozen=True)
class Problem:
    """One failure, ready to be sent; `instance` finds it in the server's log."""

    kind: str
    title: str
    status: int
    detail: str
    instance: str = field(default_factory=lambda: f"urn:uuid:{uuid4()}")

    @classmethod
    def of(cls, error: PetavoxelError) -> Problem:
        """The problem of an error of our tree."""
        kind = type(error)
        return cls(_kebab(kind.__name__), _summary(kind), kind.status, " ".join(str(error).split()))

    @classmethod
    def http(cls, status: int, detail: str) -> Problem:
        """A problem with no meaning beyond its HTTP status."""
        return cls("", detail, status, detail)

    def document(self) -> dict[str, Any]:
        """The JSON object of RFC 9457."""
        return {
            "type": f"{TYPES}{self.kind}" if self.kind else "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": self.instance,
        }

    def response(self, path: str = "") -> JSONResponse:
        """The HTTP reply to a request of `path`; below /v2 with the member `error` that its clients read."""
        wait = RETRY_AFTER_S.get(self.status)
        headers = {"Retry-After": str(wait)} if wait else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        document = self.document()
        if path.startswith("/v2"):
            document["error"] = self.detail
        return JSONResponse(document, self.status, headers, MEDIA_TYPE)


def descriptions() -> dict[str, dict[str, Any]]:
    """Every problem type, by name, with its title and HTTP status."""
    kinds: dict[str, dict[str, Any]] = {}
    waiting: list[type[PetavoxelError]] = [PetavoxelError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        kinds[_kebab(kind.__name__)] = {"title": _summary(kind), "status": kind.status}
    return dict(sorted(kinds.items()))


def validation_text(errors: Sequence[Any]) -> str:
    """One line of what pydantic found, at most ten findings."""
    return "; ".join(f"{'.'.join(str(part) for part in e['loc']) or 'body'}: {e['msg']}" for e in errors[:10])


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


def _summary(kind: type) -> str:
    return (kind.__doc__ or kind.__name__).strip().splitlines()[0].rstrip(".")
