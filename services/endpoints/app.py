"""From configuration to a Ray Serve application: what holds models, what segments, and one ingress in front of both."""

from __future__ import annotations

import asyncio
import os
import time
from functools import lru_cache
from typing import Any

import ray
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ServeStatus

from models.catalog import Segmentation
from models.errors import NotFound
from services.endpoints import logs, tracing
from services.endpoints.api import create_api
from services.endpoints.backend import Call
from services.endpoints.catalog import Catalog, Entry
from services.endpoints.config import ServeConfig
from services.endpoints.gate import Gate
from services.endpoints.pool import ModelPool, Segmenters
from services.endpoints.problems import Overloaded, Problem, Unavailable
from services.endpoints.references import Prefixes
from services.endpoints.routing import Spread
from services.endpoints.schemas import Reference
from services.endpoints.tokens import Tokens
from services.endpoints.worker import Answer

APP = "petavoxel"
MODELS, SEGMENTERS = "Models", "Segmenters"
INGRESS_REQUESTS = 1000
"""Open requests of the ingress; Ray's default of 5 starves what lies behind it, health checks included."""
INGRESS_CPUS, SEGMENTER_CPUS = 0.05, 0.9
"""Processors that Ray sets aside, together one. What needs none is put anywhere, on heads without processors too."""
SURGE_PERCENT = 25
"""Replicas that may be begun beside the old ones when those are replaced, of their number, at least one."""
DIRECT_BYTES = 100_000
"""Images up to this travel with the call; an object of their own costs some milliseconds and pays off later."""
STATUS_S = 1.0
"""Age up to which the replicas' state is not asked for again."""


def build_app(config: ServeConfig) -> serve.Application:
    """The application that `config` describes.

    Raises `NotFound` or `InvalidModel` for models that cannot be served, `InvalidConfig` where two have one name and
    version or the file of tokens is broken, and `InvalidInput` for impossible prefixes.
    """
    for prefixes in (config.volumes, config.outputs):
        Prefixes(prefixes, "")
    Tokens(config.tokens)
    tracing.wanted(os.environ)
    catalog = Catalog(config.models, config.model_folder)
    models = _scaled(
        ModelPool,
        MODELS,
        config,
        replicas=(config.replicas, config.max_replicas),
        max_ongoing_requests=config.open_requests,  # they wait there, in the order in which they came
        request_router_config=_routed(Spread, busy=config.ongoing),
        ray_actor_options={
            "num_cpus": config.replica_cpus,
            "num_gpus": config.gpus,
            **_with_environment(RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD="0"),  # it only waits, threads compute
        },
    )
    segmenters = _scaled(
        Segmenters,
        SEGMENTERS,
        config,
        replicas=(config.segment_replicas, config.max_segment_replicas),
        max_ongoing_requests=config.open_requests,  # most of them wait for their affinities
        ray_actor_options={"num_cpus": SEGMENTER_CPUS},
    )
    ingress = _as_deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        num_replicas=1,
        max_ongoing_requests=INGRESS_REQUESTS,
        max_queued_requests=INGRESS_REQUESTS,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=config.stop_s,
        ray_actor_options={"num_cpus": INGRESS_CPUS, **_with_environment(RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP="0")},
        **_logging(config),
    )
    application: serve.Application = ingress.bind(config, models.bind(catalog.entries, config), segmenters.bind(config))
    return application


def _scaled(
    kind: type, name: str, config: ServeConfig, *, replicas: tuple[int, int | None], **options: Any
) -> serve.Deployment:
    """A deployment with a fixed number of replicas, or one between two bounds.

    While it is replaced by another version, the new replicas start before the old ones end.
    """
    fewest, most = replicas
    if most is None:
        options["num_replicas"] = fewest
    else:
        options["autoscaling_config"] = {
            "min_replicas": fewest,
            "max_replicas": most,
            "target_ongoing_requests": config.target_ongoing,
            "upscale_delay_s": config.upscale_delay_s,
            "downscale_delay_s": config.downscale_delay_s,
        }
    return _as_deployment(
        kind,
        name=name,
        max_surge_percent=SURGE_PERCENT,
        health_check_period_s=5,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=config.stop_s,
        **_logging(config),
        **options,
    )


def _with_environment(**variables: str) -> dict[str, Any]:
    """Options of an actor whose process has these variables; each here takes a change of thread off every request."""
    return {"runtime_env": {"env_vars": variables}}


def _routed(router: type, **options: Any) -> RequestRouterConfig:
    """How handles choose a replica."""
    make: Any = RequestRouterConfig  # typed for its class alone
    config: RequestRouterConfig = make(
        request_router_class=f"{router.__module__}.{router.__qualname__}", request_router_kwargs=options
    )
    return config


def _logging(config: ServeConfig) -> dict[str, Any]:
    """Serve's own lines in the same form; those about requests are left to `services.endpoints.access`."""
    return {"logging_config": {"encoding": config.log_format.upper(), "enable_access_log": False}}


