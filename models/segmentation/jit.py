"""The one way in which this package compiles loops, typed so that mypy sees through the decorator.

No `parallel=True`: Ray owns the cores. `nogil` lets threads of one process work on several chunks. Compiled code is
cached on disk per function; nothing is compiled at import time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Number = Any
"""A scalar inside compiled code. Its width matters (uint64 and int64 do not mix); numba infers it from the caller."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(function: _Function) -> _Function:
    """Compile `function` on its first call (numba, nopython mode, cached, without the interpreter lock)."""
    return cast(_Function, njit(cache=True, nogil=True)(function))
