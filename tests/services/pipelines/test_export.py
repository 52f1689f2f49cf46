"""A run as precomputed layers, read by tensorstore, cloud-volume and Neuroglancer itself."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cloud_meshes import read_mesh, volume_and_area
from file_server import served
from PIL import Image
from stage_runs import run_stages

from infra.objects import Folder
from infra.skeletons import PrecomputedSkeletons
from infra.volumes import VolumeInfo, create_pyramid, create_volume, open_volume
from models.errors import InvalidInput, NotFound
from models.geometry import Box
from services.pipelines.export import create_targets, export_stages, prepare_export
from services.pipelines.meshes import mesh_stages, prepare_meshes
from services.pipelines.skeletonize import skeleton_stages
from services.stages.meshes import MeshOptions
from services.stages.skeletonize import SkeletonOptions
from services.stages.skeletons import SkeletonJob

SHAPE, BEGIN, OFFSET = (64, 90, 141), (2, 4, 6), (10, 0, 0)
VOXEL = (20.0, 10.0, 10.0)
STEPS = [(1, 2, 2), (2, 2, 2)]
TUBE, SLAB = (1 << 60) + 1, 5
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with skeletons and meshes, on a part of an image."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("run")
    labels = np.zeros(SHAPE, np.uint64)
    labels[26:38, 30:54, 4:137] = TUBE
    labels[:, 66:, :] = SLAB
    picture = VolumeInfo(
        shape=tuple(n + 9 for n in SHAPE), dtype=np.dtype("uint8"), voxel_size_nm=VOXEL, offset_voxels=OFFSET
    )
    with create_volume(f"{folder}/image.zarr", picture) as image:
        image.write(image.box, rng.integers(0, 255, picture.shape, dtype=np.uint8))
    out = folder / "out"
    offset = tuple(o + b for o, b in zip(OFFSET, BEGIN, strict=True))
    info = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint64"), voxel_size_nm=VOXEL, offset_voxels=offset)
    levels = create_pyramid(f"{out}/segmentation.zarr", info, STEPS)
    for level, step in zip(levels, [(1, 1, 1), (1, 2, 2), (2, 4, 4)], strict=True):
        level.write(level.box, np.ascontiguousarray(labels[:: step[0], :: step[1], :: step[2]]))
    box = Box.from_shape(SHAPE, BEGIN)
    Folder(str(out)).write_json("run.json", {"key": "k", "image": f"{folder}/image.zarr", "box": str(box)})
    Folder(str(out)).write_json("progress/complete.json", {"key": "k"})
    skeletons, work = str(out / "skeletons"), str(folder / "work")
    options = SkeletonOptions(chunk_voxels=(64, 64, 64), swc=False)
    job = SkeletonJob(levels[0].url, levels[0].box, VOXEL, offset, options, skeletons, work, work, "k")  # type: ignore[arg-type]
    run_stages(skeleton_stages(job), rng)
    meshes = MeshOptions(chunk_voxels=(64, 64, 64))
    run_stages(mesh_stages(prepare_meshes(levels[0].url, str(out / "meshes"), meshes)), rng)
    return out


def exported(
    run: Path, destination: str, rng: np.random.Generator, *, image: bool = True, sharded: bool = True
) -> None:
    export = prepare_export(str(run), destination, image=image, sharded=sharded, meshes=None)
    create_targets(export)
    create_targets(export)  # as a second call does
    run_stages(export_stages(export), rng)


@pytest.fixture(scope="module")
def finished(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("exported")
    exported(run, str(destination), np.random.default_rng(1))
    return destination


def same_voxels(run: Path, destination: str) -> None:
    for level in range(3):
        ours = open_volume(f"{run}/segmentation.zarr", level=level)
        theirs = open_volume(f"precomputed://{destination}/segmentation", level=level)
        assert theirs.info.voxel_size_nm == ours.info.voxel_size_nm
        np.testing.assert_array_equal(theirs.read(theirs.box), ours.read(ours.box))
    assert open_volume(f"precomputed://{destination}/segmentation").info.offset_voxels == (12, 4, 6)


def test_labels_image_and_layers_arrive(run: Path, finished: Path, tmp_path: Path) -> None:
    same_voxels(run, str(finished))
    image = open_volume(f"{run.parent}/image.zarr").read(Box.from_shape(SHAPE, BEGIN))
    there = open_volume(f"precomputed://{finished}/image")
    np.testing.assert_array_equal(there.read(there.box), image)
    coarse = open_volume(f"precomputed://{finished}/image", level=1)
    means = image[:, 0:90:2, 0:140:2].astype(int) + image[:, 1:90:2, 0:140:2]
    means = means + image[:, 0:90:2, 1:141:2] + image[:, 1:90:2, 1:141:2]
    assert np.abs(coarse.read(coarse.box)[:, :, :70] - means / 4).max() <= 1
    info = json.loads((finished / "segmentation" / "info").read_text())
    assert {name: info[name] for name in ("mesh", "skeletons", "segment_properties")} == {
        name: name for name in ("mesh", "skeletons", "segment_properties")
    }
    skeletons = PrecomputedSkeletons(str(finished / "segmentation" / "skeletons"))
    assert sorted(skeletons.ids()) == [SLAB, TUBE]
    vertices, faces = read_mesh(f"precomputed://file://{finished}/segmentation", TUBE, 0, tmp_path)
    volume, _ = volume_and_area(vertices, faces)
    assert volume == pytest.approx(12 * 20 * 24 * 10 * 133 * 10, rel=0.05)
    properties = json.loads((finished / "segmentation" / "segment_properties" / "info").read_text())["inline"]
    assert properties["ids"] == [str(SLAB), str(TUBE)]
    assert properties["properties"][0]["values"][1] == pytest.approx(12 * 20 * 24 * 10 * 133 * 10 / 1e9)


_CLOUD_VOLUME = """
import sys, json, numpy as np
from cloudvolume import CloudVolume
volume = CloudVolume(sys.argv[1], progress=False, fill_missing=False)
found = np.asarray(volume[:, :, :])[..., 0]
skeleton = volume.skeleton.get(int(sys.argv[2]))
print(json.dumps([int((found == int(sys.argv[2])).sum()), int(found.max()), float(skeleton.cable_length())]))
"""


def test_cloud_volume_reads_shards_and_skeletons(finished: Path) -> None:
    layer = f"precomputed://file://{finished}/segmentation"
    command = [sys.executable, "-W", "ignore", "-c", _CLOUD_VOLUME, layer, str(TUBE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    voxels, largest, cable = json.loads(done.stdout.splitlines()[-1])
    assert (voxels, largest) == (12 * 24 * 133, TUBE)
    assert 1000 < cable < 1700


@pytest.mark.parametrize("sharded", [True, False])
def test_a_bucket_gets_the_same(run: Path, sharded: bool, gcs_bucket: str) -> None:
    exported(run, f"{gcs_bucket}/x", np.random.default_rng(2), image=False, sharded=sharded)
    same_voxels(run, f"{gcs_bucket}/x")
    assert PrecomputedSkeletons(f"{gcs_bucket}/x/segmentation/skeletons").has(TUBE)


def test_bytes_do_not_depend_on_the_order(run: Path, finished: Path, tmp_path: Path) -> None:
    exported(run, str(tmp_path), np.random.default_rng(3))
    first, second = (
        {str(p.relative_to(at)): p.read_bytes() for p in at.rglob("*") if p.is_file() and "progress" not in str(p)}
        for at in (finished, tmp_path)
    )
    assert first == second


def test_what_cannot_be_exported_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"expected run\.json"):
        prepare_export(str(tmp_path), str(tmp_path / "x"), image=False, sharded=True, meshes=None)
    with pytest.raises(NotFound, match="petavoxel mesh"):
        prepare_export(str(run), str(tmp_path / "x"), image=False, sharded=True, meshes=str(tmp_path))
    Folder(str(tmp_path)).write_json("run.json", {"key": "k"})
    with pytest.raises(InvalidInput, match="finished run"):
        prepare_export(str(tmp_path), str(tmp_path / "x"), image=False, sharded=True, meshes=None)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)")
def test_neuroglancer_draws_segments_skeletons_and_meshes(finished: Path) -> None:
    import neuroglancer
    from playwright.sync_api import sync_playwright

    with served(finished) as (url, answered), sync_playwright() as playwright:
        viewer = neuroglancer.Viewer()
        with viewer.txn() as state:
            state.dimensions = neuroglancer.CoordinateSpace(names=["x", "y", "z"], units="nm", scales=[10, 10, 20])
            source = [f"precomputed://{url}/segmentation"]
            state.layers["segmentation"] = neuroglancer.SegmentationLayer(source=source, segments=[TUBE])
            state.layout = neuroglancer.row_layout(
                [neuroglancer.LayerGroupViewer(layers=["segmentation"], layout=layout) for layout in ("xy", "3d")]
            )
            state.position = [76, 46, 44]
            state.projection_scale = 250
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        )
        page = browser.new_page(viewport={"width": 1000, "height": 600})
        page.goto(str(viewer))
        wanted = ("/segmentation/10_10_20/", "/segmentation/skeletons/", "/segmentation/mesh/")
        deadline, coloured = time.monotonic() + 60, 0.0
        while time.monotonic() < deadline and coloured < 0.02:
            page.wait_for_timeout(500)
            if all(any(part in path and path.endswith(".shard") for path in answered) for part in wanted):
                pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
                spread = pixels.max(axis=2) - pixels.min(axis=2)
                coloured = float((spread[:, 520:] > 40).mean())  # the half in three dimensions
        browser.close()
        neuroglancer.stop()
    assert all(any(part in path for path in answered) for part in wanted), answered
    assert coloured >= 0.02
