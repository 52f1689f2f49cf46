"""Tables of the segmentation are dataclasses of arrays of one length; what all of them check stands here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike

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
