"""A registry on a disk, in memory and on both emulators: what is pushed is found, and never changes."""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from infra.objects import Folder
from infra.registry import Registry, fetch, locate
from models.catalog import CARD_NAME, Model, ModelCard
from models.errors import InvalidModel, NotFound, RunConflict

PLACES = ["disk", "memory", "gs", "s3"]


@pytest.fixture
def prefix(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty prefix of the store that the test asks for."""
    place = request.param
    if place in ("gs", "s3"):
        return f"{request.getfixturevalue({'gs': 'gcs_bucket', 's3': 's3_bucket'}[place])}/models"
    return str(tmp_path / "models") if place == "disk" else f"memory://{tmp_path.name}/models"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PETAVOXEL_MODEL_CACHE", str(folder))
    return folder


@pytest.fixture
def other(model: Model, tmp_path: Path) -> Model:
    """The same card with other bytes beside it."""
    folder = tmp_path / "other"
    folder.mkdir()
    content = model.onnx_path.read_bytes() + b"\0"
    file = replace(model.card.file, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    card = replace(model.card, file=file)
    (folder / file.name).write_bytes(content)
    (folder / CARD_NAME).write_text(card.to_json())
    return Model(card, folder)


@pytest.mark.parametrize("prefix", PLACES, indirect=True)
def test_what_is_pushed_is_listed_and_found_by_version_and_latest(model: Model, prefix: str, cache: Path) -> None:
    registry = Registry(prefix)
    assert registry.published() == []
    for version in ("2", "10", "1"):
        assert registry.push(model, version) == (f"{registry.url}/small/{version}", True)
        assert registry.push(model, version) == (f"{registry.url}/small/{version}", False), "the same again"
    assert registry.push(Model(replace(model.card, name="another"), model.folder))[0].endswith("/another/1")
    listed = registry.published()
    assert [each.url.removeprefix(registry.url) for each in listed] == [
        "/another/1", "/small/1", "/small/2", "/small/10",
    ]  # fmt: skip
    assert listed[2].read_card() == replace(model.card, version="2")
    assert registry.published() == listed, "stamps stay"
    base = f"{registry.url}/small"
    assert locate(base) == locate(f"{base}@10") == locate(f"{base}/10") == f"{base}/10"
    found = fetch(f"{base}@2")
    assert found.card == replace(model.card, version="2")
    assert found.onnx_path.read_bytes() == model.onnx_path.read_bytes()
    assert cache.exists() == ("://" in prefix), "what lies on a disk is read there"
    for wrong in (f"{base}@7", f"{base}@1.0", f"{base}/7", f"{registry.url}/nobody"):
        with pytest.raises(NotFound, match=r"1, 2, 10, got 7|there is neither|no such model"):
            fetch(wrong)


@pytest.mark.parametrize("prefix", PLACES, indirect=True)
def test_versions_never_change(model: Model, other: Model, prefix: str) -> None:
    registry = Registry(prefix)
    url, _ = registry.push(model)
    with pytest.raises(RunConflict, match="another network"):
        registry.push(other)
    with pytest.raises(RunConflict, match="another card"):
        registry.push(Model(replace(model.card, voxel_size_nm=(9.0, 9.0, 9.0)), model.folder))
    assert fetch(url).card == model.card
    assert registry.push(other, "2") == (f"{registry.url}/small/2", True)


@pytest.mark.parametrize("prefix", PLACES, indirect=True)
def test_a_push_that_ends_half_way_is_not_there_and_can_be_repeated(model: Model, other: Model, prefix: str) -> None:
    registry = Registry(prefix)
    registry.push(model, "1")
    half = Folder(prefix) / "small" / "2"
    half.write("model.onnx", model.onnx_path.read_bytes())
    assert locate(f"{registry.url}/small") == f"{registry.url}/small/1"
    assert [each.url for each in registry.published()] == [f"{registry.url}/small/1"]
    with pytest.raises(RunConflict, match="did not end"):
        registry.push(other, "2")
    assert registry.push(model, "2") == (half.url, True)
    assert locate(f"{registry.url}/small") == half.url


@pytest.mark.parametrize("prefix", ["disk", "gs", "s3"], indirect=True)
def test_of_several_pushes_at_once_one_wins(model: Model, other: Model, prefix: str) -> None:
    def push(one: Model) -> bool:
        try:
            return Registry(prefix).push(one)[1] or one is model
        except RunConflict:
            return False

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(push, [model, other, model, other]))
    held = fetch(f"{Registry(prefix).url}/small/1").card
    assert won in ([True, False, True, False], [False, True, False, True], [False, True, False, False],
                   [False, False, False, True])  # fmt: skip
    assert held == (model.card if won[0] else other.card)


@pytest.mark.parametrize("prefix", ["disk", "gs"], indirect=True)
def test_what_was_damaged_in_the_registry_is_refused(model: Model, prefix: str) -> None:
    registry = Registry(prefix)
    url, _ = registry.push(model)
    place = Folder(url)
    content = bytearray(place.read("model.onnx"))
    content[1000] ^= 1
    place.write("model.onnx", bytes(content))
    with pytest.raises(InvalidModel, match=r"SHA-256|not those of its card"):
        fetch(url)
    place.write("model.onnx", bytes(content[:-5]))
    (listed,) = registry.published()
    with pytest.raises(InvalidModel, match="bytes, got"):
        listed.read_card()
    place.write(CARD_NAME, replace(model.card, version="3").to_json().encode())
    with pytest.raises(InvalidModel, match="its card is that of small 3"):
        listed.read_card()
    place.write(CARD_NAME, b"\xff")
    with pytest.raises(InvalidModel, match="not a readable card"):
        listed.read_card()


@pytest.mark.parametrize("prefix", ["gs"], indirect=True)
def test_the_cache_is_checked_and_mended(model: Model, prefix: str, cache: Path) -> None:
    url, _ = Registry(prefix).push(model)
    first = fetch(url)
    stamp = first.onnx_path.stat().st_mtime_ns
    assert fetch(url).onnx_path.stat().st_mtime_ns == stamp
    first.onnx_path.write_bytes(b"damaged")
    assert fetch(url) == first
    assert first.onnx_path.read_bytes() == model.onnx_path.read_bytes()
    with ThreadPoolExecutor(4) as pool:
        shutil.rmtree(cache)
        assert list(pool.map(fetch, [url] * 4)) == [first] * 4
    assert len(list(cache.iterdir())) == 1


def test_names_are_those_of_the_zoo_folders_and_the_registry(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locate("fib25-affinity") == locate("fib25-affinity@1") == "fib25-affinity"
    monkeypatch.chdir(model.folder.parent)
    for text in ("small", str(model.folder), f"small/{CARD_NAME}"):
        assert locate(text) == str(model.folder.resolve())
        assert fetch(text).card == model.card
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match="known models: fib25-affinity"):
        locate("small")
    registry = Registry(str(tmp_path / "registry"))
    registry.push(model, "1")
    registry.push(Model(replace(model.card, name="fib25-affinity"), model.folder), "4")
    monkeypatch.setenv("PETAVOXEL_REGISTRY", registry.url)
    assert locate("small") == locate("small@1") == f"{registry.url}/small/1"
    assert locate("fib25-affinity") == "fib25-affinity", "the zoo goes first"
    assert locate("fib25-affinity@4") == f"{registry.url}/fib25-affinity/4"
    with pytest.raises(NotFound, match="versions"):
        locate("nobody")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"version": "1.2"}, "1, 2, 3"), ({"version": "01"}, "1, 2, 3"), ({"name": "a/b"}, "letters"),
     ({"name": ".."}, "letters")],
)  # fmt: skip
def test_what_cannot_be_published(model: Model, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    card: ModelCard = replace(model.card, **changes)  # type: ignore[arg-type]
    with pytest.raises(InvalidModel, match=message):
        Registry(str(tmp_path / "registry")).push(Model(card, model.folder))
    assert not (tmp_path / "registry").exists()


def test_a_plain_folder_of_models_is_listed_too(model: Model, tmp_path: Path) -> None:
    shutil.copytree(model.folder, tmp_path / "models" / "one")
    (tmp_path / "models" / "no-model").mkdir()
    (listed,) = Registry(str(tmp_path / "models")).published()
    assert listed.read_card() == model.card
    assert fetch(listed.url).card == model.card
