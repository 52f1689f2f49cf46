"""Broken requests to the endpoints: many chosen by hand, and any number at random."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from services.endpoints.bodies import JSON, NPY, RAW
from services.endpoints.inference_protocol import HEADER

Case = tuple[str, bytes, dict[str, str]]
"""Path with query, body, headers."""

IMAGE = np.arange(5 * 6 * 7, dtype=np.uint8).reshape(5, 6, 7)
ROUTES = ("/v1/boundary", "/v1/segment")
INFER = "/v2/models/small/infer"
_RAW = {"Content-Type": RAW, "X-Shape": "5,6,7", "X-Dtype": "uint8"}
_ODD: list[Any] = [
    None, 0, -1, 1, 2**63, 10**400, 1e400, float("nan"), True, [], {}, "", "\ud800", "\u0000", "x" * 5000, [[]], [None],
    {"a": {"b": []}}, "0:4", "../..", "uint8", [1, 2, 3], [-1, 6, 7], [5, 6, 10**30], "9" * 150, [0.5] * 210,
]  # fmt: skip


def npy() -> bytes:
    """A good body."""
    stream = io.BytesIO()
    np.save(stream, IMAGE, allow_pickle=False)
    return stream.getvalue()


def tensor(**changes: Any) -> dict[str, Any]:
    """A good request of the Open Inference Protocol, with changes to its tensor."""
    given = {"name": "image", "shape": [5, 6, 7], "datatype": "UINT8", "data": IMAGE.ravel().tolist()}
    return {"id": "1", "inputs": [given | changes], "outputs": [{"name": "affinities"}]}


def random_cases(rng: np.random.Generator, volume: str, count: int) -> Iterator[Case]:
    """`count` requests, nearly all of them broken in one or several places."""
    kinds: tuple[Callable[[np.random.Generator, str], Case], ...] = (
        _random_npy, _random_reference, _random_raw, _random_tensor, _random_binary, _random_bytes,
    )  # fmt: skip
    for _ in range(count):
        yield kinds[rng.integers(len(kinds))](rng, volume)


def _random_npy(rng: np.random.Generator, _: str) -> Case:
    return str(rng.choice(ROUTES)), _altered(rng, npy(), 100), {"Content-Type": NPY}


def _random_reference(rng: np.random.Generator, volume: str) -> Case:
    route = str(rng.choice(ROUTES))
    body = {"volume": volume, "box": "0:4,0:4,0:4", "level": 0, "model": "small"}
    if route == "/v1/segment":
        body |= {"threshold": 0.3, "low": 0.1, "high": 0.9, "basin_voxels": 3}
    text = json.dumps(_odd(rng, body)).encode()
    return route, _altered(rng, text, len(text)) if rng.random() < 0.5 else text, {"Content-Type": JSON}


def _random_raw(rng: np.random.Generator, _: str) -> Case:
    headers = dict(_RAW)
    if rng.random() < 0.5:
        headers["X-Shape"] = ",".join(str(n) for n in rng.integers(-2, 12, rng.integers(0, 5)))
    if rng.random() < 0.3:
        headers["X-Dtype"] = str(rng.choice(["", "uint16", "O", "V9", "float16", "(2,)u1", "int8", "U3"]))
    query = str(rng.choice(["", "?model=x", "?threshold=nan", "?voxel_size_nm=1,2", "?x=1", "?basin_voxels=1e9"]))
    return str(rng.choice(ROUTES)) + query, rng.bytes(int(rng.integers(0, 400))), headers


def _random_tensor(rng: np.random.Generator, _: str) -> Case:
    body = tensor()
    body["inputs"] = [_odd(rng, body["inputs"][0])]
    text = json.dumps(_odd(rng, body) if rng.random() < 0.5 else body).encode()
    return INFER, _altered(rng, text, len(text)) if rng.random() < 0.5 else text, {"Content-Type": JSON}


def _random_binary(rng: np.random.Generator, _: str) -> Case:
    body = tensor(parameters={"binary_data_size": IMAGE.size})
    del body["inputs"][0]["data"]
    body["outputs"][0]["parameters"] = {"binary_data": True}
    if rng.random() < 0.5:
        body["inputs"][0] = _odd(rng, body["inputs"][0])
    text = json.dumps(body).encode()
    length = len(text) + int(rng.integers(-20, 20)) if rng.random() < 0.4 else len(text)
    content = text + IMAGE.tobytes()
    if rng.random() < 0.4:
        content = _altered(rng, content, len(text))
    return INFER, content, {HEADER: str(length)}


def _random_bytes(rng: np.random.Generator, _: str) -> Case:
    kind = str(rng.choice([NPY, RAW, JSON, "text/plain", ""]))
    route = str(rng.choice([*ROUTES, INFER, "/v2/repository/index"]))
    headers = {"Content-Type": kind} | ({HEADER: str(rng.integers(-5, 10**8))} if rng.random() < 0.3 else {})
    return route, rng.bytes(int(rng.integers(0, 3000))), headers


def _odd(rng: np.random.Generator, body: dict[str, Any]) -> dict[str, Any]:
    key = str(rng.choice([*body, "unknown"]))
    if rng.random() < 0.2:
        return {name: value for name, value in body.items() if name != key}
    return body | {key: _ODD[rng.integers(len(_ODD))]}


def _altered(rng: np.random.Generator, content: bytes, first: int) -> bytes:
    """Cut off, or with up to four of the `first` bytes changed."""
    if rng.random() < 0.3:
        return content[: rng.integers(0, len(content))]
    altered = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        altered[rng.integers(0, first)] = rng.integers(0, 256)
    return bytes(altered)
