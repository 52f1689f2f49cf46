"""Bearer tokens: who may do what. The file holds digests only, so reading it lets nobody in.

The file is JSON, a list of ``{"name": …, "sha256": …, "scopes": [...]}``. Tokens are random with 256 bits
(`new_token`), so a plain SHA-256 cannot be searched and no slow hash is needed. A changed file takes effect within
seconds, as a mounted secret that is rotated needs; one that is broken by then changes nothing and is logged.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from models.errors import InvalidConfig
from services.endpoints.problems import Forbidden, Unauthorized, validation_text

logger = logging.getLogger(__name__)

Scope = Literal["read", "predict", "write"]
"""Read what models there are; predict and segment; write results to a bucket."""
SCOPES: tuple[Scope, ...] = ("read", "predict", "write")
CHECK_S = 2.0
"""Age up to which the file is not looked at again."""
MAX_TOKEN = 512


class Token(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=100)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]


_FILE = TypeAdapter(tuple[Token, ...])


class Tokens:
    """The tokens of a file; None lets everyone in. Raises `InvalidConfig` where the file is missing or broken."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._tokens: tuple[Token, ...] = ()
        self._stamp: tuple[int, int] | None = None
        self._checked = time.monotonic()
        if self._path is not None:
            self._tokens, self._stamp = _read(self._path)

    def check(self, authorization: str | None, scope: Scope) -> str | None:
        """The name of the token in an `Authorization` header; None where no tokens are asked for.

        Raises `Unauthorized` without a known token, `Forbidden` where it lacks the scope. Every known digest is
        compared, each in constant time.
        """
        if self._path is None:
            return None
        self._refresh(self._path)
        kind, _, given = (authorization or "").strip().partition(" ")
        given = given.strip()
        if kind.lower() != "bearer" or not given or len(given) > MAX_TOKEN:
            raise Unauthorized("Authorization: expected 'Bearer TOKEN'")
        digest = _digest(given)
        found = [token for token in self._tokens if hmac.compare_digest(token.sha256, digest)]
        if not found:
            raise Unauthorized("Authorization: the token is not known")
        if not any(scope in token.scopes for token in found):
            raise Forbidden(f"the token {found[0].name!r} does not have the scope {scope!r}")
        return found[0].name

    def _refresh(self, path: Path) -> None:
        if time.monotonic() - self._checked < CHECK_S:
            return
        self._checked = time.monotonic()
        try:
            if _stamp(path) != self._stamp:
                self._tokens, self._stamp = _read(path)
                logger.info("%s: %d tokens", path, len(self._tokens))
        except (OSError, InvalidConfig) as error:
            logger.error("tokens stay as they were: %s", error)


def new_token(name: str, scopes: tuple[Scope, ...]) -> tuple[str, Token]:
    """A random token of 256 bits, and what to put into the file for it."""
    text = secrets.token_urlsafe(32)
    return text, Token(name=name, sha256=_digest(text), scopes=frozenset(scopes))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ino


def _read(path: Path) -> tuple[tuple[Token, ...], tuple[int, int]]:
    try:
        stamp, content = _stamp(path), path.read_bytes()
    except OSError as error:
        raise InvalidConfig(f"tokens {path}: cannot be read ({error.strerror})") from error
    try:
        return _FILE.validate_json(content), stamp
    except ValidationError as error:
        raise InvalidConfig(f"tokens {path}: {validation_text(error.errors())}") from error
