"""What the OpenAPI page says about bodies that FastAPI does not read by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from services.endpoints.bodies import JSON, NPY, RAW
from services.endpoints.inference_protocol import InferRequest
from services.endpoints.problems import MEDIA_TYPE
from services.endpoints.schemas import Reference, SegmentReference, Written

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_PROBLEM = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
    },
}
_FAILURES = {
    400: "The body or a header cannot be read as what it claims to be",
    401: "No bearer token that this server knows",
    403: "The volume lies below no allowed prefix, the token lacks a scope, or the store denies access",
    404: "No such model or volume",
    406: "No acceptable media type",
    409: "A volume is already at `output`",
    413: "Larger than this server allows",
    415: "Unknown media type or encoding",
    422: "Wrong dtype, shape, values or parameters",
    429: "Too many requests wait; see Retry-After",
    502: "The store failed",
    503: "The server is starting or stopping, or the model cannot be loaded; see Retry-After",
    504: "Took too long",
}
_HEADERS = {
    "X-Shape": "channels,z,y,x",
    "X-Dtype": "uint8",
    "X-Affinity-Offsets": "z,y,x per channel, separated by semicolons",
    "X-Affinity-Anchor": "p: the value at p tells about p and p + offset",
    "X-Voxel-Size-Nm": "z,y,x of the image, where it is known",
    "X-Model-Name": "the model's name",
    "X-Model-Version": "the model's version",
    "X-Model-Sha256": "digest of the model's file",
    "X-Model-Voxel-Size-Nm": "z,y,x that the model was trained for",
    "X-Model-Precision": "precision of the convolutions",
    "Server-Timing": "replica;dur=: milliseconds of reading, computing and writing",
}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


def _failures(statuses: Iterable[int] = _FAILURES) -> dict[str, Any]:
    return {str(s): {"description": _FAILURES[s], "content": {MEDIA_TYPE: {"schema": _PROBLEM}}} for s in statuses}


def _voxels(reference: type[Reference], result: str, headers: dict[str, str]) -> dict[str, Any]:
    return {
        "parameters": [
            {"in": "header", "name": "X-Shape", "schema": {"type": "string"}, "description": "z,y,x of a raw body"},
            {
                "in": "header",
                "name": "X-Dtype",
                "schema": {"type": "string"},
                "description": "dtype of a raw body: uint8",
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                RAW: _BINARY,
                NPY: _BINARY,
                JSON: {
                    "schema": reference.model_json_schema(),
                    "example": reference.model_json_schema()["examples"][0],
                },
            },
        },
        "responses": {
            "200": {
                "description": result,
                "headers": {name: _header(text) for name, text in headers.items()},
                "content": {NPY: _BINARY, RAW: _BINARY},
            },
            "201": {
                "description": "The result was written to `output`",
                "content": {JSON: {"schema": Written.model_json_schema()}},
            },
            **_failures(),
        },
    }


BOUNDARY = _voxels(Reference, "Affinities, uint8 (channel, z, y, x)", _HEADERS)
"""Merged into the operation of `POST /v1/boundary`."""
SEGMENT = _voxels(
    SegmentReference,
    "Labels, uint64 (z, y, x), 0 = background",
    {name: text for name, text in _HEADERS.items() if "Affinity" not in name}
    | {"X-Shape": "z,y,x", "X-Dtype": "uint64"},
)
"""Merged into the operation of `POST /v1/segment`."""
INFER: dict[str, Any] = {
    "parameters": [
        {
            "in": "header",
            "name": "Inference-Header-Content-Length",
            "schema": {"type": "integer", "minimum": 1},
            "description": "Bytes of JSON at the start of a body whose tensor follows in binary",
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": InferRequest.model_json_schema(),
                "example": {
                    "id": "1",
                    "inputs": [{"name": "image", "shape": [1, 2, 2], "datatype": "UINT8", "data": [0, 80, 160, 255]}],
                },
            },
            RAW: _BINARY,
        },
    },
    "responses": {
        "200": {
            "description": "Affinities as a tensor, in JSON or, where that was asked for, in binary behind the JSON",
            "headers": {"Inference-Header-Content-Length": _header("bytes of JSON before a binary tensor")},
            "content": {JSON: {"schema": {"type": "object"}}, RAW: _BINARY},
        },
        **_failures(),
    },
}
"""Merged into the operations of `POST /v2/models/{name}/infer`."""
METADATA = _failures((401, 403, 404, 422))
"""Replies of routes that read metadata."""
