"""Options that are changed, refused, interrupted and taken back, without Ray: what is stored is what the run says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_runs import OPTIONS, given_affinities
from typer.testing import CliRunner

from infra.chunk_map import Done, Placement
from infra.objects import Folder
from models.catalog import Model
from models.errors import InvalidInput, RunConflict, RuntimeUnavailable
from models.geometry import Chunk
from services.cli.main import app
from services.pipelines.preparation import changed_run, opened_run
from services.pipelines.segment import PHASES, create_arrays, run_phase, run_stage
from services.pipelines.stage import Summary
from services.run import Run
from services.stages.skeletonize import SkeletonOptions
from services.status import run_status
from services.verify import verify

SHAPE, CHUNK = (30, 44, 37), (16, 24, 20)
TRACED = SkeletonOptions(dust_voxels=50, const_nm=20, chunk_voxels=(8, 8, 8))
"""Of 18 chunks on the level of 20 nm, so that fragments go through a pass."""
OTHER = TRACED.model_copy(update={"const_nm": 30})


class Interrupted(Exception):
    """The end of a process, without the process."""


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are computed in this process."""

    def here(chunks: Any, make: Callable[..., Any], arguments: tuple[Any, ...], placed: Placement) -> Iterator[Done]:
        waiting: list[Chunk] = list(chunks)
        apply = make(*arguments) if waiting else None
        for chunk in waiting:
            yield Done(chunk, apply(chunk))

    class Uncounted:
        def __init__(self, stage: str) -> None: ...

        def done(self, voxels: int, report: Any) -> None: ...

    monkeypatch.setattr("services.pipelines.stage.map_chunks", here)
    monkeypatch.setattr("services.pipelines.stage.placement", lambda stage: Placement(workers=1))
    monkeypatch.setattr("services.pipelines.stage.StageCounters", Uncounted)
    monkeypatch.setattr("infra.cluster.cluster", lambda address: nullcontext())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run on affinities of 2 × 3 × 3 blocks."""
    options = OPTIONS.model_copy(update={"skeletons": TRACED})
    run = given_affinities(SHAPE, options, CHUNK, str(tmp_path / "out"))
    blocks = np.ravel_multi_index(tuple(np.indices(SHAPE) // 16), (2, 3, 3))
    affinities = np.stack([np.where(blocks == np.roll(blocks, 1, axis), 250, 0) for axis in range(3)])
    create_arrays(run, "predict")
    with run.volume("affinities.zarr", writable=True) as volume:
        volume.write(volume.box, affinities.astype(np.uint8))
    run.folder.write_json("run.json", {})
    run.folder.write_json("progress/phases/predict.json", {"key": run.phase_key("predict")})
    for phase in list(PHASES)[1:]:
        run_phase(run, phase, Summary())
    return run


def with_skeletons(run: Run, skeletons: SkeletonOptions | None) -> Run:
    return changed_run(run, run.options.model_copy(update={"skeletons": skeletons}))


def relabelled(run: Run) -> dict[str, int]:
    """Chunks computed per stage of skeletons."""
    summary = Summary()
    run_phase(run, "relabel", summary)
    return {stage.stage: stage.computed for stage in summary.stages if stage.stage.startswith("skelet")}


def skeletons_in(run: Run) -> dict[str, bytes]:
    below = Path(run.out) / "skeletons"
    return {str(path.relative_to(below)): path.read_bytes() for path in below.rglob("*") if path.is_file()}


@contextmanager
def interrupted(name: str, function: Callable[..., Any]) -> Iterator[None]:
    """The block ends where the function of this name does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(name, function)
        with pytest.raises(Interrupted):
            yield


def test_skeletons_that_were_given_up_are_traced_again(run: Run) -> None:
    traced = skeletons_in(run)
    assert any(name.endswith(".swc") for name in traced)
    assert relabelled(with_skeletons(run, None)) == {}
    assert skeletons_in(run) == {}
    assert verify(run.out).damages == []
    assert {stage.state for stage in run_status(run.out).stages if stage.stage != "predict"} == {"done"}
    assert not any(stage.stage.startswith("skelet") for stage in run_status(run.out).stages)
    again = relabelled(run)
    assert {"skeletonize", "skeletons_pass_1", "skeletons"} <= again.keys() & {
        s.stage for s in run_status(run.out).stages
    }
    assert all(again.values())
    assert skeletons_in(run) == traced
    assert verify(run.out).damages == []


