"""Jobs on a real Ray with a token, as a user runs them; then what the pipelines counted, off its metrics endpoint."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cutting_proxy import CuttingProxy
from ray_head import BIN, RayHead

from infra.volumes import VolumeInfo, create_volume, open_volume
from models.catalog import Model

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
SHAPE = (24, 40, 32)


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with RayHead(token="a-token-for-tests-0123456789") as head:
        yield head


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "em.zarr"
    info = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint8"), voxel_size_nm=(10, 10, 10), chunk_shape=(8, 20, 16))
    with create_volume(str(path), info) as volume:
        volume.write(volume.box, np.random.default_rng(1).integers(0, 256, SHAPE).astype(np.uint8))
    return path


class Ran:
    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def line(self) -> str:
        """The one line on standard error."""
        [line] = self.err.splitlines()
        return line


def petavoxel(head: RayHead, *words: str, folder: Path | None = None, **environment: str) -> Ran:
    command = [str(BIN / "petavoxel"), words[0], "--address", head.dashboard, *words[1:]]  # a later --address counts
    env = {**head.environment, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=240, check=False)
    return Ran(done)


def listed(head: RayHead) -> list[dict[str, object]]:
    found = petavoxel(head, "jobs", "--json")
    assert found.code == 0, found.err
    jobs: list[dict[str, object]] = json.loads(found.out)
    return jobs


def test_a_job_with_a_local_model_ends_well_over_a_connection_that_breaks(
    head: RayHead, image: Path, model: Model, tmp_path: Path
) -> None:
    words = [
        "segment",
        str(image),
        f"{tmp_path}/out",
        "--chunk",
        "12,40,32",
        "--no-skeletons",
        "--model",
        model.folder.name,
    ]
    # RAY_ADDRESS names a cluster to join, not the dashboard, and must not lead elsewhere.
    here = {"folder": model.folder.parent, "RAY_ADDRESS": "127.0.0.1:9"}
    with CuttingProxy(head.ports["dashboard"], b"infra.runtimes.session: model") as proxy:
        ran = petavoxel(head, "submit", *words, "--address", proxy.address, **here)
        assert proxy.cuts == 1  # and no line of the log is lost, see below
    assert ran.code == 0, ran.out + ran.err
    assert re.fullmatch(r"petavoxel: segment-[0-9a-f]{8} submitted to http://127.0.0.1:\d+", ran.line)
    assert "services.pipelines.stage: relabel: 2 of 2 chunks computed" in ran.out
    assert ran.out.endswith(f"{tmp_path}/out: done; look at it with: petavoxel view {tmp_path}/out\n")
    assert open_volume(f"{tmp_path}/out/segmentation.zarr").info.shape == SHAPE
    job = listed(head)[0]
    assert (job["status"], job["exit_code"]) == ("SUCCEEDED", 0)
    assert petavoxel(head, "logs", str(job["id"])).out == ran.out
    again = petavoxel(head, "logs", "--follow", str(job["id"]))
    assert (again.code, again.out, again.err) == (0, ran.out, "")
    table = petavoxel(head, "jobs").out.splitlines()
    assert re.match(rf"{job['id']} +SUCCEEDED +0  ", table[1])
    ended = petavoxel(head, "stop", str(job["id"]))
    assert (ended.code, ended.out) == (0, f"{job['id']}: had ended already, SUCCEEDED\n")


def test_failures_return_the_commands_exit_code(head: RayHead, model: Model, tmp_path: Path) -> None:
    model_there = ["--model", str(model.folder)]
    missing = petavoxel(head, "submit", "segment", f"{tmp_path}/none.zarr", f"{tmp_path}/out", *model_there)
    assert missing.code == 3, missing.out + missing.err
    assert f"petavoxel: {tmp_path}/none.zarr: no zarr array or group is there" in missing.out
    assert missing.err.splitlines()[-1].endswith(": FAILED, exit code 3")


def test_a_failed_chunk_is_exit_code_7(head: RayHead, image: Path, model: Model, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zarr"
    subprocess.run(["cp", "-r", str(image), str(broken)], check=True)
    [last] = [path for path in broken.rglob("*") if path.as_posix().endswith("/2/1/1")]
    last.write_bytes(b"damaged")
    words = ["predict", str(broken), f"{tmp_path}/out", "--chunk", "12,40,32", "--model", str(model.folder)]
    ran = petavoxel(head, "submit", *words)
    assert ran.code == 7, ran.out + ran.err


def test_ctrl_c_leaves_the_job_running(head: RayHead, image: Path, model: Model, tmp_path: Path) -> None:
    words = ["submit", "segment", str(image), f"{tmp_path}/out", "--chunk", "8,8,8", "--model", str(model.folder)]
    command = [str(BIN / "petavoxel"), *words, "--address", head.dashboard]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=head.environment, text=True
    ) as client:
        assert client.stdout
        assert client.stderr
        submitted = client.stderr.readline()
        assert "submitted" in submitted
        while "Running entrypoint" not in client.stdout.readline():
            pass
        client.send_signal(signal.SIGINT)
        assert client.wait(30) == 130
        [line] = client.stderr.read().splitlines()
    job = submitted.split()[1]
    assert line == (
        f"petavoxel: {job} goes on; follow it again with: petavoxel logs -f {job} --address {head.dashboard}; "
        f"end it with: petavoxel stop {job} --address {head.dashboard}"
    )
    found = listed(head)[0]
    assert (found["id"], found["status"], found["exit_code"]) == (job, "RUNNING", None)
    stopped = petavoxel(head, "stop", job)
    assert (stopped.code, stopped.out) == (0, f"{job}: STOPPED\n")
    followed = petavoxel(head, "logs", "-f", job)
    assert followed.code == 143
    assert followed.line == f"petavoxel: {job}: STOPPED, exit code 143: Job was intentionally stopped."


def test_mistakes_are_one_line(head: RayHead) -> None:
    for command in (["logs", "nothing"], ["logs", "-f", "nothing"], ["stop", "nothing"]):
        unknown = petavoxel(head, *command)
        assert unknown.code == 3
        assert unknown.line.startswith(f"petavoxel: {head.dashboard}: no job 'nothing'")
    for environment in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "another-token-0123456789"}):
        refused = petavoxel(head, "jobs", **environment)
        assert refused.code == 4
        assert "expected a token that this Ray takes, from RAY_AUTH_TOKEN" in refused.line
    for name in ("serve", "metrics"):  # nothing listens at one, no dashboard at the other
        address = f"http://127.0.0.1:{head.ports[name]}"
        absent = petavoxel(head, "jobs", "--address", address)
        assert absent.code == 8
        assert absent.line.startswith(f"petavoxel: {address}: expected a Ray dashboard, ")


def test_pipelines_are_counted(head: RayHead) -> None:
    """What the jobs above did: 2 chunks through every stage, 1 chunk predicted beside a damaged one."""
    url = f"http://127.0.0.1:{head.ports['metrics']}/metrics"
    text = head.wait(url, "ray_petavoxel_chunks_failed_total", 30)
    dashboard = (Path(__file__).parents[3] / "charts/petavoxel/files/dashboard.json").read_text()
    shown = set(re.findall(r"ray_petavoxel_(?:chunks|bucket)_\w+", dashboard))
    assert len(shown) == 3
    assert all(f"\n{name}{{" in text for name in shown)
    chunks = _sums(text, "chunks_total", "stage")
    assert chunks["relabel"] == 2
    assert chunks["seams"] > 2  # of all levels
    assert chunks["predict"] >= 3
    assert _sums(text, "chunk_voxels_total", "stage")["relabel"] == np.prod(SHAPE)
    assert _sums(text, "chunks_failed_total", "stage") == {"predict": 1}
    requests, moved = _sums(text, "bucket_requests_total", "kind"), _sums(text, "bucket_bytes_total", "direction")
    assert requests["get"] > 0
    assert requests["put"] > 0
    assert set(moved) == {"in", "out"}
    assert min(moved.values()) > 1000


def _sums(text: str, name: str, label: str) -> dict[str, float]:
    """Values of a series by a label, added over all processes."""
    found: dict[str, float] = {}
    for labels, value in re.findall(rf"^ray_petavoxel_{name}{{(.*)}} (\S+)$", text, re.MULTILINE):
        [key] = re.findall(rf'\b{label}="([^"]*)"', labels)
        found[key] = found.get(key, 0) + float(value)
    return found
