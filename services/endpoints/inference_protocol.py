"""The tensors of the Open Inference Protocol v2: how a model looks through it, and how requests and replies are coded.

Contract, the same for every model of the catalog::

    input   "image"       the card's dtype   [z, y, x] or [1, 1, z, y, x], as stored: normalisation is the server's
    output  "affinities"  UINT8              [c, z, y, x] or [1, c, z, y, x], channels as the card's offsets say

An image may have any extents: it goes through the same predictor as everything else (patches, margins, blending).
Source: KServe's Open Inference Protocol v2, and Triton's binary tensor data extension.
"""

from __future__ import annotations

import json
import math
from itertools import chain
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.catalog import ModelCard
from models.errors import InvalidInput, InvalidVolume
from models.geometry import Triple, triple
from services.endpoints.bodies import Layout
from services.endpoints.problems import MalformedBody, PayloadTooLarge, validation_text

INPUT, OUTPUT = "image", "affinities"
PLATFORM = "petavoxel"
HEADER = "Inference-Header-Content-Length"
MAX_JSON_BYTES = 4 * 2**20
"""Of a body or header in JSON; an image that needs more is sent in binary."""
MAX_JSON_VALUES = 4 * 2**20
"""Of a reply in JSON."""

DTYPES = {
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "INT8": "int8", "INT16": "int16", "INT32": "int32",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LISTS = "data: expected a list of numbers, flat or of the tensor's shape"


class InputTensor(BaseModel):
    """One input; `data` is missing where it follows in binary."""

    model_config = ConfigDict(frozen=True)
    name: str
    shape: Annotated[tuple[int, ...], Field(min_length=1, max_length=8)]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class OutputRequest(BaseModel):
    """One output that is asked for."""

    model_config = ConfigDict(frozen=True)
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    """The JSON of an inference request."""

    model_config = ConfigDict(frozen=True)
    id: Annotated[str, Field(max_length=256)] = ""
    parameters: dict[str, Any] = {}
    inputs: Annotated[tuple[InputTensor, ...], Field(min_length=1, max_length=1)]
    outputs: Annotated[tuple[OutputRequest, ...], Field(max_length=1)] = ()

    @property
    def tensor(self) -> InputTensor:
        """The one input."""
        return self.inputs[0]

    @property
    def binary_output(self) -> bool:
        """Whether the reply's tensor shall be binary."""
        default = self.parameters.get("binary_data_output", False)
        return bool(self.outputs[0].parameters.get("binary_data", default) if self.outputs else default)


def metadata(card: ModelCard, versions: tuple[str, ...]) -> dict[str, Any]:
    """What the protocol says of a model."""
    return {
        "name": card.name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": _NAMES[card.normalisation.dtype], "shape": [-1, -1, -1]}],
        "outputs": [{"name": OUTPUT, "datatype": "UINT8", "shape": [len(card.output.offsets), -1, -1, -1]}],
        "parameters": {"sha256": card.file.sha256, "voxel_size_nm": list(card.voxel_size_nm)},
    }


def read_request(text: bytes) -> InferRequest:
    """The request in JSON; raises `MalformedBody` for what is no JSON, `InvalidInput` for what is not supported."""
    try:
        request = InferRequest.model_validate_json(text)
    except ValidationError as error:
        broken = any(item["type"] == "json_invalid" for item in error.errors())
        raise (MalformedBody if broken else InvalidInput)(validation_text(error.errors())) from error
    tensor = request.tensor
    if tensor.name != INPUT:
        raise InvalidInput(f"inputs: expected one called {INPUT!r}, got {tensor.name[:100]!r}")
    if request.outputs and request.outputs[0].name != OUTPUT:
        raise InvalidInput(f"outputs: expected one called {OUTPUT!r}, got {request.outputs[0].name[:100]!r}")
    if tensor.datatype not in DTYPES:
        raise InvalidVolume(f"datatype: expected one of {', '.join(DTYPES)}, got {tensor.datatype[:100]!r}")
    wanted = [tensor.parameters, *(output.parameters for output in request.outputs)]
    for name in ("shared_memory_region", "classification"):
        if any(name in parameters for parameters in wanted):
            raise InvalidInput(f"parameters: {name} is not supported")
    return request


def layout_of(tensor: InputTensor) -> Layout:
    """Shape (z, y, x) and dtype of an input; raises `InvalidVolume` for other axes."""
    shape = tensor.shape
    if len(shape) == 5 and shape[:2] == (1, 1):
        shape = shape[2:]
    if len(shape) != 3:
        raise InvalidVolume(f"shape: expected [z, y, x] or [1, 1, z, y, x], got {list(tensor.shape)}")
    return Layout(_extent(shape), np.dtype(DTYPES[tensor.datatype]))


def check_binary(tensor: InputTensor, layout: Layout) -> None:
    """Refuse a binary input whose size is not that of its shape, before it is read."""
    size = tensor.parameters.get("binary_data_size")
    if tensor.data is not None or type(size) is not int:
        raise InvalidInput("inputs: expected either data, or the parameter binary_data_size and the bytes behind")
    if size != layout.nbytes:
        raise MalformedBody(f"inputs: shape {layout.shape} of {layout.dtype} has {layout.nbytes} bytes, got {size}")


def array_of(tensor: InputTensor, layout: Layout) -> NDArray[Any]:
    """The image (z, y, x) of an input in JSON, a flat or nested list in C order.

    Raises `MalformedBody` where there are not as many numbers as the shape says, `InvalidVolume` where one does not
    fit the datatype. Both are known before an array is made: numpy widens all elements to the longest string.
    """
    if "binary_data_size" in tensor.parameters:
        raise InvalidInput("inputs: data in JSON and binary_data_size exclude each other")
    numbers = _numbers(tensor)
    if len(numbers) != math.prod(layout.shape):
        raise MalformedBody(f"data: expected {math.prod(layout.shape)} numbers, got {len(numbers)}")
    values = np.array(numbers)
    if values.dtype.kind not in "iuf":
        raise InvalidVolume(f"data: expected numbers of {tensor.datatype}, got {values.dtype}")
    if layout.dtype.kind in "iu":
        limits = np.iinfo(layout.dtype)
        if values.dtype.kind == "f" or values.min() < limits.min or values.max() > limits.max:
            raise InvalidVolume(f"data: expected integers from {limits.min} to {limits.max}")
    with np.errstate(over="ignore"):  # an infinite value is refused with its position later on
        return values.astype(layout.dtype).reshape(layout.shape)


def reply_json(request: InferRequest, card: ModelCard, affinities: NDArray[np.uint8]) -> bytes:
    """The JSON of a reply: all of it, or what comes before the binary tensor.

    Raises `PayloadTooLarge` for a tensor of too many values for JSON.
    """
    shape = [*([1] if len(request.tensor.shape) == 5 else []), *affinities.shape]
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "UINT8", "shape": shape}
    if request.binary_output:
        output["parameters"] = {"binary_data_size": affinities.nbytes}
    elif affinities.size > MAX_JSON_VALUES:
        raise PayloadTooLarge(
            f"outputs: expected at most {MAX_JSON_VALUES} values in JSON, {affinities.size} were asked for; "
            "set binary_data of the output"
        )
    else:
        output["data"] = affinities.ravel().tolist()
    document = {"model_name": card.name, "model_version": card.version, "outputs": [output]}
    return json.dumps(({"id": request.id} if request.id else {}) | document, separators=(",", ":")).encode()


def _numbers(tensor: InputTensor) -> list[int | float]:
    """The leaves of the nested lists of an input in JSON."""
    level: list[Any] = tensor.data or []
    while (kinds := set(map(type, level))) == {list}:
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise MalformedBody(f"{_LISTS} (lists of one level have {min(lengths)} to {max(lengths)} elements)")
        level = list(chain.from_iterable(level))
    if list in kinds:
        raise MalformedBody(f"{_LISTS} (lists lie beside other elements)")
    if not kinds <= {int, float}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InvalidVolume(f"data: expected numbers of {tensor.datatype}, got {names}")
    return level


def _extent(shape: tuple[int, ...]) -> Triple:
    return triple(shape, "shape", minimum=1)
