"""`petavoxel mesh`, `skeletonize` and `export-precomputed` as a user runs them: a real Ray, a SIGKILL, mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from stage_runs import run_stages
from typer.testing import CliRunner

from infra.objects import Folder
from infra.volumes import VolumeInfo, create_pyramid, open_volume
from models.errors import PetavoxelError
from models.segmentation.coarsening import most_frequent
from services.cli.main import app
from services.pipelines.meshes import mesh_stages, prepare_meshes
from services.stages.meshes import MeshOptions

pytestmark = pytest.mark.timeout(600)
SHAPE = (140, 150, 160)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "services.cli", *arguments]


def petavoxel(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, check=False)


def contents(out: Path) -> dict[str, bytes]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    named = {str(path.relative_to(out)): path.read_bytes() for path in files}
    return {name: content for name, content in named.items() if "progress/" not in name}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is needed of a finished run: labels with a pyramid."""
    out = tmp_path_factory.mktemp("run")
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    labels = (grid // 37 * np.array([1, 10, 100]).reshape(3, 1, 1, 1)).sum(axis=0).astype(np.uint64) + 1
    info = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint64"), voxel_size_nm=(10, 10, 10))
    fine, coarse = create_pyramid(f"{out}/segmentation.zarr", info, [(2, 2, 2)])
    fine.write(fine.box, labels)
    coarse.write(coarse.box, most_frequent(labels, (2, 2, 2)))
    Folder(str(out)).write_json("run.json", {"key": "k", "image": "none.zarr", "box": "0:1,0:1,0:1"})
    Folder(str(out)).write_json("progress/complete.json", {"key": "k"})
    return out


@pytest.mark.cluster
def test_a_killed_run_of_meshes_goes_on_to_the_same_bytes_and_is_exported(
    run: Path, tmp_path: Path, gcs_bucket: str
) -> None:
    segmentation, killed, whole = str(run / "segmentation.zarr"), tmp_path / "killed", run / "meshes"
    process = subprocess.Popen(
        command("mesh", segmentation, str(killed)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    marker, give_up = killed / "progress" / "mesh_0", time.monotonic() + 200
    while not (marker.is_dir() and any(marker.iterdir())):
        assert process.poll() is None
        assert time.monotonic() < give_up, "the stage never began"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    assert not (killed / "progress" / "complete.json").exists()
    done = petavoxel("mesh", segmentation, str(killed))
    assert done.returncode == 0, done.stderr
    run_stages(mesh_stages(prepare_meshes(segmentation, str(whole), MeshOptions())), np.random.default_rng(0))
    Folder(str(whole)).remove("work")
    assert contents(killed) == contents(whole)
    assert len(contents(whole)) > 2
    done = petavoxel("export-precomputed", str(run), f"{gcs_bucket}/layers")
    assert done.returncode == 0, done.stderr
    assert f"precomputed://{gcs_bucket}/layers/segmentation" in done.stdout
    there, here = open_volume(f"precomputed://{gcs_bucket}/layers/segmentation"), open_volume(segmentation)
    np.testing.assert_array_equal(there.read(there.box), here.read(here.box))
    assert Folder(f"{gcs_bucket}/layers/segmentation").read_json("info")["mesh"] == "mesh"
    copied = Folder(f"{gcs_bucket}/layers/segmentation/mesh")
    assert {name: copied.read(name) for name in copied.names()} == {
        path.name: path.read_bytes() for path in (whole / "precomputed").iterdir()
    }


def test_mistakes_are_named_before_ray_starts(run: Path, tmp_path: Path) -> None:
    segmentation = str(run / "segmentation.zarr")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "run.json").write_text(json.dumps({"key": "k"}))
    np.save(tmp_path / "labels.npy", np.ones((4, 5, 6), np.uint64))
    cases = [
        (3, "nowhere", ["mesh", str(tmp_path / "nowhere.zarr"), str(tmp_path / "a")]),
        (2, "voxel size", ["mesh", str(tmp_path / "labels.npy"), str(tmp_path / "a")]),
        (2, "voxel size", ["skeletonize", str(tmp_path / "labels.npy"), str(tmp_path / "a")]),
        (2, "box", ["skeletonize", segmentation, str(tmp_path / "a"), "--box", "0:9,0:9,0:900"]),
        (6, "something else", ["mesh", segmentation, str(tmp_path / "other")]),
        (6, "something else", ["skeletonize", segmentation, str(tmp_path / "other")]),
        (6, "something else", ["export-precomputed", str(run), str(tmp_path / "other")]),
        (2, "finished run", ["export-precomputed", str(unfinished), str(tmp_path / "a")]),
        (3, "run.json", ["export-precomputed", str(tmp_path / "other"), str(tmp_path / "a")]),
    ]
    for code, expected, arguments in cases:
        error = CliRunner().invoke(app, arguments).exception
        assert isinstance(error, PetavoxelError), error
        assert (error.exit_code, expected in str(error)) == (code, True), error
    assert not ray.is_initialized()
