"""What computes predictions is decided where the workers are, kept to the end of a run, and never mixed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray_nodes import ENVIRONMENT, RayNodes

from infra.chunk_map import ChunkFunction, Done, map_chunks
from infra.cluster import cluster
from infra.ledger import Ledger
from infra.objects import Folder
from infra.runtimes import tensorrt_modules
from infra.runtimes.session import open_session
from infra.volumes import VolumeInfo, create_volume
from models.catalog import Model
from models.errors import RunConflict, RuntimeUnavailable, StorageFailed
from models.geometry import Box, ChunkGrid
from services.engine import Wanted, check_engine, engine_of, find_engine, look
from services.pipelines.preparation import Request, check, opened_run, prepare
from services.pipelines.segment import predict_stages
from services.pipelines.stage import Stage, inference_threads, placement
from services.run import Engine, SegmentOptions
from services.stages.predict import predict

SHAPE = (16, 20, 24)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("image") / "noise.zarr")
    with create_volume(url, VolumeInfo(shape=SHAPE, dtype=np.dtype("uint8"), voxel_size_nm=(10, 10, 10))) as volume:
        volume.write(volume.box, np.random.default_rng(1).integers(0, 256, SHAPE, dtype=np.uint8))
    return url


def asked(image: str, out: Path, model: Model, **options: str) -> Request:
    return Request(image, str(out), str(model.folder), SegmentOptions.model_validate(options))


def change_engine(out: Path, **changes: str) -> Engine:
    """Pretend that the run was begun with something else."""
    folder = Folder(str(out))
    held = folder.read_json("run.json")
    folder.write_json("run.json", {**held, "engine": {**held["engine"], **changes}})
    return opened_run(str(out)).engine


def test_the_plan_keeps_what_was_asked_for_and_what_it_became(image: str, model: Model, tmp_path: Path) -> None:
    run = prepare(check(asked(image, tmp_path, model)))
    session = open_session(model)
    assert (run.options.runtime, run.options.precision) == ("auto", "auto")
    assert run.engine == engine_of("openvino", session)
    assert run.engine.precision == session.precision
    assert not run.engine.gpu
    assert opened_run(str(tmp_path)).engine == run.engine
    assert run.made_from("predict")["engine"] == session.engine
    named = prepare(check(asked(image, tmp_path, model, runtime="openvino", precision=session.precision)))
    assert named.keys == run.keys


def test_engines_have_keys_of_their_own(image: str, model: Model, tmp_path: Path) -> None:
    keys = {
        (runtime, precision): prepare(
            check(asked(image, tmp_path / f"{runtime}{precision}", model, runtime=runtime, precision=precision))
        ).keys["predict"]
        for runtime, precision in (("openvino", "fp32"), ("torch", "fp32"), ("torch", "bf16"))
    }
    assert len(set(keys.values())) == 3


def test_a_run_goes_on_with_what_it_was_begun_with(image: str, model: Model, tmp_path: Path) -> None:
    begun = prepare(check(asked(image, tmp_path, model, runtime="torch")))
    assert begun.engine.runtime == "torch"
    with pytest.raises(RunConflict, match=r"different: .*engine"):
        prepare(check(asked(image, tmp_path, model, runtime="openvino")))
    assert prepare(check(asked(image, tmp_path, model, runtime="torch", precision="fp32"))).keys == begun.keys
    resumed = prepare(check(asked(image, tmp_path, model, runtime="auto")))
    assert resumed.engine == begun.engine
    assert resumed.keys == begun.keys


def test_a_run_begun_elsewhere_is_refused_until_its_predictions_are_there(
    image: str, model: Model, tmp_path: Path
) -> None:
    run = prepare(check(asked(image, tmp_path, model)))
    change_engine(tmp_path, name="OpenVINO 1.2.3")
    with pytest.raises(RunConflict, match=r"begun with OpenVINO 1\.2\.3, .*, the workers have OpenVINO 20"):
        prepare(check(asked(image, tmp_path, model)))
    change_engine(tmp_path, runtime="tensorrt", name="tensorrt 10 on NVIDIA L4", precision="fp16")
    if not tensorrt_modules.usable():
        with pytest.raises(RunConflict, match="begun with tensorrt 10 on NVIDIA L4, fp16; "):
            prepare(check(asked(image, tmp_path, model)))
    held = run.folder.read_json("run.json")
    for damage in ({"engine": {"runtime": "x"}}, {"engine": "torch"}, {"keys": {}}):
        run.folder.write_json("run.json", {**held, **damage})
        with pytest.raises(StorageFailed, match=r"run\.json: expected the description of a segmentation"):
            prepare(check(asked(image, tmp_path, model)))
    run.folder.write_json("run.json", held)
    run.folder.write_json("progress/phases/predict.json", {"key": run.keys["predict"]})
    change_engine(tmp_path, **{name: str(getattr(run.engine, name)) for name in ("runtime", "name", "precision")})
    assert prepare(check(asked(image, tmp_path, model))).keys == run.keys


def test_a_worker_with_something_else_refuses_its_chunks(image: str, model: Model, tmp_path: Path) -> None:
    run = prepare(check(asked(image, tmp_path, model, precision="fp32")))
    check_engine(run.engine, open_session(model, precision="fp32"))
    change_engine(tmp_path, name="OpenVINO 1.2.3")
    with pytest.raises(RuntimeUnavailable, match=r"come from OpenVINO 1\.2\.3, fp32, this worker has OpenVINO 20"):
        predict(opened_run(str(tmp_path)))


@pytest.fixture(scope="module")
def grown() -> Iterator[str]:
    """A cluster with a head of 2 processors and a node of 2 processors and one GPU, which has no card behind it.

    Yields the id of that node.
    """
    with pytest.MonkeyPatch.context() as environment, RayNodes(2) as nodes:
        for name, value in ENVIRONMENT.items():
            environment.setenv(name, value)
        nodes.add(2, gpus=1)
        with cluster(nodes.address):
            yield registered_gpu_node()


def registered_gpu_node() -> str:
    give_up = time.monotonic() + 150
    while time.monotonic() < give_up:  # its process is there before the cluster knows of it
        for node in ray.nodes():
            if "GPU" in node["Resources"]:
                return str(node["NodeID"])
        time.sleep(0.5)
    raise AssertionError("the node with a GPU did not register")


OWN_PROCESS = "PETAVOXEL_TEST_OWN_PROCESS"
"""A process keeps the authentication mode of the first Ray that it joins; the other tests' Rays have another one."""


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_on_a_cluster_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::TestOnACluster"]
    done = subprocess.run(
        command,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("RAY_")}, OWN_PROCESS: "1"},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(OWN_PROCESS not in os.environ, reason="runs in a process of its own")
