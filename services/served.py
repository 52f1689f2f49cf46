"""A pipeline's side of running endpoints: predictions by Serve handle, so that a cluster keeps one copy of a network.

Chunks are cut into the parts that the network computes anyway (one patch each), a few are on their way at a time, and
what a lost or busy replica did not answer is asked again. The model is the run's, by digest, or it is refused, and so
is an answer of another engine than the run was begun with.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from infra.planner import PatchPlan
from infra.settings import current_settings
from models.catalog import ModelCard
from models.errors import InvalidInput, InvalidModel, RuntimeUnavailable
from models.geometry import Box
from services.endpoints.app import MODELS
from services.endpoints.backend import Call
from services.endpoints.parts import Part, PartAnswer
from services.endpoints.problems import Problem
from services.run import Engine

logger = logging.getLogger(__name__)

IN_FLIGHT = 2
"""Parts of one worker that are on their way at a time, so that one travels while another is computed."""
WORKERS_PER_REPLICA = 2
"""Workers that read and write for one replica: with two parts each, it always has the next one."""
BUSY = (429, 503, 504)
"""Problems that pass: too many requests, a model or replica that is being started, a deadline."""
GONE_S = 10.0
"""How long to wait for endpoints that did not answer for `PETAVOXEL_STALL_S` before: so that a stage ends."""
PAUSES_S = (0.2, 5.0)
"""First and longest pause before something is asked again."""


def served_workers(app: str) -> int:
    """How many workers of a pipeline keep the application's replicas busy.

    Raises `RuntimeUnavailable` where it does not run on this cluster.
    """
    _ingress(app)
    found = serve.status().applications.get(app)
    models = found.deployments.get(MODELS) if found else None
    running = sum(number for state, number in models.replica_states.items() if state == "RUNNING") if models else 0
    return WORKERS_PER_REPLICA * max(1, running)


@dataclass
class ServedModel:
    """A model of the application `app` of running endpoints; `engine` is what its answers must come from."""

    app: str
    card: ModelCard
    call: Call
    handle: DeploymentHandle[Any]
    engine: Engine | None = None
    heard: bool = True
    """Whether the last part was answered; if it was not, the next one waits `GONE_S` only."""

    @classmethod
    def find(cls, app: str, card: ModelCard, engine: Engine | None = None) -> ServedModel:
        """The model of that name and version.

        Raises `RuntimeUnavailable` where the application does not run on this cluster or does not answer, and
        `InvalidModel` where it does not serve this model, or another one under the name.
        """
        ingress = _ingress(app)
        entry = _answer(app, lambda: ingress.find.remote(card.name, card.version), None, current_settings().stall_s)
        if isinstance(entry, Problem):
            raise InvalidModel(f"endpoints {app}: {entry.detail}")
        if entry.card.file.sha256 != card.file.sha256:
            raise InvalidModel(
                f"endpoints {app}: expected model {entry.key} with SHA-256 {card.file.sha256}, "
                f"they serve {entry.card.file.sha256}"
            )
        handle = serve.get_deployment_handle(MODELS, app_name=app).options(multiplexed_model_id=entry.content)
        return cls(app, card, Call(entry, "pipeline"), handle, engine)

    def asked_engine(self) -> Engine:
        """What computes there; opens the model where it is not open yet."""
        return self._part(lambda: self.handle.predict_part.remote(self.call, None, None)).engine

    def predict_box(self, image: NDArray[Any], plan: PatchPlan, box: Box, *, augment: bool) -> NDArray[np.uint8]:
        """Affinities uint8 (c, z, y, x) of a box, those of `Predictor.predict_box`.

        `image` holds `plan.context_box(box)`. Raises `RuntimeUnavailable` where nobody answers within
        `PETAVOXEL_STALL_S`, or the answer comes from another engine, and `InvalidInput` for other problems.
        """
        result = np.zeros((len(self.card.output.offsets), *box.shape), np.uint8)
        begin, waiting = plan.context_box(box).start, deque[tuple[Box, Callable[[], Any], Any]]()

        def take() -> None:
            part, send, response = waiting.popleft()
            voxels: Any = self._part(send, response).voxels
            result[:, *part.slices(box.start)] = voxels

        for part in _parts(plan, box):
            if len(waiting) == IN_FLIGHT:
                take()
            send = self._sender(image[plan.context_box(part).slices(begin)], Part(plan.volume_shape, part, augment))
            waiting.append((part, send, send()))
        while waiting:
            take()
        return result

    def _sender(self, image: NDArray[Any], part: Part) -> Callable[[], Any]:
        reference = ray.put(np.ascontiguousarray(image))  # once, however often it is sent
        return lambda: self.handle.predict_part.remote(self.call, part, reference)

    def _part(self, send: Callable[[], Any], response: Any = None) -> PartAnswer:
        limit = current_settings().stall_s if self.heard else GONE_S
        self.heard = False
        answer = _answer(self.app, send, response, limit)
        self.heard = True
        if not isinstance(answer, PartAnswer):
            raise InvalidInput(f"endpoints {self.app}: {getattr(answer, 'detail', answer)}")
        if self.engine is not None and not self.engine.same(answer.engine):
            raise RuntimeUnavailable(
                f"endpoints {self.app}: the run's predictions come from {self.engine}, this answer from "
                f"{answer.engine}; their roundings differ, so one run never mixes them"
            )
        return answer


def _parts(plan: PatchPlan, box: Box) -> list[Box]:
    """Where patches partition the volume, a box per patch; else the whole box, so that none is computed twice."""
    if plan.overlap != (0, 0, 0):
        return [box]
    return [plan.valid_box(index).intersection(box) for index in plan.patches(box)]


def _ingress(app: str) -> DeploymentHandle[Any]:
    try:
        return serve.get_app_handle(app)
    except (RayServeException, ray.exceptions.RayError) as error:
        raise RuntimeUnavailable(f"endpoints {app}: no such application runs on this cluster") from error


def _answer(app: str, send: Callable[[], Any], response: Any, limit: float) -> Any:
    """What is answered; what is lost or refused for the moment is sent again, for `limit` seconds in all."""
    give_up, (pause, longest) = time.monotonic() + limit, PAUSES_S
    while True:
        try:
            response = send() if response is None else response
            answer = response.result(timeout_s=max(0.1, give_up - time.monotonic()))
        except TimeoutError as error:
            response.cancel()
            raise RuntimeUnavailable(f"endpoints {app}: no answer within {limit:.0f} s") from error
        except (RayServeException, ray.exceptions.RayError) as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            if not isinstance(answer, Problem) or answer.status not in BUSY:
                return answer
            why = answer.detail
        if time.monotonic() + pause > give_up:
            raise RuntimeUnavailable(f"endpoints {app}: no answer within {limit:.0f} s, last: {why}")
        logger.warning("endpoints %s: asked again: %s", app, why)
        time.sleep(pause)
        pause, response = min(2 * pause, longest), None
