"""The HTTP application: routes, and how failures become problem details. It knows no Ray, only a `Backend`."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from models.errors import InvalidInput, NotFound, PetavoxelError
from services.endpoints.access import Access, RequestLog
from services.endpoints.backend import Backend
from services.endpoints.catalog import Catalog
from services.endpoints.config import ServeConfig
from services.endpoints.gate import Gate
from services.endpoints.inference_routes import add_health, add_inference
from services.endpoints.openapi import METADATA
from services.endpoints.problems import (
    TYPES,
    InternalError,
    MalformedBody,
    Problem,
    descriptions,
    validation_text,
)
from services.endpoints.schemas import Health, ModelInfo, ModelList, Readiness
from services.endpoints.tokens import Tokens
from services.endpoints.voxel_routes import add_voxel_routes

logger = logging.getLogger(__name__)


def create_api(
    config: ServeConfig, catalog: Catalog, backend: Backend, gate: Gate, tokens: Tokens, *, proxied: bool = False
) -> FastAPI:
    """The ASGI application. `proxied`: whether something in front of it puts request ids into replies."""
    app = FastAPIOffline(
        title="petavoxel",
        version="1",
        description="Affinities and segments of electron-microscope volumes. Errors are problem details (RFC 9457).",
        redoc_url=None,
    )
    app.add_middleware(RequestLog, proxied=proxied)
    access = Access(tokens, gate, closed=config.tokens is not None)
    _add_problems(app)
    _add_health(app, backend, gate)
    add_health(app, backend, gate)
    _add_models(app, catalog, access)
    add_voxel_routes(app, config, catalog, backend, access)
    add_inference(app, config, catalog, backend, access)
    return app


def _add_health(app: FastAPI, backend: Backend, gate: Gate) -> None:
    @app.get("/", include_in_schema=False)  # where load balancers ask by default
    @app.get("/healthz", tags=["health"])
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health()

    @app.get("/readyz", tags=["health"], response_model=Readiness, responses={503: {"model": Readiness}})
    async def readyz() -> Response:
        """Whether replicas are there that have loaded a model and run it once."""
        replicas = await backend.replicas()
        ready = not gate.stopping and min(replicas.values()) > 0
        status = "stopping" if gate.stopping else "ready" if ready else "starting"
        return JSONResponse(Readiness(status=status, replicas=replicas).model_dump(), 200 if ready else 503)

    @app.get(TYPES + "{kind}", tags=["problems"], responses={404: METADATA["404"]})
    async def problem_type(kind: str) -> dict[str, Any]:
        """What a problem's `type` means."""
        found = descriptions().get(kind)
        if found is None:
            raise NotFound(f"problem type {kind[:100]!r}: known are {', '.join(descriptions())}")
        return found


def _add_models(app: FastAPI, catalog: Catalog, access: Access) -> None:
    read: dict[str, Any] = {"tags": ["models"], "dependencies": access.needs("read"), "responses": METADATA}

    @app.get("/v1/models", **read)
    async def list_models() -> ModelList:
        """The models that this server holds."""
        await catalog.refresh()
        return ModelList(models=tuple(ModelInfo.of(entry.card) for entry in catalog.entries))

    @app.get("/v1/models/{name}", **read)
    async def model_info(name: str, version: Annotated[str | None, Query()] = None) -> ModelInfo:
        """What a model expects and returns; of several versions the highest."""
        await catalog.refresh()
        return ModelInfo.of(catalog.find(name, version).card)


def _add_problems(app: FastAPI) -> None:
    def reply(request: Request, error: PetavoxelError) -> JSONResponse:
        return Problem.of(error).response(request.url.path)

    @app.exception_handler(PetavoxelError)
    async def petavoxel_error(request: Request, error: PetavoxelError) -> Response:
        return reply(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(request: Request, error: RequestValidationError) -> Response:
        return reply(request, InvalidInput(validation_text(error.errors())))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        response = Problem.http(error.status_code, str(error.detail)).response(request.url.path)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(ClientDisconnect)
    async def disconnected(request: Request, error: ClientDisconnect) -> Response:
        return reply(request, MalformedBody("body: the connection was closed before its end"))

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        problem = Problem.of(InternalError("unexpected failure; see the server's log"))
        logger.error("%s %s failed: %s", request.method, request.url.path, problem.instance, exc_info=error)
        return problem.response(request.url.path)
