"""Writes a network's precision into its ONNX graph, as TensorRT expects it since precision flags are gone.

Weights and activations become bf16 or fp16; the image comes in and probabilities go out as float32, and the sigmoid is
computed in float32, since bf16 near 1 has steps of 1/256.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from models.errors import InvalidModel

_TYPES = {"bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16}


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that needs no other; raises `InvalidModel` where it is not one."""
    try:
        return onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise InvalidModel(f"{path}: not a readable ONNX file ({error})") from error


def typed_onnx(path: Path, precision: str) -> bytes:
    """Return the serialised network of an exported file in "fp32", "bf16" or "fp16".

    Raises `InvalidModel` where the file is not ONNX or does not end in the sigmoid that exports end in.
    """
    model = read_onnx(path)
    if precision == "fp32":
        return bytes(model.SerializeToString())
    graph, target = model.graph, _TYPES[precision]
    image, last = graph.input[0].name, graph.node[-1] if graph.node else None
    if last is None or last.op_type != "Sigmoid" or last.output[0] != graph.output[0].name:
        raise InvalidModel(f"{path}: expected a network that ends in a sigmoid")
    scales = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:]}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in scales:
            tensor.CopyFrom(_converted(tensor, target))
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == image:
                node.input[i] = "image_typed"
    logits = last.input[0]
    last.input[0] = "logits_float"
    graph.node.insert(0, helper.make_node("Cast", [image], ["image_typed"], to=target))
    graph.node.insert(len(graph.node) - 1, helper.make_node("Cast", [logits], ["logits_float"], to=TensorProto.FLOAT))
    return bytes(model.SerializeToString())


def _converted(tensor: TensorProto, target: int) -> TensorProto:
    values = numpy_helper.to_array(tensor).astype(np.float32)
    typed = values.astype(helper.tensor_dtype_to_np_dtype(target))
    if not np.isfinite(typed.astype(np.float32)).all():
        raise InvalidModel(f"network: weights of {tensor.name} do not fit the precision")
    return numpy_helper.from_array(typed, tensor.name)
