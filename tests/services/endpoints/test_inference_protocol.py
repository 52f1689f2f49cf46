from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.errors import InvalidVolume, PetavoxelError
from services.endpoints.inference_protocol import array_of, layout_of, read_request
from services.endpoints.problems import MalformedBody


def _image(data: Any, shape: tuple[int, ...] = (2, 2, 2), datatype: str = "UINT8") -> NDArray[Any]:
    tensor = {"name": "image", "shape": shape, "datatype": datatype, "data": data}
    request = read_request(json.dumps({"inputs": [tensor]}).encode())
    return array_of(request.tensor, layout_of(request.tensor))


@pytest.mark.parametrize("datatype", ["UINT8", "INT32", "FP32"])
def test_flat_and_nested_numbers(datatype: str) -> None:
    wanted = np.arange(8).reshape(2, 2, 2)
    for data in (wanted.ravel().tolist(), wanted.reshape(4, 2).tolist(), wanted.tolist(), wanted[None, None].tolist()):
        found = _image(data, datatype=datatype)
        assert found.dtype == layout_of(read_request_of(datatype)).dtype
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(_image([0, 0.5] * 4, datatype="FP32").ravel(), [0, 0.5] * 4)


def read_request_of(datatype: str) -> Any:
    tensor = {"name": "image", "shape": [2, 2, 2], "datatype": datatype}
    return read_request(json.dumps({"inputs": [tensor]}).encode()).tensor


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        ([1] * 7, MalformedBody, "expected 8 numbers, got 7"),
        ([[1] * 4] * 3, MalformedBody, "expected 8 numbers, got 12"),
        ([], MalformedBody, "expected 8 numbers, got 0"),
        ([[], []], MalformedBody, "expected 8 numbers, got 0"),
        ([[1, 2], [3]], MalformedBody, "expected a list of numbers, flat or of the tensor's shape"),
        ([[1] * 7, 1], MalformedBody, "expected a list of numbers, flat or of the tensor's shape"),
        ([10**400] + [0.5] * 7, InvalidVolume, "expected numbers of UINT8"),
        (["1"] * 8, InvalidVolume, "expected numbers of UINT8, got str"),
        ([1] * 7 + ["1"], InvalidVolume, "expected numbers of UINT8, got int, str"),
        ([True] * 8, InvalidVolume, "expected numbers of UINT8, got bool"),
        ([1] * 7 + [True], InvalidVolume, "expected numbers of UINT8"),
        ([[1, 2, 3, None]] * 2, InvalidVolume, "expected numbers of UINT8, got NoneType, int"),
        ([{}] * 8, InvalidVolume, "expected numbers of UINT8, got dict"),
        ([10**40] * 8, InvalidVolume, "expected numbers of UINT8"),
        ([256] * 8, InvalidVolume, "expected integers from 0 to 255"),
        ([0.5] * 8, InvalidVolume, "expected integers from 0 to 255"),
    ],
)
def test_what_is_no_image(data: Any, kind: type[PetavoxelError], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        _image(data)
    assert type(caught.value) is kind


@pytest.mark.parametrize("nested", [False, True])
def test_one_long_string_does_not_widen_all_numbers(nested: bool) -> None:
    """As an array of numpy these are 4 * 90 000 * 100 000 bytes."""
    count = 90_000
    numbers: list[Any] = ["x" * 100_000] + [0] * (count - 1)
    data = [numbers[i : i + 100] for i in range(0, count, 100)] if nested else numbers
    tracemalloc.start()
    try:
        with pytest.raises(InvalidVolume, match="data: expected numbers of UINT8, got int, str"):
            _image(data, (100, 100, 9))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
