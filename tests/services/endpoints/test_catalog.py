from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from models.catalog import CARD_NAME, Model
from models.errors import InvalidConfig, InvalidModel, NotFound
from services.endpoints.catalog import Catalog


def test_versions_are_ordered_and_the_highest_is_meant(
    model: Model, put_model: Callable[..., None], tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for version in ("2", "10", "1.9", "10-rc"):
        put_model(folder, "other", version)
    catalog = Catalog([str(model.folder)], str(folder))
    assert catalog.default.card.name == "small"
    assert catalog.find().key == "small:1"
    assert catalog.find("other", "2").key == "other:2"
    assert catalog.versions("other") == ("1.9", "2", "10", "10-rc")
    assert catalog.find("other").card.version == "10-rc"
    for wrong in (("nobody", None), ("small", "2"), (None, "7")):
        with pytest.raises(NotFound, match="this server has small:1"):
            catalog.find(*wrong)


def test_models_come_and_go_and_broken_ones_stay_out(
    model: Model, put_model: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    catalog = Catalog([str(model.folder)], str(folder), rescan_s=1e-9)

    def names() -> set[str]:
        asyncio.run(catalog.refresh())
        return {entry.key for entry in catalog.entries}

    assert names() == {"small:1"}
    put_model(folder, "other", "1")
    assert names() == {"small:1", "other:1"}
    (folder / "broken").mkdir()
    (folder / "broken" / CARD_NAME).write_text("{}")
    put_model(folder, "cut", "1")
    (folder / "cut-1" / "model.onnx").write_bytes(b"too short")
    with caplog.at_level(logging.ERROR):
        assert names() == {"small:1", "other:1"}
        assert names() == {"small:1", "other:1"}
    assert len([record for record in caplog.records if "left out" in record.message]) == 2, "each is logged once"
    shutil.rmtree(folder / "other-1")
    assert names() == {"small:1"}


def test_what_is_refused_at_the_start(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="folder"):
        Catalog([str(model.folder)], str(tmp_path / "nothing"))
    with pytest.raises(InvalidConfig, match="'small:1'"):
        Catalog([str(model.folder)] * 2)
    shutil.copytree(model.folder, tmp_path / "cut")
    (tmp_path / "cut" / "model.onnx").write_bytes(b"x")
    with pytest.raises(InvalidModel):
        Catalog([str(tmp_path / "cut")])
