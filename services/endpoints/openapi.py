"""What the OpenAPI page says about bodies that FastAPI does not read by itself."""

from __future__ import annotations

from typing import Any

from services.endpoints.bodies import JSON, NPY, RAW
from services.endpoints.problems import MEDIA_TYPE
from services.endpoints.schemas import Reference, Written

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
    403: "The volume lies below no allowed prefix, or the store denies access",
    404: "No such model or volume",
    406: "No acceptable media type",
    409: "A volume is already at `output`",
    413: "Larger than this server allows",
    415: "Unknown media type or encoding",
    422: "Wrong dtype, shape, values or parameters",
    429: "Too many requests wait; see Retry-After",
    502: "The store failed",
    503: "The server is starting or stopping; see Retry-After",
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
}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


BOUNDARY: dict[str, Any] = {
    "parameters": [
        {"in": "header", "name": "X-Shape", "schema": {"type": "string"}, "description": "z,y,x of a raw body"},
        {"in": "header", "name": "X-Dtype", "schema": {"type": "string"}, "description": "dtype of a raw body: uint8"},
    ],
    "requestBody": {
        "required": True,
        "content": {RAW: _BINARY, NPY: _BINARY, JSON: {"schema": Reference.model_json_schema()}},
    },
    "responses": {
        "200": {
            "description": "Affinities, uint8 (channel, z, y, x)",
            "headers": {name: _header(text) for name, text in _HEADERS.items()},
            "content": {NPY: _BINARY, RAW: _BINARY},
        },
        "201": {
            "description": "Affinities were written to `output`",
            "content": {JSON: {"schema": Written.model_json_schema()}},
        },
        **{
            str(status): {"description": text, "content": {MEDIA_TYPE: {"schema": _PROBLEM}}}
            for status, text in _FAILURES.items()
        },
    },
}
"""Merged into the operation of `POST /v1/boundary`."""
