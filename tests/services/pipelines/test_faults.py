"""Whatever dies, at whatever moment: the run, or the next one, ends with the bytes of an undisturbed run."""

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from bucket_servers import GoogleServer, google_environment
from pipeline_runs import run_in_process
from ray_nodes import ENVIRONMENT, RayNodes

from models.catalog import Model
from services.pipelines.preparation import Request
from services.run import AgglomerationOptions, SegmentOptions

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
CHUNK = (16, 24, 20)
OPTIONS = SegmentOptions(agglomeration=AgglomerationOptions(threshold=0.45))
PATIENCE_S = 300
MANY = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8)]

Bytes = dict[str, bytes]
Started = subprocess.Popen[str]


def contents(out: Path) -> Bytes:
    """Every file whose bytes must not depend on the run's history."""
    files = {str(path.relative_to(out)): path for path in sorted(out.rglob("*")) if path.is_file()}
    kept = (name for name in files if not name.startswith(("progress/", "work/")) and name != "run.json")
    return {name: files[name].read_bytes() for name in kept}


def markers(out: Path) -> int:
    return sum(1 for _ in out.glob("progress/*/*_*_*.json"))


@dataclass(frozen=True)
class Undisturbed:
    """The files of an undisturbed run, and up to how many of its chunks a fault should strike."""

    files: Bytes
    chunks: int

    def differences(self, out: Path) -> list[str]:
        """Names of files that are missing, more, or have other bytes."""
        found = contents(out)
        return sorted(name for name in {*found, *self.files} if found.get(name) != self.files.get(name))


