"""Turns what the storage libraries raise into our errors, so that a user reads what failed, where and why."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from zipfile import BadZipFile

from models.errors import AccessDenied, NotFound, PetavoxelError, StorageFailed

_DENIED = re.compile(
    r"^\w+: forbidden\b|\baccess ?denied\b|PERMISSION_DENIED|UNAUTHENTICATED|invalid[_ ]credentials|anonymous caller|"
    r"unable to locate credentials|\(40[13]\) when calling|could not automatically determine credentials",
    re.IGNORECASE,
)
_MISSING = re.compile(r"^\w+: NOT_FOUND\b|\bNoSuchBucket\b|\bNoSuchKey\b|bucket does not exist", re.IGNORECASE)
_UNAVAILABLE = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED)\b")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def translated(error: BaseException, where: str) -> PetavoxelError:
    """The error of our tree for what a storage library raised while working on `where`."""
    if isinstance(error, PetavoxelError):
        return error
    cause = _one_line(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError) or _MISSING.search(cause):
        return NotFound(f"{where}: not there ({cause})")
    if isinstance(error, PermissionError) or _http_status(error) in (401, 403) or _DENIED.search(cause):
        return AccessDenied(f"{where}: the store denies access ({cause})")
    return StorageFailed(f"{where}: {_failure(error, cause)} ({cause})")


def _failure(error: BaseException, cause: str) -> str:
    if isinstance(error, OSError) and error.errno in _FULL:
        return "the disk is full"
    if isinstance(error, TimeoutError):
        return "the store did not answer in time"
    if isinstance(error, ValueError | RuntimeError | EOFError | BadZipFile) and not _UNAVAILABLE.search(cause):
        return "the stored bytes are damaged or of another format"
    return "the store failed"


@contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Raise errors of our tree for whatever fails inside, each naming `where`."""
    try:
        yield
    except PetavoxelError as error:
        if where in str(error):
            raise
        raise type(error)(f"{where}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:
        raise translated(error, where) from error


def _http_status(error: BaseException) -> int | None:
    status = getattr(error, "code", None) or getattr(error, "status", None)
    return int(status) if isinstance(status, int) or (isinstance(status, str) and status.isdigit()) else None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
