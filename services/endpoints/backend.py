"""What the routes need of whatever computes: replicas that hold models, and replicas that segment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from models.catalog import Segmentation
from services.endpoints import tracing
from services.endpoints.catalog import Entry
from services.endpoints.problems import Problem
from services.endpoints.schemas import Reference
from services.endpoints.worker import Answer


@dataclass(frozen=True)
class Call:
    """What a replica has to know of a request besides its image; `trace` is the context in which it is made."""

    entry: Entry
    request_id: str = ""
    trace: dict[str, str] = field(default_factory=tracing.carried)


class Backend(Protocol):
    """What computes. Methods raise `Overloaded` where too many requests wait, `Unavailable` where a replica is lost."""

    async def predict(self, call: Call, image: NDArray[Any] | Reference) -> Answer | Problem:
        """Affinities of an image, or of a box of a volume."""
        ...

    async def segment(
        self, call: Call, image: NDArray[Any] | Reference, settings: Segmentation, output: str | None
    ) -> Answer | Problem:
        """Labels of an image, or of a box of a volume, written to `output` if that is given."""
        ...

    async def check(self, call: Call) -> Problem | None:
        """Load a model where it is not loaded yet; what is wrong with it, or None."""
        ...

    async def replicas(self) -> dict[str, int]:
        """Replicas that run, by deployment."""
        ...
