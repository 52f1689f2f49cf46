"""Tables of the segmentation are dataclasses of arrays of one length: what all check, and how they are stacked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from models.errors import InvalidVolume


def check_columns(table: object, columns: Mapping[str, DTypeLike], what: str) -> None:
    """Raise `InvalidVolume` unless these attributes of `table` are 1D arrays of these dtypes, as long as the first."""
    first = getattr(table, next(iter(columns)))
    for name, dtype in columns.items():
        array = getattr(table, name)
        if array.dtype != dtype or array.shape != (first.size,):
            raise InvalidVolume(
                f"{what}: expected {name} of {np.dtype(dtype)} and shape {(first.size,)}, "
                f"got {array.dtype} of {array.shape}"
            )


def stacked(parts: list[Any], columns: Iterable[str]) -> Iterator[NDArray[Any]]:
    """The columns of several tables, at least one, stacked one by one.

    `parts` is emptied: if nobody else holds the tables, a column of theirs is given back when it has been stacked, so
    that large tables are not in memory twice.
    """
    waiting = [[getattr(part, name) for part in parts] for name in columns]
    parts.clear()
    waiting.reverse()
    while waiting:
        yield np.concatenate(waiting.pop())