def test_other_skeletons_that_were_interrupted_and_taken_back(run: Run) -> None:
    traced = skeletons_in(run)
    run.folder.remove("progress/phases/relabel.json")  # the phase had been interrupted already, after its last chunk

    def to_the_tracing(stage: Any, summary: Summary) -> None:
        run_stage(stage, summary)
        if stage.ledger.stage == "skeletonize":
            raise Interrupted

    with interrupted("services.pipelines.segment.run_stage", to_the_tracing):
        relabelled(with_skeletons(run, OTHER))
    assert all(relabelled(run).values())
    assert skeletons_in(run) == traced
    assert verify(run.out).damages == []


@pytest.mark.parametrize("at", ["progress/skeletons_pass_1", "skeletons"])
def test_skeletons_whose_removal_was_interrupted(run: Run, at: str) -> None:
    traced, remove = skeletons_in(run), Folder.remove

    def half(folder: Folder, name: str) -> None:
        remove(folder, "skeletons/segments" if name == "skeletons" else name)
        if name == at:
            raise Interrupted

    with interrupted("infra.objects.Folder.remove", half):
        relabelled(with_skeletons(run, OTHER))
    assert all(relabelled(run).values())
    assert skeletons_in(run) == traced


def petavoxel(*arguments: str) -> None:
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output


@pytest.fixture
def predicting(image: str, model: Model, tmp_path: Path) -> tuple[str, ...]:
    """The command of a prediction that has been interrupted after its first chunk; the output prefix comes third."""
    command = ("predict", image, str(tmp_path / "out"), "--model", str(model.folder), "--chunk", "16,24,20")

    def first(stage: Any, summary: Summary) -> None:
        stage.make(*stage.arguments)(stage.chunks[0])
        raise Interrupted

    with interrupted("services.pipelines.segment.run_stage", first):
        petavoxel(*command)
    return command


def test_a_phase_that_is_refused_changes_nothing(predicting: tuple[str, ...]) -> None:
    out = predicting[2]
    before = (Path(out) / "run.json").read_bytes()
    for phase in (("watershed", out, "--high", "0.9"), ("relabel", out, "--no-skeletons")):
        with pytest.raises(InvalidInput, match=f"{phase[0]} needs predict"):
            petavoxel(*phase)
        assert (Path(out) / "run.json").read_bytes() == before
    petavoxel(*predicting)
    petavoxel("watershed", out, "--high", "0.9")
    assert opened_run(out).options.watershed.high == 0.9


def test_a_cluster_that_is_not_there_changes_nothing(
    predicting: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = predicting[2]
    petavoxel(*predicting)
    before = (Path(out) / "run.json").read_bytes()

    @contextmanager
    def nowhere(address: str | None) -> Iterator[None]:
        raise RuntimeUnavailable(f"Ray {address}")
        yield

    monkeypatch.setattr("infra.cluster.cluster", nowhere)
    with pytest.raises(RuntimeUnavailable, match=r"127\.0\.0\.1:1"):
        petavoxel("watershed", out, "--high", "0.9", "--address", "127.0.0.1:1")
    assert (Path(out) / "run.json").read_bytes() == before


def test_predictions_go_on_whatever_comes_after_them(predicting: tuple[str, ...]) -> None:
    out = Path(predicting[2])
    petavoxel(*predicting)
    petavoxel("watershed", str(out), "--high", "0.9")
    before = (out / "run.json").read_bytes()
    (missing,) = (path for path in (out / "progress" / "predict").glob("0_0_0.*.json"))
    missing.unlink()
    (out / "progress" / "phases" / "predict.json").unlink()
    with pytest.raises(InvalidInput, match="agglomerate needs predict"):
        petavoxel("agglomerate", str(out))
    petavoxel(*predicting)
    assert missing.exists()
    assert (out / "run.json").read_bytes() == before
    petavoxel("agglomerate", str(out))
    with pytest.raises(RunConflict, match=r"different: .*chunk_shape"):
        petavoxel(*predicting[:-1], "16,24,24")
