"""`petavoxel train` on a small volume: a checkpoint, logs, going on, and mistakes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from sheets import write_sheets
from typer.testing import CliRunner

from models.errors import InvalidConfig, InvalidVolume, PetavoxelError
from models.training.loop import read_checkpoint
from models.training.targets import BACKGROUND, SOME_OBJECT
from services.cli.train import train as command
from services.training import TrainConfig

pytestmark = pytest.mark.timeout(300)

CONFIG = """
name: small
voxel_size_nm: [10, 10, 10]
train: [{image: "data.npz:raw", labels: "data.npz:labels", box: "0:24,0:30,0:30"}]
validation: [{image: "data.npz:raw", labels: "data.npz:labels", box: "24:40,0:30,0:30"}]
network: {family: rsunet, preset: isotropic, widths: [4, 6]}
patch: [16, 16, 16]
seed: 3
augmentation: {noise: 0.02}
loop: {steps: 4, batch_size: 1, warmup_steps: 2, validate_every: 2, checkpoint_every: 2, precision: fp32}
"""


@dataclass
class Done:
    """What a command left behind: its exit code and the line that names a mistake."""

    returncode: int
    stderr: str


def train(folder: Path, config: str, out: str = "run", *more: str) -> Done:
    """The command in this process."""
    (folder / "config.yaml").write_text(config)
    arguments = [str(folder / "config.yaml"), str(folder / out), "--data", str(folder), "--threads", "1", *more]
    app = typer.Typer()
    app.command()(command)
    try:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    except PetavoxelError as error:  # what the command line prints in one line
        return Done(error.exit_code, " ".join(str(error).split()))
    return Done(result.exit_code, result.output)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_sheets(tmp_path / "data.npz")
    return tmp_path


def test_a_longer_run_goes_on_and_ends_as_if_never_stopped(data: Path) -> None:
    done = train(data, CONFIG)
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(data / "run" / "last.pt")["step"] == 4
    assert list((data / "run" / "logs").glob("events.*"))
    constant = CONFIG.replace("warmup_steps: 2", "warmup_steps: 2, cooldown_fraction: 0.0")
    for out, steps in (("long", 6), ("parts", 2), ("parts", 6)):
        done = train(data, constant.replace("steps: 4", f"steps: {steps}"), out)
        assert done.returncode == 0, done.stderr
        stored = yaml.safe_load((data / out / "config.yaml").read_text())
        del stored["boundary_target"]  # as if the run had begun before there was this key, which has its default
        (data / out / "config.yaml").write_text(yaml.safe_dump(stored))
    long, parts = (read_checkpoint(data / out / "last.pt") for out in ("long", "parts"))
    assert long["step"] == parts["step"] == 6
    for name, value in long["state"].items():
        assert value.numpy().tobytes() == parts["state"][name].numpy().tobytes(), name


def test_a_second_run_begins_with_the_weights_of_the_first_under_a_mask_and_keeps_its_best(data: Path) -> None:
    assert train(data, CONFIG, "first").returncode == 0
    mask = np.ones((40, 30, 30), np.uint8)
    mask[:, 15:] = 0
    np.save(data / "mask.npy", mask)
    config = CONFIG.replace('data.npz:labels", box: "0:24', 'data.npz:labels", mask: "mask.npy", box: "0:24')
    config += "initial_weights: first/last.pt\n"
    done = train(data, config, "second")
    assert done.returncode == 0, done.stderr
    last, best = (read_checkpoint(data / "second" / name) for name in ("last.pt", "best.pt"))
    digest = hashlib.sha256((data / "first" / "last.pt").read_bytes()).hexdigest()
    assert last["provenance"]["initial_weights_sha256"] == digest
    assert {"voi", "adapted_rand_error", "threshold", "loss"} <= {*best["provenance"]["validation"]}
    (data / "first" / "last.pt").unlink()  # going on needs the run's own checkpoint alone
    done = train(data, config.replace("steps: 4", "steps: 5"), "second")
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(data / "second" / "last.pt")["provenance"]["initial_weights_sha256"] == digest
    done = train(data, config, "third")
    assert (done.returncode, "last.pt" in done.stderr.strip().splitlines()[-1]) == (2, True), done.stderr
    assert not (data / "third").exists()


def test_background_is_known_to_be_no_object_where_the_mask_allows(data: Path) -> None:
    """Membranes that are annotated as such count as cut; labels and the mask go first."""
    labels = np.zeros((4, 3, 4), np.uint64)
    labels[..., 0] = 2**40
    membrane = np.ones(labels.shape, bool)
    membrane[..., 3] = False
    mask = np.ones(labels.shape, np.uint8)
    mask[0] = 0
    np.savez(data / "truth.npz", raw=np.zeros(labels.shape, np.uint8), labels=labels, membrane=membrane, mask=mask)
    parts = {"image": "raw", "labels": "labels", "background": "membrane", "mask": "mask"}
    volume = ", ".join(f'{role}: "truth.npz:{name}"' for role, name in parts.items())
    lines = [f"train: [{{{volume}}}]" if line.startswith("train:") else line for line in CONFIG.splitlines()]
    (data / "background.yaml").write_text("\n".join(lines))
    config = TrainConfig.read(data / "background.yaml")
    (loaded,) = config.model_copy(update={"validation": config.train}).validation_volumes(data)
    np.testing.assert_array_equal(loaded.labels[1:], np.broadcast_to([2**40, -1, -1, 0], (3, 3, 4)))
    assert not loaded.labels[0].any()
    np.savez(data / "truth.npz", raw=np.zeros(labels.shape, np.uint8), labels=labels, membrane=membrane[1:], mask=mask)
    with pytest.raises(InvalidVolume, match="shape"):
        config.model_copy(update={"validation": config.train}).validation_volumes(data)


def test_sections_annotated_for_membranes_alone_train_along(data: Path) -> None:
    with np.load(data / "data.npz") as held:
        np.savez(data / "membranes.npz", raw=held["raw"], membrane=held["raw"] == 50)
    (train_line,) = (line for line in CONFIG.splitlines() if line.startswith("train:"))
    membranes = '{image: "membranes.npz:raw", background: "membranes.npz:membrane", weight: 0.5}'
    both = CONFIG.replace(train_line, train_line.rstrip("]") + f", {membranes}]")
    (data / "both.yaml").write_text(both)
    with pytest.raises(InvalidConfig, match="a volume without labels is of sections"):
        TrainConfig.read(data / "both.yaml")
    both = both.replace("{noise: 0.02}", "{isotropic: false, noise: 0.02}")
    (data / "both.yaml").write_text(both)
    volumes = TrainConfig.read(data / "both.yaml").trainer(data).sampler.volumes
    assert [volume.weight for volume in volumes] == [1, 0.5]
    assert set(np.unique(volumes[1].labels)) == {BACKGROUND, SOME_OBJECT}
    done = train(data, both, "both")
    assert done.returncode == 0, done.stderr
    for wrong, message in (
        ('{image: "membranes.npz:raw"}', "expected labels, or the background"),
        (membranes.replace("0.5", "0"), "greater than 0"),
    ):
        (data / "wrong.yaml").write_text(both.replace(membranes, wrong))
        with pytest.raises(InvalidConfig, match=message):
            TrainConfig.read(data / "wrong.yaml")


def test_preview_draws_the_augmentations_and_does_not_train(data: Path) -> None:
    done = train(data, CONFIG, "none", "--preview", str(data / "sheet.png"))
    assert done.returncode == 0, done.stderr
    with Image.open(data / "sheet.png") as sheet:
        assert sheet.size[1] > 10 * 2 * 16
    assert not (data / "none").exists()


def test_mistakes_end_in_one_line(data: Path) -> None:
    cases = [
        (2, "wdths", CONFIG.replace("widths", "wdths")),
        (2, "unknown keys stps", CONFIG.replace("steps: 4", "stps: 4")),
        (2, "probabilities", CONFIG.replace("noise: 0.02", "blur_probability: 3")),
        (2, "not YAML", "a: [1"),
        (3, "missing.npz", CONFIG.replace("data.npz:raw", "missing.npz:raw")),
        (2, "patch", CONFIG.replace("[16, 16, 16]", "[16, 16, 24]")),
        (2, "boundary_target", CONFIG + "boundary_target: 0.7\n"),
        (2, "schedule", CONFIG.replace("steps: 4", "steps: 4, schedule: linear")),
        (2, "at least", CONFIG.replace("[16, 16, 16]", "[64, 64, 64]")),
    ]
    for code, text, config in cases:
        done = train(data, config, "bad")
        last = done.stderr.strip().splitlines()[-1]
        assert "Traceback" not in done.stderr, done.stderr
        assert (done.returncode, text in last) == (code, True), last
    train(data, CONFIG)
    other = train(data, CONFIG.replace("seed: 3", "seed: 4"))
    assert other.returncode == 6
    assert "seed" in other.stderr
