"""The endpoints in this process, without Ray: the real application and worker, joined by function calls."""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import FastAPI
from numpy.typing import NDArray

from models.catalog import Segmentation
from models.errors import PetavoxelError
from services.endpoints.api import create_api
from services.endpoints.backend import Call
from services.endpoints.catalog import Catalog
from services.endpoints.config import ServeConfig
from services.endpoints.gate import Gate
from services.endpoints.interruption import in_thread
from services.endpoints.problems import Problem
from services.endpoints.schemas import Reference
from services.endpoints.tokens import Tokens
from services.endpoints.worker import Answer, Loaded, Worker


class LocalBackend:
    """Does in threads what replicas do."""

    def __init__(self, config: ServeConfig) -> None:
        self.worker = Worker(config)
        self._loaded: dict[str, Loaded] = {}

    def _model(self, call: Call) -> Loaded:
        key = call.entry.key
        if key not in self._loaded:
            self._loaded[key] = self.worker.load(call.entry)
        return self._loaded[key]

    def _predict(self, call: Call, image: NDArray[Any] | Reference) -> Answer:
        model = self._model(call)
        if isinstance(image, Reference):
            seen = self.worker.read(model, image)
            return self.worker.write(model, seen, self.worker.predict_seen(model, seen))
        return self.worker.predict(model, image)

    async def predict(self, call: Call, image: NDArray[Any] | Reference) -> Answer | Problem:
        try:
            return await in_thread(lambda: self._predict(call, image))
        except PetavoxelError as error:
            return Problem.of(error)

    async def segment(
        self, call: Call, image: NDArray[Any] | Reference, settings: Segmentation, output: str | None
    ) -> Answer | Problem:
        def work() -> Answer:
            self.worker.check_output(output)
            card = call.entry.card
            labels = self.worker.segment(card, self._predict(call, image), settings)
            return labels if output is None else self.worker.write_labels(card, labels, output)

        try:
            return await in_thread(work)
        except PetavoxelError as error:
            return Problem.of(error)

    async def check(self, call: Call) -> Problem | None:
        try:
            await in_thread(lambda: self._model(call))
        except PetavoxelError as error:
            return Problem.of(error)
        return None

    async def replicas(self) -> dict[str, int]:
        return {"models": 1, "segmenters": 1}


def local_api(config: ServeConfig) -> FastAPI:
    """The application that `petavoxel serve` would run."""
    catalog = Catalog(config.models, config.model_folder, config.rescan_s)
    gate = Gate(config.open_requests)
    return create_api(config, catalog, LocalBackend(config), gate, Tokens(config.tokens))


def local_client(api: FastAPI) -> httpx.AsyncClient:
    """An HTTP client that speaks to the application directly; what it raises becomes a reply, as behind a server."""
    transport = httpx.ASGITransport(app=api, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://local")
