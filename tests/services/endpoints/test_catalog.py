from __future__ import annotations

import asyncio
import logging
import pickle
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bucket_servers import GoogleServer, google_environment

from infra.objects import Folder
from infra.registry import Registry
from models.catalog import CARD_NAME, Model
from models.errors import InvalidConfig, InvalidModel, NotFound, StorageFailed
from services.endpoints.catalog import REFRESH_S, Catalog, Entry


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


def test_an_entry_travels_whole_and_is_read_once(model: Model) -> None:
    entry = Catalog([str(model.folder)]).default
    first, second = (pickle.loads(pickle.dumps(entry)) for _ in range(2))  # noqa: S301
    assert first == entry
    assert first is second
    other = replace(entry, path="elsewhere")
    assert pickle.loads(pickle.dumps(other)) == other  # noqa: S301


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


def test_a_registry_on_a_bucket_is_followed_and_its_failures_change_nothing(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PETAVOXEL_MODEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PETAVOXEL_STORAGE_TIMEOUT_S", "3")
    with GoogleServer(tmp_path / "bucket") as server:
        server.make_bucket("models")
        for name, value in google_environment(server.url).items():
            monkeypatch.setenv(name, value)
        registry = Registry("gs://models/registry")
        registry.push(model, "1")
        catalog = Catalog([f"{registry.url}/small@1"], registry.url, rescan_s=1e-9)

        def versions() -> tuple[str, ...]:
            asyncio.run(catalog.refresh())
            return catalog.versions("small")

        assert versions() == ("1",), "the same model in both places is one"
        assert catalog.default.path == f"{registry.url}/small/1"
        Folder(f"{registry.url}/small/3").write("model.onnx", model.onnx_path.read_bytes())
        registry.push(model, "2")
        assert versions() == ("1", "2"), "a push that has not ended is not there"
        registry.push(model, "3")
        assert versions() == ("1", "2", "3")
        assert catalog.find("small") == Entry(replace(model.card, version="3"), f"{registry.url}/small/3")
        Folder(f"{registry.url}/small/3").remove("model.onnx")
        with caplog.at_level(logging.ERROR):
            assert versions() == versions() == ("1", "2")
        assert len([record for record in caplog.records if "left out" in record.message]) == 1
        server.kill()

        async def seconds() -> float:
            began = time.monotonic()
            await catalog.refresh()
            await catalog.refresh()
            return time.monotonic() - began

        caplog.clear()
        with caplog.at_level(logging.ERROR):
            assert asyncio.run(seconds()) < 3 * REFRESH_S, "requests do not wait for a dead store"
        assert catalog.versions("small") == ("1", "2"), "nor does it take a model away"
        server.start()
        registry.push(model, "4")
        assert versions() == ("1", "2", "4")


def test_a_new_version_is_meant_once_it_has_been_tried(
    model: Model, put_model: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    put_model(folder, "small", "2")
    wrong: dict[str, str | None] = {"small:4": "its weights are garbage"}
    tried: list[str] = []

    async def probe(entry: Entry) -> str | None:
        tried.append(entry.key)
        if wrong.get(entry.key) == "no replica":
            raise StorageFailed("no replica")
        return wrong.get(entry.key)

    catalog = Catalog([str(model.folder)], str(folder), 1e-9, probe)
    assert catalog.find("small").key == "small:2", "what was there at the start is meant at once"

    def latest() -> str:
        asyncio.run(catalog.refresh())
        return catalog.find("small").key

    put_model(folder, "small", "3")
    put_model(folder, "new", "1")
    assert latest() == latest() == "small:3"
    assert tried == ["small:2", "small:3"], "each once; and a name that is new has nothing to fall back to"
    put_model(folder, "small", "4")
    with caplog.at_level(logging.ERROR):
        assert latest() == latest() == "small:3"
    assert len([record for record in caplog.records if "garbage" in record.message]) == 1
    assert catalog.find("small", "4").key == "small:4"
    assert catalog.versions("small") == ("1", "2", "3", "4")
    wrong["small:4"] = "no replica"
    assert latest() == "small:3"
    wrong.clear()
    assert latest() == "small:4"
    shutil.rmtree(folder / "small-4")
    assert latest() == "small:3"


def test_a_version_that_was_broken_at_the_start_is_no_longer_meant(
    model: Model, put_model: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for name, versions in {"small": "234", "other": "12", "alone": "1"}.items():
        for version in versions:
            put_model(folder, name, version)
    wrong: dict[str, str | None] = {f"{key}:{version}": "garbage" for key in ("small", "alone") for version in "1234"}
    wrong["small:2"] = None
    tried: list[str] = []

    async def probe(entry: Entry) -> str | None:
        tried.append(entry.key)
        return wrong.get(entry.key)

    catalog = Catalog([str(model.folder)], str(folder), 3600, probe)
    assert [catalog.find(name).key for name in ("small", "other", "alone")] == ["small:4", "other:2", "alone:1"]
    with caplog.at_level(logging.ERROR):
        asyncio.run(catalog.refresh())
        asyncio.run(catalog.refresh())
    assert [catalog.find(name).key for name in ("small", "other", "alone")] == ["small:2", "other:2", "alone:1"]
    assert sorted(tried) == ["other:2", "small:2", "small:3", "small:4"], "each once, until one works"
    assert len([record for record in caplog.records if "garbage" in record.message]) == 2
    assert catalog.find("small", "4").key == "small:4"
    assert catalog.default.key == "small:1"


def test_versions_of_the_configuration_are_tried_again(
    model: Model, put_model: Callable[..., None], tmp_path: Path
) -> None:
    put_model(tmp_path, "small", "2")
    wrong: list[str] = ["no replica"]

    async def probe(entry: Entry) -> str | None:
        if wrong:
            raise StorageFailed(wrong[0])
        return None

    catalog = Catalog([str(model.folder), str(tmp_path / "small-2")], rescan_s=1e-9, probe=probe)
    asyncio.run(catalog.refresh())
    assert catalog.find("small").key == "small:1"
    wrong.clear()
    asyncio.run(catalog.refresh())
    assert catalog.find("small").key == "small:2"


def test_requests_do_not_wait_for_the_versions_of_the_start(
    model: Model, put_model: Callable[..., None], tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    put_model(folder, "small", "2")

    async def main() -> None:
        loaded = asyncio.Event()

        async def probe(entry: Entry) -> str | None:
            await loaded.wait()
            return "garbage"

        catalog = Catalog([str(model.folder)], str(folder), 3600, probe)
        began = time.monotonic()
        await catalog.refresh()
        assert time.monotonic() - began < 3 * REFRESH_S
        began = time.monotonic()
        await catalog.refresh()
        assert time.monotonic() - began < REFRESH_S / 2
        assert catalog.find("small").key == "small:2", "as long as nothing is known"
        loaded.set()
        async with asyncio.timeout(20):
            while catalog.find("small").key != "small:1":
                await asyncio.sleep(0.01)

    asyncio.run(main())