class TestOnACluster:
    """Selection and placement; that TensorRT itself runs is the business of tests/gpu."""

    def test_a_worker_on_the_gpu_is_asked(self, grown: str, model: Model) -> None:
        if tensorrt_modules.usable():
            pytest.skip("here is a real GPU")
        with pytest.raises(RuntimeUnavailable, match="gave this worker a GPU, but no runtime finds one"):
            find_engine(Wanted(str(model.folder), "auto", "auto", 2))
        with pytest.raises(RuntimeUnavailable, match=r"TensorRT|CUDA|driver|GPU"):
            find_engine(Wanted(str(model.folder), "tensorrt", "auto", 2))

    def test_processors_where_openvino_is_asked_for(self, grown: str, model: Model) -> None:
        assert find_engine(Wanted(str(model.folder), "openvino", "fp32", 2)) == look(
            Wanted(str(model.folder), "openvino", "fp32", 2)
        )

    def test_a_gpu_that_never_comes(self, grown: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PETAVOXEL_STALL_S", "3")
        blocked = ray.remote(hold).options(num_gpus=1).remote()
        wait_until(lambda: not ray.available_resources().get("GPU"))
        with pytest.raises(RuntimeUnavailable, match="no worker with 1 GPU within 3 s"):
            find_engine(Wanted(str(model.folder), "auto", "auto", 2))
        ray.cancel(blocked, force=True)
        wait_until(lambda: bool(ray.available_resources().get("GPU")))

    def test_a_cluster_without_gpus(self, grown: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PETAVOXEL_CLUSTER_GPUS", "0")
        assert find_engine(Wanted(str(model.folder), "auto", "fp32", 2)).runtime == "openvino"
        with pytest.raises(RuntimeUnavailable, match="the cluster has no GPU"):
            find_engine(Wanted(str(model.folder), "tensorrt", "auto", 2))

    def test_stages_are_placed_by_the_engine(self, grown: str, image: str, model: Model, tmp_path: Path) -> None:
        run = prepare(check(asked(image, tmp_path, model, runtime="openvino")))
        (stage,) = predict_stages(run)
        assert inference_threads() == 2
        assert (placement(stage).cpus, placement(stage).gpus, placement(stage).workers) == (2, 0, 2), "one on each node"
        gpu = Stage(Ledger(run.folder, "x", "k"), ChunkGrid(Box((0, 0, 0), (6, 1, 1)), (1, 1, 1)), where, (), "a GPU")
        events = list(map_chunks(gpu.chunks, gpu.make, (), placement(gpu)))
        seen = [event.report for event in events if isinstance(event, Done)]
        assert {report["node"] for report in seen} == {grown}
        assert {report["gpus"] for report in seen} == {1}
        assert len(seen) == 6


def wait_until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not true() and time.monotonic() < give_up:
        time.sleep(0.2)


def hold() -> None:
    time.sleep(60)


def where() -> ChunkFunction:
    """Says on which node a chunk is done, and how many GPUs its worker was given."""
    return lambda _: {"node": ray.get_runtime_context().get_node_id(), "gpus": len(ray.get_gpu_ids())}
