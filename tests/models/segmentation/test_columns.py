import weakref
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from models.errors import InvalidVolume
from models.segmentation.columns import check_columns, stacked

COLUMNS = {"id": np.uint64, "size": np.int64}


@dataclass(frozen=True, eq=False)
class Table:
    id: NDArray[np.uint64]
    size: NDArray[np.int64]


def table(*ids: int) -> Table:
    return Table(np.array(ids, np.uint64), np.arange(len(ids)))


def test_columns_of_other_types_or_lengths_are_named() -> None:
    check_columns(table(3, 1 << 63), COLUMNS, "things")
    with pytest.raises(InvalidVolume, match=r"things: expected size of int64 and shape \(2,\), got int64 of \(1,\)"):
        check_columns(Table(np.zeros(2, np.uint64), np.zeros(1, np.int64)), COLUMNS, "things")
    with pytest.raises(InvalidVolume, match=r"things: expected id of uint64 and shape \(2,\), got float64"):
        check_columns(Table(np.zeros(2), np.zeros(2, np.int64)), COLUMNS, "things")  # type: ignore[arg-type]
    with pytest.raises(InvalidVolume, match=r"expected id of uint64 and shape \(4,\), got uint64 of \(2, 2\)"):
        check_columns(Table(np.zeros((2, 2), np.uint64), np.zeros(4, np.int64)), COLUMNS, "things")


def test_stacked_columns_are_given_back_one_by_one() -> None:
    parts = [table(3, 1), table(), table(1 << 63)]
    held = weakref.ref(parts[0].id), weakref.ref(parts[0].size)
    columns = stacked(parts, COLUMNS)
    assert next(columns).tolist() == [3, 1, 1 << 63]
    assert parts == []
    assert held[0]() is None
    assert held[1]() is not None
    assert next(columns).tolist() == [0, 1, 0]
    assert held[1]() is None
    assert next(columns, None) is None