def _as_deployment(kind: type, **options: Any) -> serve.Deployment:
    decorate: Any = serve.deployment  # typed for use as a decorator only
    deployment: serve.Deployment = decorate(kind, **options)
    return deployment


class Ingress:
    """The deployment that speaks HTTP; bodies are read and written here, so replicas only compute.

    There is one of it: it counts the open requests that a stopping server waits for.
    """

    def __init__(self, config: ServeConfig, models: DeploymentHandle[Any], segmenters: DeploymentHandle[Any]) -> None:
        logs.configure(config.log_format)
        tracing.configure("ingress")
        self._config = config
        self._gate = Gate(config.open_requests)
        limit = config.max_queued_requests + config.ongoing * (config.max_replicas or config.replicas)
        self._backend = Replicas(models, segmenters, limit)
        self._catalog = Catalog(config.models, config.model_folder, config.rescan_s, self._probe)

    def __serve_build_asgi_app__(self) -> FastAPI:
        tokens = Tokens(self._config.tokens)
        return create_api(self._config, self._catalog, self._backend, self._gate, tokens, proxied=True)

    async def _probe(self, entry: Entry) -> str | None:
        problem = await self._backend.check(Call(entry, ""))
        return None if problem is None else problem.detail

    async def find(self, name: str, version: str | None = None) -> Entry | Problem:
        """A model that is served, for pipelines; the problem lists what there is."""
        await self._catalog.refresh()
        try:
            return self._catalog.find(name, version)
        except NotFound as error:
            return Problem.of(error)

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests and wait for the open ones; returns how many are left after `timeout_s`."""
        return await self._gate.drain(timeout_s)


class Replicas:
    """The deployments that compute; see `services.endpoints.backend.Backend`.

    `limit`: requests that they hold and that wait for them. It is counted here, not by Serve: requests that Serve makes
    wait are tried again in no order, after pauses of up to half a second.
    """

    def __init__(self, models: DeploymentHandle[Any], segmenters: DeploymentHandle[Any], limit: int) -> None:
        self._models, self._segmenters = models, segmenters
        self._pool = lru_cache(maxsize=256)(self._handle)  # made anew, a handle costs more than its call
        self._places = Gate(limit)
        self._status: ServeStatus | None = None
        self._asked = -STATUS_S
        self._lock = asyncio.Lock()

    async def predict(self, call: Call, image: NDArray[Any] | Reference) -> Answer | Problem:
        """Affinities of an image, large ones through the object store, or of a box, which the replica reads."""
        async with self._places:
            answer: Answer | Problem = await _answer(await self._predicted(call, image))
        return answer

    async def segment(
        self, call: Call, image: NDArray[Any] | Reference, settings: Segmentation, output: str | None
    ) -> Answer | Problem:
        """Labels of an image or box; the affinities go from replica to replica, not through this process."""
        if output is not None:
            problem: Problem | None = await _answer(self._segmenters.check_output.remote(call, output))
            if problem is not None:
                return problem
        async with self._places:
            found = await self._predicted(call, image)
            response = self._segmenters.segment.remote(call, found, settings, output)
            answer: Answer | Problem = await _answer(response, found)
        return answer

    async def check(self, call: Call) -> Problem | None:
        """What is wrong with a model, or None."""
        problem: Problem | None = await _answer(self._pool(call.entry.content, "check").remote(call))
        return problem

    async def replicas(self) -> dict[str, int]:
        """Replicas that run, as Serve's controller sees them: their constructor has returned."""
        async with self._lock:
            if time.monotonic() - self._asked > STATUS_S:
                self._status = await asyncio.to_thread(serve.status)
                self._asked = time.monotonic()
        application = self._status.applications.get(APP) if self._status else None
        deployments = application.deployments if application else {}
        counts = {}
        for name in (MODELS, SEGMENTERS):
            states = deployments[name].replica_states if name in deployments else {}
            counts[name.lower()] = sum(number for state, number in states.items() if state == "RUNNING")
        return counts

    def _handle(self, model_id: str, method: str) -> DeploymentHandle[Any]:
        """The handle that prefers replicas which hold the model."""
        return self._models.options(multiplexed_model_id=model_id, method_name=method)

    async def _predicted(self, call: Call, image: NDArray[Any] | Reference) -> Any:
        direct = isinstance(image, Reference) or image.nbytes <= DIRECT_BYTES
        given = image if direct else await asyncio.to_thread(ray.put, image)
        return self._pool(call.entry.content, "predict").remote(call, given)


async def _answer(response: Any, *before: Any) -> Any:
    """What a replica answers; `before` are responses that it depends on."""
    try:
        return await response
    except asyncio.CancelledError:  # the deadline, or the client went away: the replicas need not go on
        for each in (response, *before):
            each.cancel()
        raise
    except BackPressureError as error:
        raise Overloaded("too many requests wait already") from error
    except (RayServeException, RayActorError) as error:  # also where the replica is lost that the other one waits for
        raise Unavailable("the replica is not there; it is started again") from error