@pytest.fixture(scope="module")
def expected(image: str, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """All stages one after the other, in this process."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_in_process(Request(image, str(out), str(model.folder), OPTIONS, chunk=CHUNK), skeletons=True)
    return Undisturbed(contents(out), markers(out) - 8)


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with RayNodes(1, 2, 2) as cluster:
        yield cluster


@pytest.fixture
def start(image: str, model: Model) -> Iterator[Callable[..., Started]]:
    """Starts `petavoxel segment`; what is still running at the end is killed."""
    begun = []

    def start_it(out: str, address: str | None = None, **environment: str) -> Started:
        begun.append(
            subprocess.Popen(
                segment_command(image, out, model, address),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env={**os.environ, **ENVIRONMENT, **environment},
            )
        )
        return begun[-1]

    yield start_it
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def segment_command(image: str, out: str, model: Model, address: str | None = None) -> list[str]:
    chunk = ",".join(str(extent) for extent in CHUNK)
    command = [sys.executable, "-m", "services.cli", "segment", image, out, "--model", str(model.folder)]
    command += ["--chunk", chunk, "--threshold", "0.45"]
    return [*command, "--address", address] if address else command


def finish(process: Started) -> str:
    """What the process said on standard error; it must have ended well."""
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    return said


def wait_for(process: Started, out: Path, count: int) -> bool:
    """Wait until so many chunks are marked as done; False where the run ended before."""
    give_up = time.monotonic() + PATIENCE_S
    while markers(out) < count:
        if process.poll() is not None:
            return False
        assert time.monotonic() < give_up, f"{markers(out)} of {count} chunks are done"
        time.sleep(0.005)
    return True


@pytest.mark.parametrize("seed", [0, *MANY])
def test_a_worker_is_killed(
    seed: int, nodes: RayNodes, start: Callable[..., Started], expected: Undisturbed, tmp_path: Path
) -> None:
    rng, out, killed = random.Random(seed), tmp_path / "out", 0
    run = start(str(out), nodes.address)
    for moment in sorted(rng.sample(range(expected.chunks), 3)):
        if wait_for(run, out, moment):
            killed += kill_a_worker(nodes, run, rng)
    finish(run)
    assert killed > 0
    assert expected.differences(out) == []


def kill_a_worker(nodes: RayNodes, run: Started, rng: random.Random) -> int:
    while run.poll() is None:
        if found := nodes.worker_processes():
            try:
                rng.choice(found).kill()
            except psutil.NoSuchProcess:  # it ended by itself just now
                continue
            return 1
        time.sleep(0.005)
    return 0


@pytest.mark.parametrize("seed", [0, *MANY])
def test_a_node_is_killed(
    seed: int, nodes: RayNodes, start: Callable[..., Started], expected: Undisturbed, tmp_path: Path
) -> None:
    rng, out = random.Random(100 + seed), tmp_path / "out"
    run = start(str(out), nodes.address)
    assert wait_for(run, out, rng.randrange(expected.chunks))
    nodes.kill(rng.choice(nodes.workers))
    try:
        finish(run)
    finally:
        nodes.add(2)
    assert expected.differences(out) == []


@pytest.mark.parametrize("seed", [0, *MANY])
def test_the_driver_is_killed(
    seed: int, nodes: RayNodes, start: Callable[..., Started], expected: Undisturbed, tmp_path: Path
) -> None:
    rng, out = random.Random(200 + seed), tmp_path / "out"
    for moment in sorted(rng.sample(range(expected.chunks), 1 if seed == 0 else 3)):
        run = start(str(out), nodes.address)
        assert wait_for(run, out, moment)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait(30)
    finish(start(str(out), nodes.address))
    assert expected.differences(out) == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_number_of_workers_does_not_matter(
    workers: int, start: Callable[..., Started], expected: Undisturbed, tmp_path: Path
) -> None:
    with RayNodes(workers + 1) as single:
        finish(start(str(tmp_path / "out"), single.address))
    assert expected.differences(tmp_path / "out") == []


def test_the_bucket_server_is_killed(start: Callable[..., Started], expected: Undisturbed, tmp_path: Path) -> None:
    stored = tmp_path / "buckets"
    with GoogleServer(stored) as server:
        server.make_bucket("faults")
        settings = {**google_environment(server.url), "PETAVOXEL_STORAGE_TIMEOUT_S": "10"}
        out = stored / "faults" / "out"
        run = start("gs://faults/out", None, **settings)
        assert wait_for(run, out, random.Random(5).randrange(expected.chunks))
        server.kill()
        time.sleep(20)
        server.start()
        _, said = run.communicate(timeout=PATIENCE_S)
        if run.returncode:
            assert said.strip().splitlines()[-1].startswith("petavoxel: "), said
            finish(start("gs://faults/out", None, **settings))
        found = contents(out)
    assert [name for name, content in expected.files.items() if found.get(name) != content] == []


def test_the_disk_fills(image: str, model: Model, expected: Undisturbed, tmp_path: Path) -> None:
    """On a small file system of its own, in a user namespace: the first run fills it, the second has more room."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are needed for a file system of limited size")
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    run = shlex.join(segment_command(image, str(disk / "out"), model))
    script = (
        f"mount -t tmpfs -o size=300k tmpfs {disk} && {{ {run} 2> {tmp_path}/full; echo $? > {tmp_path}/code; "
        f"mount -o remount,size=100m {disk}; {run} 2> {tmp_path}/roomy; echo $? >> {tmp_path}/code; "
        f"cp -r {disk}/out {copy}; }}"
    )
    subprocess.run(["unshare", "-rm", "sh", "-c", script], timeout=2 * PATIENCE_S, check=True, capture_output=True)
    full, roomy = (tmp_path / "code").read_text().split()
    said = (tmp_path / "full").read_text()
    assert full in ("5", "7"), said
    assert "disk is full" in said.strip().splitlines()[-1]
    assert "Traceback" not in said
    assert roomy == "0", (tmp_path / "roomy").read_text()
    assert expected.differences(copy) == []


def test_damage_is_found_repaired_and_only_that_is_redone(
    start: Callable[..., Started], nodes: RayNodes, expected: Undisturbed, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    finish(start(str(out), nodes.address))
    assert verify(out).returncode == 0
    kinds = ("affinities.zarr", "supervoxels.zarr", "segmentation.zarr")
    for name in kinds:
        victim = sorted(path for path in (out / name).rglob("*") if path.is_file() and "json" not in path.name)[-1]
        victim.write_bytes(victim.read_bytes()[:-9])
    shutil.rmtree(out / "region_graph")
    found = verify(out)
    assert found.returncode == 5
    assert "Traceback" not in found.stderr
    for name in (*kinds, "region_graph"):
        assert any(name in line for line in found.stdout.splitlines()), found.stdout
    assert verify(out, "--repair").returncode == 5
    before = {path: path.stat().st_mtime_ns for path in (out / "progress").glob("predict/*.json")}
    said = finish(start(str(out), nodes.address))
    assert "1 failed or damaged before" in said
    assert expected.differences(out) == []
    kept = [path for path, changed in before.items() if path.exists() and path.stat().st_mtime_ns == changed]
    assert len(kept) == 7, "one of eight predictions was damaged"
    assert verify(out).returncode == 0


def verify(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.cli", "verify", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
