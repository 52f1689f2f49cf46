"""What /v1 routes read from a request (a patch, or a reference to a stored box), and how their replies look."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeVar

from fastapi import Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from models.catalog import ModelCard
from models.errors import InvalidInput
from models.geometry import VoxelSize
from services.endpoints import bodies
from services.endpoints.problems import MalformedBody, Problem, UnsupportedMediaType, validation_text
from services.endpoints.schemas import Reference, Written
from services.endpoints.worker import Answer

SLACK_BYTES = 4096
"""Of a body beyond its voxels: an .npy header."""

Given = TypeVar("Given", bound=Reference)


class PatchQuery(BaseModel):
    """Query parameters beside a patch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str | None, Field(description="Name of a model; default the server's first.")] = None
    version: Annotated[str | None, Field(description="Version of the model; default the highest.")] = None
    shape: Annotated[str | None, Field(description="z,y,x of a raw body, instead of X-Shape.")] = None
    dtype: Annotated[str | None, Field(description="dtype of a raw body, instead of X-Dtype.")] = None
    voxel_size_nm: Annotated[str | None, Field(description="z,y,x; checked against the model's.")] = None
    any_voxel_size: Annotated[bool, Field(description="Accept voxels unlike the training's.")] = False


def content_type(request: Request) -> str:
    """The media type of a body; raises `UnsupportedMediaType` for one that is not read, or is compressed."""
    bodies.check_encoding(request.headers.get("content-encoding"))
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found not in (bodies.JSON, bodies.NPY, bodies.RAW):
        raise UnsupportedMediaType(
            f"Content-Type: expected {bodies.RAW}, {bodies.NPY} or {bodies.JSON}, got {found[:100]!r}"
        )
    return found


async def read_reference(request: Request, query: BaseModel, kind: type[Given]) -> Given:
    """The reference in a JSON body; raises `MalformedBody`, `InvalidInput` or `PayloadTooLarge`."""
    if given := query.model_fields_set:
        raise InvalidInput(f"query: expected none beside a JSON body, which holds all, got {', '.join(given)}")
    bodies.check_length(request.headers.get("content-length"), bodies.MAX_JSON_BYTES)
    body = await bodies.read_json(pieces(request))
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        broken = any(item["type"] == "json_invalid" for item in error.errors())
        raise (MalformedBody if broken else InvalidInput)(validation_text(error.errors())) from error


async def read_patch(
    request: Request, query: PatchQuery, content: str, card: ModelCard, max_bytes: int
) -> tuple[NDArray[Any], VoxelSize | None]:
    """The image (z, y, x) in a body, and its voxel size where the query has it."""
    headers = request.headers
    voxel_size = None if query.voxel_size_nm is None else _voxel_size(query.voxel_size_nm)
    if voxel_size is not None and not query.any_voxel_size:
        card.check_voxel_size(voxel_size)
    layout = None
    if content == bodies.RAW:
        layout = bodies.raw_layout(query.shape or headers.get("x-shape"), query.dtype or headers.get("x-dtype"))
    bodies.check_length(headers.get("content-length"), max_bytes + SLACK_BYTES)
    check = card.normalisation.check_dtype
    return await bodies.read_image(pieces(request), layout, check=check, max_bytes=max_bytes), voxel_size


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """The pieces of a request's body, none of them empty."""
    async for piece in request.stream():
        if piece:
            yield piece


def reply(
    answer: Answer | Problem,
    card: ModelCard,
    media_type: str,
    voxel_size_nm: VoxelSize | None = None,
    *,
    offsets: bool = True,
) -> Response:
    """The reply to a request; `offsets`: whether the answer has channels that offsets explain."""
    if isinstance(answer, Problem):
        return answer.response()
    place = answer.place
    voxel_size_nm = (place and place.voxel_size_nm) or voxel_size_nm
    if answer.voxels is None:
        written = Written(
            output=str(answer.output),
            box="" if place is None else str(place.box),
            shape=answer.shape,
            dtype=answer.dtype,
            offsets=card.output.offsets if offsets else None,
            anchor=card.output.anchor if offsets else None,
            voxel_size_nm=voxel_size_nm,
            model=card.name,
            version=card.version,
            sha256=card.file.sha256,
            precision=answer.precision,
        )
        return Response(written.model_dump_json(), 201, timing(answer), bodies.JSON)
    headers = timing(answer) | {
        "X-Shape": _numbers(answer.shape),
        "X-Dtype": answer.dtype,
        "X-Axes": f"c{card.axes}" if offsets else card.axes,
        "X-Model-Name": card.name,
        "X-Model-Version": card.version,
        "X-Model-Sha256": card.file.sha256,
        "X-Model-Voxel-Size-Nm": _numbers(card.voxel_size_nm),
        "X-Model-Precision": answer.precision,
    }
    if offsets:
        headers["X-Affinity-Offsets"] = ";".join(_numbers(offset) for offset in card.output.offsets)
        headers["X-Affinity-Anchor"] = card.output.anchor
    if voxel_size_nm is not None:
        headers["X-Voxel-Size-Nm"] = _numbers(voxel_size_nm)
    if place is not None:
        headers["X-Box"] = str(place.box)
    return bodies.ArrayResponse(answer.voxels, media_type, headers)


def timing(answer: Answer) -> dict[str, str]:
    """The header that tells what the replicas took."""
    return {"Server-Timing": f"replica;dur={1000 * answer.seconds:.2f}"}


def _voxel_size(text: str) -> VoxelSize:
    try:
        z, y, x = (float(part) for part in text[:200].split(","))
    except ValueError as error:
        raise InvalidInput(f"voxel_size_nm: expected three numbers z,y,x, got {text[:100]!r}") from error
    return z, y, x


def _numbers(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
