"""What the routes need of whatever computes: the replicas of the served models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from models.catalog import ModelCard
from models.errors import NotFound
from services.endpoints.boundary import Prediction
from services.endpoints.problems import Problem
from services.endpoints.schemas import Reference


class Backend(Protocol):
    """What computes: the models' replicas."""

    async def predict(self, model: str, image: NDArray[Any]) -> Prediction | Problem:
        """Affinities of an image; raises `Overloaded` where too many requests wait."""
        ...

    async def predict_reference(self, model: str, reference: Reference) -> Prediction | Problem:
        """Affinities of a box of a volume; raises `Overloaded` where too many requests wait."""
        ...

    async def replicas(self) -> dict[str, int]:
        """Replicas per model that have loaded it and run it once."""
        ...


def find_card(cards: Mapping[str, ModelCard], name: str) -> ModelCard:
    """The card of a served model; raises `NotFound`, which lists their names."""
    card = cards.get(name)
    if card is None:
        raise NotFound(f"model {name[:100]!r}: this server has {', '.join(cards)}")
    return card
