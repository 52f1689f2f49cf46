"""The phases of `petavoxel segment` as commands: together they are it, and a threshold needs no prediction."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from infra.cluster import cluster
from infra.volumes import open_volume
from models.catalog import Model
from models.errors import InvalidInput, NotFound
from services.cli.main import app
from services.pipelines.preparation import opened_run
from services.pipelines.segment import PHASES, predict_stages
from services.pipelines.stage import Stage, Summary, placement, run_stage

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
CHUNK = "16,24,20"


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with cluster():
        yield


def petavoxel(*arguments: str) -> Result:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def contents(out: Path) -> dict[str, bytes]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    named = {str(path.relative_to(out)): path.read_bytes() for path in files}
    return {name: content for name, content in named.items() if not name.startswith("progress/")}


def computed(out: Path) -> dict[str, int]:
    stages = json.loads((out / "progress" / "summary.json").read_text())["stages"]
    return {stage["stage"]: stage["computed"] for stage in stages}


@pytest.fixture(scope="module")
def in_phases(image: str, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phases") / "out"
    petavoxel("predict", image, str(out), "--model", str(model.folder), "--chunk", CHUNK)
    with pytest.raises(InvalidInput, match="agglomerate needs watershed"):
        petavoxel("agglomerate", str(out))
    petavoxel("watershed", str(out), "--high", "0.8")
    petavoxel("agglomerate", str(out), "--threshold", "0.45", "--basin-voxels", "5")
    petavoxel("relabel", str(out))
    return out


def test_phases_leave_what_segment_leaves(in_phases: Path, image: str, model: Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    petavoxel("segment", image, str(out), "--model", str(model.folder), "--chunk", CHUNK, "--threshold", "0.45")
    petavoxel("watershed", str(out), "--high", "0.8")
    petavoxel("agglomerate", str(out), "--basin-voxels", "5")
    petavoxel("relabel", str(out))
    first, second = contents(in_phases), contents(out)
    assert not any(name.startswith("work/") for name in first)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_another_threshold_needs_only_the_cut(in_phases: Path, image: str, model: Model, tmp_path: Path) -> None:
    before = open_volume(str(in_phases / "segmentation.zarr"))
    old = before.read(before.box)
    merges = {name: body for name, body in contents(in_phases).items() if name.startswith("agglomeration/merges/")}
    petavoxel("agglomerate", str(in_phases), "--threshold", "0.6")
    done = computed(in_phases)
    assert {name for name, count in done.items() if count} == {name for name in done if name.startswith("cut")}
    petavoxel("relabel", str(in_phases))
    after = open_volume(str(in_phases / "segmentation.zarr"))
    new = after.read(after.box)
    assert len(np.unique(new)) > len(np.unique(old))
    assert merges == {name: contents(in_phases)[name] for name in merges}
    petavoxel("agglomerate", str(in_phases), "--threshold", "0.45")
    petavoxel("relabel", str(in_phases))
    again = open_volume(str(in_phases / "segmentation.zarr"))
    np.testing.assert_array_equal(again.read(again.box), old)


class Interrupted(Exception):
    """The end of a process, without the process."""


@pytest.mark.parametrize(
    ("phase", "other", "back"),
    [
        ("watershed", ("--high", "0.9"), ("--high", "0.8")),
        ("agglomerate", ("--basin-voxels", "9"), ("--basin-voxels", "5")),
    ],
)
def test_other_options_that_were_interrupted_and_taken_back(
    phase: str, other: tuple[str, str], back: tuple[str, str], in_phases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = list(PHASES)[list(PHASES).index(phase) + 1 :]
    before = contents(in_phases)

    def interrupted(stage: Stage, summary: Summary) -> None:
        run_stage(stage, summary)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("services.pipelines.segment.run_stage", interrupted)
        with pytest.raises(Interrupted):
            petavoxel(phase, str(in_phases), *other)
    with pytest.raises(InvalidInput, match=f"{later[0]} needs {phase}"):
        petavoxel(later[0], str(in_phases))
    petavoxel(phase, str(in_phases), *back)
    for following in later:
        petavoxel(following, str(in_phases))
    after = contents(in_phases)
    assert [name for name in before | after if before.get(name) != after.get(name)] == []


def test_a_cluster_that_grows_is_told_how_far(in_phases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened_run(str(in_phases))
    stages = [stage for phase in PHASES for stage in PHASES[phase](run)]
    assert {stage.ledger.stage: placement(stage).workers for stage in stages}["watershed"] == (os.cpu_count() or 1)
    monkeypatch.setenv("PETAVOXEL_CLUSTER_CPUS", "65")
    monkeypatch.setenv("PETAVOXEL_CLUSTER_GPUS", "4")
    grown = {stage.ledger.stage: placement(stage) for stage in stages}
    assert (grown["watershed"].workers, grown["watershed"].gpus) == (64, 0)
    assert (grown["predict"].workers, grown["predict"].gpus) == (64 // run.threads, 0)
    (predicted,) = predict_stages(replace(run, engine=replace(run.engine, gpu=True)))
    assert (placement(predicted).workers, placement(predicted).gpus) == (4, 1)


def test_a_phase_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"run\.json"):
        petavoxel("relabel", str(tmp_path))
