"""From configuration to a Ray Serve application: one deployment per model, and one ingress in front of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import ray
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ServeStatus

from models.catalog import Model, ModelCard, find_model
from models.errors import InvalidConfig
from services.endpoints.api import create_api
from services.endpoints.boundary import Boundary, Prediction
from services.endpoints.config import ServeConfig
from services.endpoints.gate import Gate
from services.endpoints.problems import Overloaded, Problem, Unavailable
from services.endpoints.references import Prefixes
from services.endpoints.schemas import Reference

APP = "petavoxel"
INGRESS_REQUESTS = 1000
"""Open requests of the ingress; Ray's default of 5 starves what lies behind it, health checks included."""
STATUS_S = 1.0
"""Age up to which the replicas' state is not asked for again."""


def build_app(config: ServeConfig) -> serve.Application:
    """The application that `config` describes.

    Raises `NotFound` or `InvalidModel` for models that cannot be served, `InvalidConfig` where two have one name, and
    `InvalidInput` for impossible prefixes.
    """
    for prefixes in (config.volumes, config.outputs):
        Prefixes(prefixes, "")
    found = [(name, find_model(name)) for name in config.models]
    cards: dict[str, ModelCard] = {}
    handles: dict[str, Any] = {}
    for name, model in found:
        card = model.card
        if card.name in cards:
            raise InvalidConfig(f"models: two of them are called {card.name!r}")
        cards[card.name] = card
        handles[card.name] = _deployment(config, card.name).bind(_path(name, model), card.file.sha256, config)
    ingress = _as_deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        num_replicas=1,
        max_ongoing_requests=INGRESS_REQUESTS,
        max_queued_requests=INGRESS_REQUESTS,
        graceful_shutdown_timeout_s=config.drain_timeout_s,
        ray_actor_options={"num_cpus": 0},
    )
    application: serve.Application = ingress.bind(config, cards, handles)
    return application


def _deployment(config: ServeConfig, model: str) -> serve.Deployment:
    return _as_deployment(
        Boundary,
        name=_deployment_name(model),
        num_replicas=config.replicas,
        max_ongoing_requests=config.ongoing,
        max_queued_requests=config.max_queued_requests,
        max_constructor_retry_count=2,
        health_check_period_s=5,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=config.drain_timeout_s,
        ray_actor_options={"num_cpus": config.replica_cpus},
    )


def _as_deployment(kind: type, **options: Any) -> serve.Deployment:
    decorate: Any = serve.deployment  # typed for use as a decorator only
    deployment: serve.Deployment = decorate(kind, **options)
    return deployment


def _deployment_name(model: str) -> str:
    return f"boundary:{model}"


def _path(name: str, model: Model) -> str:
    """What a replica finds the model by: zoo names as they are, paths independent of the working directory."""
    return name if name == model.card.name else str(model.folder.resolve())


class Ingress:
    """The deployment that speaks HTTP; bodies are read and written here, so replicas only compute.

    There is one of it: it counts the open requests that a stopping server waits for.
    """

    def __init__(
        self, config: ServeConfig, cards: dict[str, ModelCard], handles: dict[str, DeploymentHandle[Any]]
    ) -> None:
        self._config, self._cards = config, cards
        self._gate = Gate(config.open_requests)
        self._backend = Replicas(handles)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._config, self._cards, self._backend, self._gate)

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests and wait for the open ones; returns how many are left after `timeout_s`."""
        return await self._gate.drain(timeout_s)


class Replicas:
    """The models' deployments, by model name; see `services.endpoints.backend.Backend`."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = handles
        self._status: ServeStatus | None = None
        self._asked = -STATUS_S
        self._lock = asyncio.Lock()

    async def predict(self, model: str, image: NDArray[Any]) -> Prediction | Problem:
        """Affinities of an image, which goes through the object store."""
        reference = await asyncio.to_thread(ray.put, image)
        return await _answer(self._handles[model].predict.remote(reference))

    async def predict_reference(self, model: str, reference: Reference) -> Prediction | Problem:
        """Affinities of a box of a volume, which the replica reads."""
        return await _answer(self._handles[model].predict_reference.remote(reference))

    async def replicas(self) -> dict[str, int]:
        """Replicas per model that run, as Serve's controller sees them: their constructor has returned."""
        async with self._lock:
            if time.monotonic() - self._asked > STATUS_S:
                self._status = await asyncio.to_thread(serve.status)
                self._asked = time.monotonic()
        application = self._status.applications.get(APP) if self._status else None
        deployments = application.deployments if application else {}
        counts = {}
        for model in self._handles:
            deployment = deployments.get(_deployment_name(model))
            states = deployment.replica_states if deployment else {}
            counts[model] = sum(number for state, number in states.items() if state == "RUNNING")
        return counts


async def _answer(response: Any) -> Prediction | Problem:
    try:
        answer: Prediction | Problem = await response
    except asyncio.CancelledError:  # the deadline, or the client went away: the replica need not go on
        response.cancel()
        raise
    except BackPressureError as error:
        raise Overloaded("too many requests wait for this model") from error
    except (DeploymentUnavailableError, RayActorError) as error:
        raise Unavailable("the model's replica is not there; it is started again") from error
    return answer
