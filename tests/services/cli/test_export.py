from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from models.catalog import find_model
from models.errors import InvalidModel, NotFound
from services.cli.export import export


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(export)
    return app


def test_writes_a_model_with_its_card(app: typer.Typer, checkpoint: Path, tmp_path: Path) -> None:
    scores, image, folder = tmp_path / "scores.json", tmp_path / "image.npy", tmp_path / "model"
    scores.write_text('[{"dataset": "d", "split": "test", "values": {"voi": 1}}]')
    np.save(image, np.random.default_rng(0).integers(0, 256, (40, 50, 70), dtype=np.uint8))
    arguments = [str(checkpoint), str(folder), "--name", "mine", "--data", "a", "--terms", "b"]
    result = CliRunner().invoke(app, [*arguments, "--scores", str(scores), "--image", str(image)])
    assert result.exit_code == 0, result.output
    card = find_model(folder).card
    assert card.name == "mine"
    assert (card.training.data, card.training.terms) == ("a", "b")
    assert card.scores[0].values == {"voi": 1.0}
    assert card.file.sha256 in result.output.replace("\n", "")


def test_bad_input_names_the_file(app: typer.Typer, checkpoint: Path, tmp_path: Path) -> None:
    missing = CliRunner().invoke(app, [str(checkpoint), str(tmp_path), "--scores", str(tmp_path / "none.json")])
    assert isinstance(missing.exception, NotFound)
    broken = tmp_path / "scores.json"
    for text in ("{", "{}", '[{"dataset": "d"}]'):
        broken.write_text(text)
        result = CliRunner().invoke(app, [str(checkpoint), str(tmp_path / "m"), "--scores", str(broken)])
        assert isinstance(result.exception, InvalidModel)
        assert "scores.json" in str(result.exception)
    foreign = CliRunner().invoke(app, [str(broken), str(tmp_path / "m")])
    assert isinstance(foreign.exception, InvalidModel)
