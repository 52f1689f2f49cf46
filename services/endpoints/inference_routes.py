"""The Open Inference Protocol v2 (`/v2`), so that clients of KServe and Triton work unchanged."""

from __future__ import annotations

import asyncio
import importlib.metadata
from typing import Any

from fastapi import FastAPI, Request
from numpy.typing import NDArray
from starlette.responses import JSONResponse, Response

from models.errors import NotFound
from services.endpoints import bodies, images, logs
from services.endpoints import inference_protocol as protocol
from services.endpoints.access import Access, deadline
from services.endpoints.backend import Backend, Call
from services.endpoints.catalog import Catalog, Entry
from services.endpoints.config import ServeConfig
from services.endpoints.gate import Gate
from services.endpoints.openapi import INFER, METADATA
from services.endpoints.problems import MalformedBody, PayloadTooLarge, Problem

TAGS: Any = ["open inference protocol v2"]
EXTENSIONS = ("binary_tensor_data", "model_repository")


def add_health(app: FastAPI, backend: Backend, gate: Gate) -> None:
    """Add the probes, which need no token."""

    @app.get("/v2/health/live", tags=TAGS)
    async def server_live() -> dict[str, bool]:
        """Whether the process answers."""
        return {"live": True}

    @app.get("/v2/health/ready", tags=TAGS, responses={503: {"description": "Starting or stopping"}})
    async def server_ready() -> Response:
        """Whether requests can be answered; single models have a `ready` of their own."""
        ready = not gate.stopping and min((await backend.replicas()).values()) > 0
        return JSONResponse({"ready": ready}, 200 if ready else 503)


def add_inference(app: FastAPI, config: ServeConfig, catalog: Catalog, backend: Backend, access: Access) -> None:
    """Add metadata and inference to `app`; see `services.endpoints.api.create_api`."""
    routes = _Routes(config, catalog, backend)
    read: dict[str, Any] = {"tags": TAGS, "dependencies": access.needs("read"), "responses": METADATA}
    infer: dict[str, Any] = {
        "tags": TAGS,
        "dependencies": access.works(),
        "openapi_extra": INFER,
        "response_class": Response,
    }

    @app.get("/v2", **read)
    async def server_metadata() -> dict[str, Any]:
        """Name and version of the server, and the extensions of the protocol that it knows."""
        version = importlib.metadata.version("petavoxel")
        return {"name": protocol.PLATFORM, "version": version, "extensions": list(EXTENSIONS)}

    @app.post("/v2/repository/index", **read)
    async def repository_index() -> list[dict[str, str]]:
        """All models and versions."""
        await catalog.refresh()
        cards = [entry.card for entry in catalog.entries]
        return [{"name": c.name, "version": c.version, "state": "READY", "reason": ""} for c in cards]

    @app.get("/v2/models/{name}", **read)
    async def model_metadata(name: str) -> dict[str, Any]:
        """Inputs, outputs and versions of a model."""
        return await routes.metadata(name, None)

    @app.get("/v2/models/{name}/versions/{version}", **read)
    async def version_metadata(name: str, version: str) -> dict[str, Any]:
        """Inputs and outputs of one version of a model."""
        return await routes.metadata(name, version)

    @app.get("/v2/models/{name}/ready", **read)
    async def model_ready(name: str) -> Response:
        """Whether a model can be loaded and run; it is loaded where it is not yet."""
        return await routes.ready(name, None)

    @app.get("/v2/models/{name}/versions/{version}/ready", **read)
    async def version_ready(name: str, version: str) -> Response:
        """Whether one version of a model can be loaded and run."""
        return await routes.ready(name, version)

    @app.post("/v2/models/{name}/infer", **infer)
    async def model_infer(name: str, request: Request) -> Response:
        """Predict affinities with the highest version of a model."""
        return await routes.infer(name, None, request)

    @app.post("/v2/models/{name}/versions/{version}/infer", **infer)
    async def version_infer(name: str, version: str, request: Request) -> Response:
        """Predict affinities with one version of a model."""
        return await routes.infer(name, version, request)


class _Routes:
    def __init__(self, config: ServeConfig, catalog: Catalog, backend: Backend) -> None:
        self._config, self._catalog, self._backend = config, catalog, backend

    async def metadata(self, name: str, version: str | None) -> dict[str, Any]:
        entry = await self._find(name, version)
        return protocol.metadata(entry.card, self._catalog.versions(name))

    async def ready(self, name: str, version: str | None) -> Response:
        try:
            entry = await self._find(name, version)
        except NotFound as error:
            return Problem.of(error).response("/v2")
        async with deadline(self._config.request_timeout_s):
            problem = await self._backend.check(Call(entry, logs.request_id.get()))
        return problem.response("/v2") if problem else JSONResponse({"name": entry.card.name, "ready": True})

    async def infer(self, name: str, version: str | None, request: Request) -> Response:
        async with deadline(self._config.request_timeout_s):
            entry = await self._find(name, version)
            asked, image = await self._read(request, entry)
            answer = await self._backend.predict(Call(entry, logs.request_id.get()), image)
            if isinstance(answer, Problem):
                return answer.response("/v2")
            assert answer.voxels is not None
            text = await asyncio.to_thread(protocol.reply_json, asked, entry.card, answer.voxels)
        if not asked.binary_output:
            return Response(text, media_type=bodies.JSON, headers=images.timing(answer))
        headers = images.timing(answer) | {protocol.HEADER: str(len(text))}
        return bodies.ArrayResponse(answer.voxels, bodies.RAW, headers, before=text)

    async def _find(self, name: str, version: str | None) -> Entry:
        await self._catalog.refresh()
        return self._catalog.find(name, version)

    async def _read(self, request: Request, entry: Entry) -> tuple[protocol.InferRequest, NDArray[Any]]:
        bodies.check_encoding(request.headers.get("content-encoding"))
        pieces, check = images.pieces(request), entry.card.normalisation.check_dtype
        limit, declared = self._config.max_bytes, request.headers.get("content-length")
        length = _header_length(request.headers.get(protocol.HEADER))
        if length is None:
            bodies.check_length(declared, protocol.MAX_JSON_BYTES)
            text = await bodies.read_json(pieces, protocol.MAX_JSON_BYTES)
        else:
            bodies.check_length(declared, length + limit)
            text, pieces = await bodies.read_head(pieces, length)
        asked = await asyncio.to_thread(protocol.read_request, text)
        layout = protocol.layout_of(asked.tensor)
        if asked.tensor.data is None:
            protocol.check_binary(asked.tensor, layout)
            return asked, await bodies.read_image(pieces, layout, check=check, max_bytes=limit)
        async for _ in pieces:
            raise MalformedBody("body: bytes follow a header whose tensor is in JSON")
        check(layout.dtype)
        if layout.nbytes > limit:
            raise PayloadTooLarge(f"image: expected at most {limit} bytes, shape {layout.shape} has {layout.nbytes}")
        return asked, await asyncio.to_thread(protocol.array_of, asked.tensor, layout)


def _header_length(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise MalformedBody(f"{protocol.HEADER}: expected a number of bytes, got {text[:100]!r}")
    if int(text) > protocol.MAX_JSON_BYTES:
        raise PayloadTooLarge(f"{protocol.HEADER}: expected at most {protocol.MAX_JSON_BYTES} bytes, got {text}")
    return int(text)
