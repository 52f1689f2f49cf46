"""`petavoxel segment` as a user runs it: a real command, a real Ray, real faults."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from infra.volumes import VolumeInfo, create_volume, open_volume
from models.catalog import Model

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
CHUNK = "16,24,20"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "services.cli", *arguments]


def petavoxel(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, check=False)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a user's mistake ends with."""
    last = done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr, done.stderr
    assert last.startswith("petavoxel: "), done.stderr
    return last


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a run that must not depend on its history; ledgers hold times."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    named = {str(path.relative_to(out)): path.read_bytes() for path in files}
    return {name: content for name, content in named.items() if "progress/" not in name}


@pytest.fixture(scope="module")
def arguments(image: str, model: Model) -> list[str]:
    return ["--model", str(model.folder), "--chunk", CHUNK, "--threshold", "0.45"]


@pytest.fixture(scope="module")
def finished(image: str, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    done = petavoxel("segment", image, str(out), *arguments)
    assert done.returncode == 0, done.stderr
    return out


def test_output_is_complete_and_open_to_others(finished: Path, image: str) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert run["voxel_size_nm"] == [10, 10, 10]
    assert run["model"]["sha256"]
    assert run["options"]["precision"] == "auto"
    assert run["engine"]["precision"] in ("bf16", "fp32")
    names = {path.name for path in finished.iterdir()}
    expected = {"run.json", "affinities.zarr", "supervoxels.zarr", "segmentation.zarr", "region_graph", "agglomeration"}
    assert expected | {"skeletons", "progress"} == names
    segmentation = open_volume(str(finished / "segmentation.zarr"))
    assert segmentation.info.shape == open_volume(image).info.shape
    assert segmentation.info.attributes["model_sha256"] == run["model"]["sha256"]
    assert (finished / "skeletons" / "precomputed" / "info").exists()


def test_a_finished_run_is_left_alone(finished: Path, image: str, arguments: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    done = petavoxel("segment", image, str(finished), *arguments)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("stage", ["predict", "watershed", "relabel"])
def test_a_killed_run_goes_on_to_the_same_bytes(
    stage: str, finished: Path, image: str, arguments: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command("segment", image, str(out), *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    marker, give_up = out / "progress" / stage, time.monotonic() + 200
    while not (marker.is_dir() and any(marker.iterdir())):
        assert process.poll() is None
        assert time.monotonic() < give_up, "the stage never began"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    assert not (out / "progress" / "complete.json").exists()
    done = petavoxel("segment", image, str(out), *arguments)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(finished)


def test_another_run_in_the_prefix_is_refused(finished: Path, image: str, arguments: list[str]) -> None:
    done = petavoxel("segment", image, str(finished), *arguments[:-1], "0.7")
    assert done.returncode == 6
    assert "options" in refusal(done)


def test_a_damaged_chunk_is_named_and_the_rest_is_done(
    finished: Path, image: str, arguments: list[str], tmp_path: Path
) -> None:
    damaged, out = tmp_path / "damaged.zarr", tmp_path / "out"
    shutil.copytree(image, damaged)
    victim = sorted(path for path in damaged.rglob("*") if path.is_file() and "json" not in path.name)[-1]
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    done = petavoxel("segment", str(damaged), str(out), *arguments)
    assert done.returncode == 7
    line = refusal(done)
    assert "box 16:30,24:44,20:37" in line
    assert "damaged.zarr" in line
    victim.write_bytes(whole)
    done = petavoxel("segment", str(damaged), str(out), *arguments)
    assert done.returncode == 0, done.stderr
    done_labels, labels = (open_volume(str(path / "segmentation.zarr")) for path in (finished, out))
    np.testing.assert_array_equal(labels.read(labels.box), done_labels.read(done_labels.box))


def test_a_bucket_prefix_as_output(finished: Path, image: str, arguments: list[str], gcs_bucket: str) -> None:
    done = petavoxel("segment", image, f"{gcs_bucket}/out", *arguments)
    assert done.returncode == 0, done.stderr
    there, here = open_volume(f"{gcs_bucket}/out/segmentation.zarr"), open_volume(str(finished / "segmentation.zarr"))
    np.testing.assert_array_equal(there.read(there.box), here.read(here.box))


def test_mistakes_end_in_one_line(image: str, model: Model, tmp_path: Path) -> None:
    def volume(
        name: str, dtype: str, voxel_size: tuple[float, float, float] | None, channels: int | None = None
    ) -> str:
        url = str(tmp_path / name)
        info = VolumeInfo(shape=(24, 24, 24), dtype=np.dtype(dtype), voxel_size_nm=voxel_size, channels=channels)
        create_volume(url, info).close()
        return url

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    broken = tmp_path / "model"
    shutil.copytree(model.folder, broken)
    content = (broken / "model.onnx").read_bytes()
    (broken / "model.onnx").write_bytes(content[:-100])
    flipped = tmp_path / "flipped"
    shutil.copytree(model.folder, flipped)
    (flipped / "model.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    good = ["--model", str(model.folder)]
    out = str(tmp_path / "out")
    nm = (10.0, 10.0, 10.0)
    cases = [
        (3, "nowhere.zarr", [str(tmp_path / "nowhere.zarr"), out, *good]),
        (3, "no-such-model", [image, out, "--model", "no-such-model"]),
        (2, "uint16", [volume("deep.zarr", "uint16", nm), out, *good]),
        (2, "channels", [volume("channels.zarr", "uint8", nm, 3), out, *good]),
        (2, "voxel size", [volume("unknown.zarr", "uint8", None), out, *good]),
        (2, "nm", [volume("coarse.zarr", "uint8", (40.0, 10.0, 10.0)), out, *good]),
        (2, "card says", [image, out, "--model", str(broken)]),
        (2, "SHA-256", [image, out, "--model", str(flipped)]),
        (2, "box", [image, out, *good, "--box", "0:10,0:10,0:4000"]),
        (2, "box", [image, out, *good, "--box", "ten"]),
        (2, "chunk", [image, out, *good, "--chunk", "1,2"]),
        (2, "threshold", [image, out, *good, "--threshold", "7"]),
        (6, "something else", [image, str(tmp_path / "other"), *good]),
    ]
    for code, text, given in cases:
        done = petavoxel("segment", *given)
        line = refusal(done)
        assert done.returncode == code, (given, line)
        assert text in line, (given, line)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"
    assert not Path(out).exists()


def test_joins_a_running_cluster(finished: Path, image: str, arguments: list[str], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    ray = str(Path(sys.executable).with_name("ray"))
    folder = Path(tempfile.mkdtemp(prefix="pvx-", dir="/tmp"))  # Ray's sockets need a short path
    start = [ray, "start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
    start += ["--node-ip-address=127.0.0.1", "--num-cpus=3", "--disable-usage-stats", "--min-worker-port=0"]
    head = subprocess.Popen(
        [*start, "--max-worker-port=0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        give_up = time.monotonic() + 60
        while True:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < give_up, "Ray did not start"
            time.sleep(0.2)
        out = tmp_path / "out"
        done = subprocess.run(
            command("segment", image, str(out), *arguments, "--address", f"127.0.0.1:{port}"),
            capture_output=True, text=True, timeout=300, check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert contents(out) == contents(finished)
    finally:
        head.terminate()
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_cluster_that_is_not_there_is_one_line(image: str, arguments: list[str], tmp_path: Path) -> None:
    done = petavoxel("segment", image, str(tmp_path / "out"), *arguments, "--address", "127.0.0.1:1")
    assert done.returncode == 8
    assert "127.0.0.1:1" in refusal(done)
