"""What `petavoxel models` shows of models, and how what was trained becomes a model that can be published."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from infra.registry import Registry, fetch
from models.catalog import ZOO, Model, ModelCard, Score, Training
from models.errors import InvalidInput, PetavoxelError, RuntimeUnavailable

CHECKPOINTS = ("best.pt", "last.pt")
"""Of a training run, the better one first."""


def rows(prefixes: list[str]) -> list[dict[str, Any]]:
    """What a list of models shows, by prefix, name and version; a broken model has an `error` instead of its card."""
    found = []
    for prefix in prefixes:
        for model in Registry(prefix).published():
            try:
                found.append({**row(model.read_card()), "url": model.url})
            except PetavoxelError as error:
                found.append({"url": model.url, "error": " ".join(str(error).split())})
    return found


def row(card: ModelCard) -> dict[str, Any]:
    """A model in one row."""
    return {
        "name": card.name,
        "version": card.version,
        "kind": card.output.kind,
        "voxel_size_nm": list(card.voxel_size_nm),
        "sha256": card.file.sha256,
        "terms": card.training.terms,
        "score": headline(card),
    }


def headline(card: ModelCard) -> dict[str, Any] | None:
    """The one figure that stands for all: the VOI of the first score that has one, else the first figure."""
    figures = [(score, metric) for score in card.scores for metric in score.values]
    chosen = next((one for one in figures if one[1] == "voi"), figures[0] if figures else None)
    if chosen is None:
        return None
    score, metric = chosen
    return {"dataset": score.dataset, "split": score.split, "metric": metric, "value": score.values[metric]}


def zoo() -> str:
    """Where the models lie that ship."""
    return str(ZOO)


def publishable(
    given: str, scratch: Path, *, name: str | None = None, data: str | None = None, terms: str | None = None
) -> Model:
    """The model that `given` names, or that is exported from the training run in the folder `given`.

    `name`, `data` and `terms` are for the card of a training run, whose name is the recipe's by default. Raises
    `InvalidInput` where they are given for a finished model, or the terms are missing for a run, `RuntimeUnavailable`
    without torch, and what `infra.registry.fetch` and the export raise.
    """
    checkpoint = next((Path(given) / file for file in CHECKPOINTS if (Path(given) / file).is_file()), None)
    if checkpoint is None:
        if name or data or terms:
            raise InvalidInput(
                f"{given}: a finished model has a card; --name, --data and --terms are for training runs"
            )
        return fetch(given)
    if not terms:
        raise InvalidInput(f"{given}: a training run; say the terms of use of its data and weights with --terms")
    try:
        from models.training.export import export_checkpoint
        from models.training.loop import read_checkpoint
    except ImportError as error:
        raise RuntimeUnavailable(f"publishing a run needs the extra 'train' ({error})") from error
    from infra.runtimes.openvino_session import run_onnx

    provenance = read_checkpoint(checkpoint)["provenance"]
    recipe = str(provenance["config"]["name"])
    return export_checkpoint(
        checkpoint,
        scratch / "model",
        run=run_onnx,
        training=Training(data or f"that of the recipe {recipe}", terms),
        name=name or recipe,
        scores=_validation(recipe, provenance.get("validation")),
    )


def _validation(recipe: str, found: dict[str, float] | None) -> tuple[Score, ...]:
    """The scores that the checkpoint was chosen by."""
    finite = {metric: float(value) for metric, value in (found or {}).items() if math.isfinite(value)}
    return (Score(recipe, "validation part of the training run", finite),) if finite else ()
