"""`POST /v1/boundary`: what is read from a request, and how a reply looks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response

from models.catalog import ModelCard
from models.errors import InvalidInput, PetavoxelError
from models.geometry import VoxelSize
from services.endpoints import bodies
from services.endpoints.backend import Backend, find_card
from services.endpoints.boundary import Prediction
from services.endpoints.config import ServeConfig
from services.endpoints.gate import Gate
from services.endpoints.openapi import BOUNDARY
from services.endpoints.problems import (
    DeadlineExceeded,
    MalformedBody,
    Problem,
    UnsupportedMediaType,
    validation_text,
)
from services.endpoints.schemas import Reference, Written

SLACK_BYTES = 4096
"""Of a body beyond its voxels: an .npy header."""


class PatchQuery(BaseModel):
    """Query parameters beside a patch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str | None, Field(description="Name of a model; default the server's first.")] = None
    shape: Annotated[str | None, Field(description="z,y,x of a raw body, instead of X-Shape.")] = None
    dtype: Annotated[str | None, Field(description="dtype of a raw body, instead of X-Dtype.")] = None
    voxel_size_nm: Annotated[str | None, Field(description="z,y,x; checked against the model's.")] = None
    any_voxel_size: Annotated[bool, Field(description="Accept voxels unlike the training's.")] = False


def add_boundary(
    app: FastAPI, config: ServeConfig, cards: Mapping[str, ModelCard], backend: Backend, gate: Gate
) -> None:
    """Add the route to `app`; see `services.endpoints.api.create_api`."""
    route = _Boundary(config, cards, backend)

    @app.post("/v1/boundary", openapi_extra=BOUNDARY, response_class=Response, tags=["models"])
    async def boundary(request: Request, query: Annotated[PatchQuery, Query()]) -> Response:
        """Predict the affinities of a patch (raw bytes or .npy) or of a box of a stored volume (JSON).

        The reply is uint8 (channel, z, y, x), 255 where voxels p and p + offset surely lie in one object.
        """
        try:
            async with gate, asyncio.timeout(config.request_timeout_s):
                return await route.answer(request, query)
        except TimeoutError as error:
            if isinstance(error, PetavoxelError):
                raise
            raise DeadlineExceeded(f"the request took longer than {config.request_timeout_s:g} s") from error


class _Boundary:
    def __init__(self, config: ServeConfig, cards: Mapping[str, ModelCard], backend: Backend) -> None:
        self._config, self._cards, self._backend = config, cards, backend
        self._default = next(iter(cards))

    async def answer(self, request: Request, query: PatchQuery) -> Response:
        bodies.check_encoding(request.headers.get("content-encoding"))
        content = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content == bodies.JSON:
            return await self._by_reference(request, query)
        if content in (bodies.NPY, bodies.RAW):
            return await self._patch(request, query, content)
        raise UnsupportedMediaType(
            f"Content-Type: expected {bodies.RAW}, {bodies.NPY} or {bodies.JSON}, got {content[:100]!r}"
        )

    def _card(self, name: str | None) -> ModelCard:
        return find_card(self._cards, self._default if name is None else name)

    async def _by_reference(self, request: Request, query: PatchQuery) -> Response:
        if given := query.model_fields_set:
            raise InvalidInput(f"query: expected none beside a JSON body, which holds all, got {', '.join(given)}")
        bodies.check_length(request.headers.get("content-length"), bodies.MAX_JSON_BYTES)
        reference = _read_reference(await bodies.read_json(_pieces(request)))
        reply = bodies.choose_reply(request.headers.get("accept")) if reference.output is None else bodies.JSON
        card = self._card(reference.model)
        return _reply(await self._backend.predict_reference(card.name, reference), card, reply, None)

    async def _patch(self, request: Request, query: PatchQuery, content: str) -> Response:
        headers = request.headers
        reply = bodies.choose_reply(headers.get("accept"))
        card = self._card(query.model)
        voxel_size = None if query.voxel_size_nm is None else _voxel_size(query.voxel_size_nm)
        if voxel_size is not None and not query.any_voxel_size:
            card.check_voxel_size(voxel_size)
        layout = None
        if content == bodies.RAW:
            layout = bodies.raw_layout(query.shape or headers.get("x-shape"), query.dtype or headers.get("x-dtype"))
        bodies.check_length(headers.get("content-length"), self._config.max_bytes + SLACK_BYTES)
        image: NDArray[Any] = await bodies.read_image(
            _pieces(request), layout, check=card.normalisation.check_dtype, max_bytes=self._config.max_bytes
        )
        return _reply(await self._backend.predict(card.name, image), card, reply, voxel_size)


def _read_reference(body: bytes) -> Reference:
    try:
        return Reference.model_validate_json(body)
    except ValidationError as error:
        broken = any(item["type"] == "json_invalid" for item in error.errors())
        raise (MalformedBody if broken else InvalidInput)(validation_text(error.errors())) from error


def _voxel_size(text: str) -> VoxelSize:
    try:
        z, y, x = (float(part) for part in text[:200].split(","))
    except ValueError as error:
        raise InvalidInput(f"voxel_size_nm: expected three numbers z,y,x, got {text[:100]!r}") from error
    return z, y, x


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    async for piece in request.stream():
        if piece:
            yield piece


def _reply(result: Prediction | Problem, card: ModelCard, media_type: str, voxel_size_nm: VoxelSize | None) -> Response:
    if isinstance(result, Problem):
        return result.response()
    voxel_size_nm = result.voxel_size_nm or voxel_size_nm
    if result.affinities is None:
        channels, z, y, x = result.shape
        written = Written(
            output=str(result.output),
            box=str(result.box),
            shape=(channels, z, y, x),
            dtype="uint8",
            offsets=card.output.offsets,
            anchor=card.output.anchor,
            voxel_size_nm=voxel_size_nm,
            model=card.name,
            version=card.version,
            sha256=card.file.sha256,
            precision=result.precision,
        )
        return JSONResponse(written.model_dump(mode="json"), 201)
    headers = {
        "X-Shape": _numbers(result.shape),
        "X-Dtype": "uint8",
        "X-Axes": f"c{card.axes}",
        "X-Affinity-Offsets": ";".join(_numbers(offset) for offset in card.output.offsets),
        "X-Affinity-Anchor": card.output.anchor,
        "X-Model-Name": card.name,
        "X-Model-Version": card.version,
        "X-Model-Sha256": card.file.sha256,
        "X-Model-Voxel-Size-Nm": _numbers(card.voxel_size_nm),
        "X-Model-Precision": result.precision,
    }
    if voxel_size_nm is not None:
        headers["X-Voxel-Size-Nm"] = _numbers(voxel_size_nm)
    if result.box is not None:
        headers["X-Box"] = result.box
    return Response(bodies.encode(result.affinities, media_type), headers=headers, media_type=media_type)


def _numbers(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
