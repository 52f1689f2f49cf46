"""Options that were not given are those of the model's card, in the pipeline and in the endpoints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.catalog import CARD_NAME, Model, ModelCard, Segmentation
from models.errors import InvalidConfig, InvalidInput
from services.endpoints.schemas import SegmentSettings
from services.pipelines.preparation import Request, check
from services.run import AgglomerationOptions, SegmentOptions, WatershedOptions

CHOSEN = Segmentation(low=0.1, high=0.9, basin_voxels=50, basin_affinity=0.3, threshold=0.4)


@pytest.fixture
def advised(model: Model, tmp_path: Path) -> Model:
    """The small model with a card that recommends other options than the usual ones."""
    folder = tmp_path / "advised"
    folder.mkdir()
    (folder / model.card.file.name).write_bytes(model.onnx_path.read_bytes())
    card = replace(model.card, segmentation=CHOSEN)
    (folder / CARD_NAME).write_text(card.to_json())
    return Model(card, folder)


def test_what_is_not_given_is_the_cards(advised: Model, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.zeros((20, 20, 20), np.uint8))

    def options(**given: object) -> SegmentOptions:
        asked = SegmentOptions.model_validate(given)
        image, out = str(tmp_path / "image.npy"), str(tmp_path / "out")
        return check(Request(image, out, str(advised.folder), asked, voxel_size_nm=(10, 10, 10))).options

    assert options().watershed == WatershedOptions(low=0.1, high=0.9)
    assert options().agglomeration == AgglomerationOptions(basin_voxels=50, basin_affinity=0.3, threshold=0.4)
    found = options(watershed={"high": 0.996}, agglomeration={"threshold": 0.22}, augment=True)
    assert (found.watershed.low, found.watershed.high, found.agglomeration.threshold) == (0.1, 0.996, 0.22)
    assert found.agglomeration.basin_voxels == 50
    assert found.augment
    with pytest.raises(InvalidConfig, match=r"beside those of the model small: .*low must not exceed high"):
        options(watershed={"high": 0.05})


def test_requests_too(model: Model) -> None:
    card: ModelCard = replace(model.card, segmentation=CHOSEN)
    assert SegmentSettings().completed(card) == CHOSEN
    assert SegmentSettings(threshold=0.22, basin_voxels=0).completed(card) == replace(
        CHOSEN, threshold=0.22, basin_voxels=0
    )
    with pytest.raises(InvalidInput, match="low must not exceed high"):
        SegmentSettings(high=0.05).completed(card)
