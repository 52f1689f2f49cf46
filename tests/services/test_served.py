"""Predictions by the handle of running endpoints are those of the pipeline's own workers, whatever dies meanwhile."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from pipeline_runs import run_phase_in_process

from infra.objects import Folder
from infra.volumes import VolumeInfo, create_volume
from models.catalog import CARD_NAME, Model
from models.errors import InvalidModel, RuntimeUnavailable
from models.geometry import Triple
from services.endpoints.config import ServeConfig
from services.pipelines.preparation import Request, check, opened_run, prepare
from services.pipelines.segment import begin_phase, run_phase
from services.pipelines.stage import Summary, placement
from services.run import Engine, Run, SegmentOptions

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]
APP = "petavoxel"


@pytest.fixture(scope="module", autouse=True)
def endpoints(model: Model) -> Iterator[None]:
    """The small model, served by one replica with one thread, on an embedded Ray."""
    from services.endpoints.running import serving  # Serve's import warns, which at collection is an error

    with serving(ServeConfig(models=(str(model.folder),), port=0, threads=1, startup_timeout_s=600)):
        yield


@pytest.fixture
def image(tmp_path: Path) -> str:
    shape = (24, 40, 34)
    url = str(tmp_path / "noise.zarr")
    with create_volume(url, VolumeInfo(shape=shape, dtype=np.dtype("uint8"), voxel_size_nm=(10, 10, 10))) as volume:
        volume.write(volume.box, np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))
    return url


def asked(image: str, out: Path, model: Model, chunk: Triple = (20, 20, 20), **options: object) -> Request:
    wanted = SegmentOptions.model_validate(options)
    return Request(image, str(out), str(model.folder), wanted, chunk=chunk, endpoints=APP)


def predicted_here(by_endpoints: Request, out: Path) -> Run:
    run = prepare(check(replace(by_endpoints, out=str(out), endpoints=None)))
    run_phase_in_process(run, "predict")
    return run


def voxels(run: Run) -> dict[str, bytes]:
    below = Path(run.out) / "affinities.zarr"
    return {str(path.relative_to(below)): path.read_bytes() for path in sorted(below.rglob("*")) if path.is_file()}


def replica() -> psutil.Process:
    """The replica that serves: the newest, where one that other tests had is still ending."""
    processes = psutil.Process().children(recursive=True)
    found = [each for each in processes if f"ServeReplica:{APP}:Models" in " ".join(each.cmdline())]
    return max(found, key=psutil.Process.create_time)


@pytest.mark.parametrize("augment", [False, True])
def test_the_bytes_are_those_of_own_workers(image: str, model: Model, tmp_path: Path, augment: bool) -> None:
    request = asked(image, tmp_path / "out", model, augment=augment)
    run = prepare(check(request))
    assert run.endpoints == APP
    run_phase(run, "predict", Summary())
    own = predicted_here(request, tmp_path / "own")
    assert run.engine.same(own.engine)
    assert run.keys == own.keys
    assert voxels(run) == voxels(own)
    assert opened_run(run.out).endpoints is None


def test_a_replica_is_killed(image: str, model: Model, tmp_path: Path) -> None:
    request = asked(image, tmp_path / "out", model, chunk=(8, 8, 8))
    run, victim, killed = prepare(check(request)), replica(), threading.Event()

    def kill() -> None:
        while len(Folder(run.out).names("progress/predict")) < 5:
            time.sleep(0.01)
        victim.send_signal(signal.SIGKILL)
        killed.set()

    threading.Thread(target=kill, daemon=True).start()
    run_phase(run, "predict", Summary())
    assert killed.is_set()
    assert replica().pid != victim.pid
    assert voxels(run) == voxels(predicted_here(request, tmp_path / "own"))


def test_workers_beside_endpoints_are_light(image: str, model: Model, tmp_path: Path) -> None:
    (stage,) = begin_phase(prepare(check(asked(image, tmp_path / "out", model))), "predict")
    placed = placement(stage)
    assert (placed.workers, placed.cpus, placed.gpus) == (2, 0.5, 0)


def test_another_model_is_refused(image: str, model: Model, tmp_path: Path) -> None:
    content = model.onnx_path.read_bytes() + b"\0"
    file = replace(model.card.file, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    for name in (model.card.name, "unknown"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / file.name).write_bytes(content)
        (folder / CARD_NAME).write_text(replace(model.card, name=name, file=file).to_json())
        request = replace(asked(image, tmp_path / "out", model), model=str(folder))
        with pytest.raises(InvalidModel, match="they serve" if name != "unknown" else "this server has"):
            prepare(check(request))
    assert not (tmp_path / "out" / "run.json").exists()


def test_another_engine_is_refused(image: str, model: Model, tmp_path: Path) -> None:
    from services.served import ServedModel

    with pytest.raises(RuntimeUnavailable, match="expected torch in auto, they have OpenVINO"):
        prepare(check(asked(image, tmp_path / "out", model, runtime="torch")))
    served = ServedModel.find(APP, model.card, Engine("openvino", "fp32", "OpenVINO 1.2.3", False))
    with pytest.raises(RuntimeUnavailable, match="come from OpenVINO 1"):
        served.asked_engine()


def test_endpoints_that_are_not_there(image: str, model: Model, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="endpoints nothing: no such application"):
        prepare(check(replace(asked(image, tmp_path / "out", model), endpoints="nothing")))


def test_endpoints_that_do_not_answer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.served import ServedModel

    monkeypatch.setenv("PETAVOXEL_STALL_S", "1")
    served = ServedModel.find(APP, model.card)
    os.kill(replica().pid, signal.SIGSTOP)
    try:
        with pytest.raises(RuntimeUnavailable, match="no answer within 1 s"):
            served.asked_engine()
    finally:
        os.kill(replica().pid, signal.SIGCONT)
    assert served.asked_engine().runtime == "openvino"
