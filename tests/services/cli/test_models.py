"""`petavoxel models …` on the zoo, a disk and both emulators."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from infra.objects import Folder
from models.catalog import CARD_NAME, Model, ModelCard, Score, find_model
from models.errors import PetavoxelError
from services.cli.main import app


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETAVOXEL_MODEL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def prefix(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "registry")
    return f"{request.getfixturevalue({'gs': 'gcs_bucket', 's3': 's3_bucket'}[request.param])}/models"


def petavoxel(*words: str) -> str:
    result = CliRunner().invoke(app, ["models", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: str) -> tuple[int, str]:
    """The exit code and line of a mistake."""
    with pytest.raises(PetavoxelError) as caught:
        CliRunner().invoke(app, ["models", *words], catch_exceptions=False)
    return caught.value.exit_code, " ".join(str(caught.value).split())


def test_the_zoo_is_listed_and_shown() -> None:
    lines = petavoxel("list").splitlines()
    assert lines[0].split() == ["name", "version", "kind", "voxel", "nm", "sha256", "score", "terms"]
    (line,) = (line for line in lines if line.startswith("fib25-affinity"))
    card = find_model("fib25-affinity").card
    assert line.split()[1:6] == [card.version, "affinity", "10×10×10", card.file.sha256[:12], "voi"]
    assert card.training.terms in line
    shown = petavoxel("show", "fib25-affinity")
    assert card.file.sha256 in shown
    assert "(-1, 0, 0)" in shown
    assert "--low 0 --high 0.996 --basin-voxels 300 --basin-affinity 0 --threshold 0.22" in shown
    found = json.loads(petavoxel("show", "fib25-affinity", "--json"))
    assert ModelCard.from_json(json.dumps(found["card"])) == card


@pytest.mark.parametrize("prefix", ["disk", "gs", "s3"], indirect=True)
def test_push_list_show_pull(model: Model, prefix: str, tmp_path: Path) -> None:
    scored = Model(
        replace(model.card, scores=(Score("slabs", "test", {"are": 0.1, "voi": 0.25}),)), tmp_path / "scored"
    )
    shutil.copytree(model.folder, scored.folder)
    (scored.folder / CARD_NAME).write_text(scored.card.to_json())
    assert "published" in petavoxel("push", str(scored.folder), prefix)
    assert "already, the same" in petavoxel("push", str(scored.folder), prefix)
    assert petavoxel("push", str(scored.folder), prefix, "--version", "12").startswith(f"{prefix}/small/12: published")
    code, line = refused("push", str(model.folder), prefix)
    assert (code, "versions never change" in line) == (6, True), line
    rows: list[dict[str, Any]] = json.loads(petavoxel("list", prefix, "--json"))
    assert [(row["name"], row["version"]) for row in rows] == [("small", "1"), ("small", "12")]
    assert rows[0]["score"] == {"dataset": "slabs", "split": "test", "metric": "voi", "value": 0.25}
    assert "voi 0.25" in petavoxel("list", prefix)
    assert "12 of 1, 12" in petavoxel("show", f"{prefix}/small")
    for name, version in (("small", "12"), ("small@1", "1")):
        target = tmp_path / f"pulled-{version}"
        for _ in range(2):
            assert f"small {version}" in petavoxel("pull", name, prefix, str(target))
        assert find_model(target).card == replace(scored.card, version=version)
    code, line = refused("pull", "small@1", prefix, str(tmp_path / "pulled-12"))
    assert (code, "another model is there" in line) == (6, True), line
    (Folder(prefix) / "small" / "13").write(CARD_NAME, b"{}")
    assert "/small/13: broken: " in petavoxel("list", prefix)
    assert petavoxel("push", f"{prefix}/small@12", f"{prefix}-copy").startswith(f"{prefix}-copy/small/12: published")


def test_the_registry_of_the_settings_is_listed_beside_the_zoo(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = str(tmp_path / "registry")
    petavoxel("push", str(model.folder), registry)
    monkeypatch.setenv("PETAVOXEL_REGISTRY", registry)
    names = [row["name"] for row in json.loads(petavoxel("list", "--json"))]
    assert {"fib25-affinity", "small"} <= set(names)
    assert f"{registry}/small/1" in petavoxel("show", "small")


def test_a_training_run_is_exported_and_published_with_its_scores(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    content = torch.load(checkpoint, weights_only=True)
    config = {"name": "slabs-affinity"}
    torch.save({**content, "provenance": {"config": config}}, run / "last.pt")
    scores = {"voi": 0.5, "adapted_rand_error": 0.125, "threshold": 0.25}
    torch.save({**content, "provenance": {"config": config, "validation": scores}}, run / "best.pt")
    registry = str(tmp_path / "registry")
    code, line = refused("push", str(run), registry)
    assert (code, "--terms" in line) == (2, True), line
    assert petavoxel("push", str(run), registry, "--terms", "CC0").startswith(f"{registry}/slabs-affinity/1: published")
    card = find_model(f"{registry}/slabs-affinity/1").card
    assert (card.training.terms, card.scores[0].values) == ("CC0", scores)
    assert card.segmentation is not None
    assert card.segmentation.threshold == 0.25
    petavoxel("push", str(run), registry, "--terms", "CC0", "--name", "other", "--version", "2")
    assert find_model(f"{registry}/other/2").card.name == "other"


def test_mistakes_end_in_one_line(model: Model, tmp_path: Path) -> None:
    registry, nothing = str(tmp_path / "registry"), str(tmp_path / "nothing")
    damaged = Path(shutil.copytree(model.folder, tmp_path / "damaged"))
    (damaged / "model.onnx").write_bytes(b"x")
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.txt").write_text("all of it")
    petavoxel("push", str(model.folder), registry)
    cases = [
        (3, "there is none", ("list", nothing)),
        (2, "expected a local path", ("list", "http://somewhere/models")),
        (3, "known models: fib25-affinity", ("show", "nobody")),
        (3, "no such model, folder or card", ("pull", "nobody", registry, nothing)),
        (3, "versions 1, got 7", ("pull", "small@7", registry, nothing)),
        (6, "something else", ("pull", "small", registry, str(occupied))),
        (2, "bytes, the card says", ("push", str(damaged), registry)),
        (2, "1, 2, 3", ("push", str(model.folder), registry, "--version", "1.1")),
        (2, "are for training runs", ("push", str(model.folder), registry, "--terms", "CC0")),
        (3, "known models", ("push", nothing, registry)),
    ]
    for code, text, words in cases:
        got, line = refused(*words)
        assert (got, text in line) == (code, True), line
    assert sorted(path.name for path in (tmp_path / "registry" / "small").iterdir()) == ["1"]
