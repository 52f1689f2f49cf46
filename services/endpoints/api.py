"""The HTTP application: routes, and how failures become problem details. It knows no Ray, only a `Backend`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from models.catalog import ModelCard
from models.errors import InvalidInput, NotFound, PetavoxelError
from services.endpoints.backend import Backend, find_card
from services.endpoints.boundary_route import add_boundary
from services.endpoints.config import ServeConfig
from services.endpoints.gate import Gate
from services.endpoints.problems import (
    TYPES,
    InternalError,
    MalformedBody,
    Problem,
    descriptions,
    validation_text,
)
from services.endpoints.schemas import Health, ModelInfo, ModelList, Readiness

logger = logging.getLogger(__name__)


def create_api(config: ServeConfig, cards: Mapping[str, ModelCard], backend: Backend, gate: Gate) -> FastAPI:
    """The ASGI application; `cards` are the served models by name, the first is the default."""
    app = FastAPIOffline(
        title="petavoxel",
        version="1",
        description="Affinities of electron-microscope volumes. Errors are problem details (RFC 9457).",
        redoc_url=None,
    )
    _add_problems(app)
    _add_information(app, cards, backend, gate)
    add_boundary(app, config, cards, backend, gate)
    return app


def _add_information(app: FastAPI, cards: Mapping[str, ModelCard], backend: Backend, gate: Gate) -> None:
    @app.get("/healthz", tags=["health"])
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health()

    @app.get("/readyz", tags=["health"], response_model=Readiness, responses={503: {"model": Readiness}})
    async def readyz() -> Response:
        """Whether every model is loaded and has run once on a warm-up patch."""
        replicas = await backend.replicas()
        ready = not gate.stopping and min(replicas.values()) > 0
        status = "stopping" if gate.stopping else "ready" if ready else "starting"
        return JSONResponse(Readiness(status=status, replicas=replicas).model_dump(), 200 if ready else 503)

    @app.get("/v1/models", tags=["models"])
    async def list_models() -> ModelList:
        """The models that this server holds."""
        return ModelList(models=tuple(ModelInfo.of(card) for card in cards.values()))

    @app.get("/v1/models/{name}", tags=["models"])
    async def model_info(name: str) -> ModelInfo:
        """What a model expects and returns."""
        return ModelInfo.of(find_card(cards, name))

    @app.get(TYPES + "{kind}", tags=["problems"])
    async def problem_type(kind: str) -> dict[str, Any]:
        """What a problem's `type` means."""
        found = descriptions().get(kind)
        if found is None:
            raise NotFound(f"problem type {kind[:100]!r}: known are {', '.join(descriptions())}")
        return found


def _add_problems(app: FastAPI) -> None:
    @app.exception_handler(PetavoxelError)
    async def petavoxel_error(request: Request, error: PetavoxelError) -> Response:
        return Problem.of(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid_request(request: Request, error: RequestValidationError) -> Response:
        return Problem.of(InvalidInput(validation_text(error.errors()))).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        response = Problem.http(error.status_code, str(error.detail)).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(ClientDisconnect)
    async def disconnected(request: Request, error: ClientDisconnect) -> Response:
        return Problem.of(MalformedBody("body: the connection was closed before its end")).response()

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        problem = Problem.of(InternalError("unexpected failure; see the server's log"))
        logger.error("%s %s failed: %s", request.method, request.url.path, problem.instance, exc_info=error)
        return problem.response()
