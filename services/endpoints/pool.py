"""The deployments that compute: `ModelPool` holds networks and predicts, `Segmenters` make labels of affinities.

Every replica of the pool serves every model. Which ones it holds is an LRU that Serve's multiplexing knows of, so
`services.endpoints.routing` prefers a replica that has a request's model loaded. A model is opened before it takes
another one's place: one that cannot be opened costs the others nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from numpy.typing import NDArray
from ray import serve

from models.catalog import Segmentation
from models.errors import PetavoxelError
from services.endpoints import logs, metrics, tracing
from services.endpoints.backend import Call
from services.endpoints.catalog import Entry
from services.endpoints.config import ServeConfig
from services.endpoints.interruption import in_turn
from services.endpoints.parts import Part, PartAnswer, predicted_part
from services.endpoints.problems import InternalError, ModelUnavailable, Problem
from services.endpoints.schemas import Reference
from services.endpoints.worker import Answer, Loaded, Worker

logger = logging.getLogger(__name__)

RETRY_S = 10.0
"""A model that could not be opened is not tried again before."""

Result = TypeVar("Result")


class ModelPool:
    """A deployment that holds networks; it has run its first models once when its constructor returns.

    `preload` are the models that it begins with. Raises the error of the first where none of them can be opened.
    """

    def __init__(self, preload: tuple[Entry, ...], config: ServeConfig) -> None:
        logs.configure(config.log_format)
        tracing.configure("models")
        self._config, self._worker = config, Worker(config)
        self._turns = asyncio.Semaphore(config.ongoing)
        self._stores = asyncio.Semaphore(config.ongoing)  # a bucket that is silent holds none of the turns above
        self._alive: WeakValueDictionary[str, Loaded] = WeakValueDictionary()
        self._preloaded: dict[str, Loaded] = {}  # nobody has asked for these yet
        self._limit = config.models_per_replica
        self._opening: dict[str, asyncio.Task[Loaded]] = {}
        self._failed: dict[str, tuple[float, str]] = {}

        async def held(key: str) -> Loaded:
            return self._alive[key]  # whoever asks for it holds it meanwhile

        self._recent = serve.multiplexed(max_num_models_per_replica=config.models_per_replica)(held)
        errors: list[PetavoxelError] = []
        for entry in preload[: config.models_per_replica]:
            try:
                self._preloaded[entry.content] = self._open(entry)
            except PetavoxelError as error:
                errors.append(error)
        if errors and not self._preloaded:
            raise errors[0]
        self._alive.update(self._preloaded)

    async def predict(self, call: Call, image: NDArray[Any] | Reference) -> Answer | Problem:
        """Affinities of a whole image, or of a box of a volume."""

        async def work() -> Answer:
            model = await self._loaded(call.entry)
            if not isinstance(image, Reference):
                return await in_turn(self._turns, lambda: self._worker.predict(model, image))
            seen = await in_turn(self._stores, lambda: self._worker.read(model, image))
            found = await in_turn(self._turns, lambda: self._worker.predict_seen(model, seen))
            if seen.output is None:
                return found
            return await in_turn(self._stores, lambda: self._worker.write(model, seen, found))

        return await answered(call, work)

    async def predict_part(self, call: Call, part: Part | None, image: NDArray[Any] | None) -> PartAnswer | Problem:
        """Affinities of a part of a pipeline's volume, and what computes them; see `services.endpoints.parts`."""

        async def work() -> PartAnswer:
            model = await self._loaded(call.entry)
            return await in_turn(self._turns, lambda: predicted_part(model, self._config, part, image))

        return await answered(call, work)

    async def check(self, call: Call) -> Problem | None:
        """Open a model where it is not open yet; what is wrong with it, or None."""

        async def work() -> None:
            await self._loaded(call.entry)

        return await answered(call, work)

    async def _loaded(self, entry: Entry) -> Loaded:
        key = entry.content
        moment, reason = self._failed.get(key, (0.0, ""))
        if reason and time.monotonic() - moment < RETRY_S:
            raise ModelUnavailable(reason)
        model = self._alive.get(key)
        if model is None:
            task = self._opening.get(key)
            if task is None:
                task = self._opening[key] = asyncio.create_task(asyncio.to_thread(self._open, entry))
                task.add_done_callback(lambda _: self._opening.pop(key, None))
            model = await asyncio.shield(task)
            self._alive[key] = model
            while len(self._alive) > self._limit and self._preloaded:
                self._preloaded.pop(next(iter(self._preloaded)))
        await self._recent(key)
        self._preloaded.pop(key, None)
        return model

    def _open(self, entry: Entry) -> Loaded:
        key = entry.content
        try:
            with tracing.span("load model", model=entry.key):
                model = self._worker.load(entry)
        except Exception as error:
            text = f"model {entry.key}: cannot be loaded: {error}"
            logger.error("%s", text, exc_info=not isinstance(error, PetavoxelError))
            self._failed[key] = (time.monotonic(), text)
            metrics.model_loads().inc(1, {"model": entry.key, "outcome": "failed"})
            raise ModelUnavailable(text) from error
        self._failed.pop(key, None)
        metrics.model_loads().inc(1, {"model": entry.key, "outcome": "loaded"})
        return model


class Segmenters:
    """A deployment that makes labels of affinities, with the kernels compiled when its constructor returns."""

    def __init__(self, config: ServeConfig) -> None:
        logs.configure(config.log_format)
        tracing.configure("segmenters")
        self._worker = Worker(config)
        self._worker.warm_up()
        self._core = asyncio.Semaphore(1)  # others wait for their affinities meanwhile
        self._stores = asyncio.Semaphore(config.ongoing)

    async def segment(
        self, call: Call, found: Answer | Problem, settings: Segmentation, output: str | None
    ) -> Answer | Problem:
        """Labels of what `ModelPool.predict` found; its problem, if it has one."""
        if isinstance(found, Problem):
            return found

        async def work() -> Answer:
            card = call.entry.card
            labels = await in_turn(self._core, lambda: self._worker.segment(card, found, settings))
            if output is None:
                return labels
            return await in_turn(self._stores, lambda: self._worker.write_labels(card, labels, output))

        return await answered(call, work)

    async def check_output(self, call: Call, output: str) -> Problem | None:
        """What is wrong with a place to write to, before anything is computed."""

        async def work() -> None:
            await in_turn(self._stores, lambda: self._worker.check_output(output))

        return await answered(call, work)


async def answered(call: Call, work: Callable[[], Awaitable[Result]]) -> Result | Problem:
    """The result of `work`; what it raises becomes a `Problem`, so that no traceback leaves the replica."""
    logs.request_id.set(call.request_id)
    with tracing.continued(call.trace):
        try:
            return await work()
        except PetavoxelError as error:
            return Problem.of(error)
        except Exception:
            problem = Problem.of(InternalError("the model or the store failed unexpectedly; see the server's log"))
            logger.exception("request failed: %s", problem.instance)
            return problem
