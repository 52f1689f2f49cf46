"""`POST /v1/boundary` and `POST /v1/segment`: an image or a box of a volume in, affinities or labels out."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request
from starlette.responses import Response

from models.errors import InvalidInput
from models.geometry import Box
from services.endpoints import bodies, images, logs
from services.endpoints.access import Access, deadline
from services.endpoints.backend import Backend, Call
from services.endpoints.catalog import Catalog
from services.endpoints.config import ServeConfig
from services.endpoints.images import PatchQuery
from services.endpoints.openapi import BOUNDARY, SEGMENT
from services.endpoints.problems import PayloadTooLarge
from services.endpoints.schemas import Reference, SegmentReference, SegmentSettings


class SegmentQuery(PatchQuery, SegmentSettings):
    """Query parameters beside a patch to segment."""


def add_voxel_routes(app: FastAPI, config: ServeConfig, catalog: Catalog, backend: Backend, access: Access) -> None:
    """Add the routes to `app`; see `services.endpoints.api.create_api`."""
    routes = _Routes(config, catalog, backend, access)

    @app.post(
        "/v1/boundary",
        openapi_extra=BOUNDARY,
        response_class=Response,
        tags=["voxels"],
        dependencies=access.works(),
    )
    async def boundary(request: Request, query: Annotated[PatchQuery, Query()]) -> Response:
        """Predict the affinities of a patch (raw bytes or .npy) or of a box of a stored volume (JSON).

        The reply is uint8 (channel, z, y, x), 255 where voxels p and p + offset surely lie in one object.
        """
        async with deadline(config.request_timeout_s):
            return await routes.boundary(request, query)

    @app.post(
        "/v1/segment", openapi_extra=SEGMENT, response_class=Response, tags=["voxels"], dependencies=access.works()
    )
    async def segment(request: Request, query: Annotated[SegmentQuery, Query()]) -> Response:
        """Segment a patch (raw bytes or .npy) or a box of a stored volume (JSON), as `petavoxel segment` does.

        The reply is uint64 (z, y, x), 0 = background.
        """
        async with deadline(config.request_timeout_s):
            return await routes.segment(request, query)


class _Routes:
    def __init__(self, config: ServeConfig, catalog: Catalog, backend: Backend, access: Access) -> None:
        self._config, self._catalog, self._backend, self._access = config, catalog, backend, access

    async def boundary(self, request: Request, query: PatchQuery) -> Response:
        content = images.content_type(request)
        if content == bodies.JSON:
            reference = await images.read_reference(request, query, Reference)
            media_type = self._media_type(request, reference)
            call = await self._call(reference.model, reference.version)
            return images.reply(await self._backend.predict(call, reference), call.entry.card, media_type)
        media_type = bodies.choose_reply(request.headers.get("accept"))
        call = await self._call(query.model, query.version)
        card = call.entry.card
        image, voxel_size = await images.read_patch(request, query, content, card, self._config.max_bytes)
        return images.reply(await self._backend.predict(call, image), card, media_type, voxel_size)

    async def segment(self, request: Request, query: SegmentQuery) -> Response:
        content = images.content_type(request)
        if content == bodies.JSON:
            given = await images.read_reference(request, query, SegmentReference)
            media_type = self._media_type(request, given)
            self._check_size(Box.parse(given.box).size)
            call = await self._call(given.model, given.version)
            reference = Reference(**given.model_dump(include=set(Reference.model_fields)) | {"output": None})
            answer = await self._backend.segment(call, reference, given.completed(call.entry.card), given.output)
            return images.reply(answer, call.entry.card, media_type, offsets=False)
        media_type = bodies.choose_reply(request.headers.get("accept"))
        call = await self._call(query.model, query.version)
        card = call.entry.card
        image, voxel_size = await images.read_patch(request, query, content, card, self._config.max_bytes)
        self._check_size(image.size)
        answer = await self._backend.segment(call, image, query.completed(card), None)
        return images.reply(answer, card, media_type, voxel_size, offsets=False)

    async def _call(self, model: str | None, version: str | None) -> Call:
        await self._catalog.refresh()
        if version is not None and model is None:
            raise InvalidInput("version: expected a model with it")
        return Call(self._catalog.find(model, version), logs.request_id.get())

    def _media_type(self, request: Request, reference: Reference) -> str:
        """What a reference's result is sent as; one that is written needs the scope "write"."""
        if reference.output is None:
            return bodies.choose_reply(request.headers.get("accept"))
        self._access.check(request, "write")
        return bodies.JSON

    def _check_size(self, voxels: int) -> None:
        if voxels > self._config.max_segment_voxels:
            raise PayloadTooLarge(
                f"segment: expected at most {self._config.max_segment_voxels} voxels, got {voxels}; "
                f"larger boxes are what `petavoxel segment` is for"
            )
