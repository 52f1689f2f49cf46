import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stage_runs import run_stages

from infra.skeletons import PrecomputedSkeletons, Skeleton
from infra.volumes import Volume, VolumeInfo, create_pyramid, create_volume, open_volume
from models.errors import InvalidInput, InvalidVolume, NotFound, StorageFailed
from models.geometry import Box
from services.overlay import Slice, blend, borders, middle_planes, picture, segment_colours
from services.pipelines.meshes import mesh_stages, prepare_meshes
from services.stages.meshes import MeshOptions
from services.view import find_scene, write_overlay, write_picture

BOX = Box((4, 6, 10), (36, 54, 74))
SIZE = (20.0, 10.0, 10.0)
TOP = (1 << 64) - 1
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def volume(path: Path, voxels: np.ndarray, offset=(0, 0, 0), size=SIZE) -> Volume:
    info = VolumeInfo(shape=voxels.shape, dtype=voxels.dtype, voxel_size_nm=size, offset_voxels=offset)
    created = create_volume(str(path), info)
    created.write(created.box, voxels)
    return created


def blobs(shape: tuple[int, int, int]) -> np.ndarray:
    """Quarters of the yx plane: ids 1 (background above it), 2^53 + 1, 7 and the largest."""
    labels = np.zeros(shape, dtype=np.uint64)
    y, x = shape[1] // 2, shape[2] // 2
    labels[:, :y, :x], labels[:, :y, x:], labels[:, y:, :x], labels[:, y:, x:] = 1, (1 << 53) + 1, 7, TOP
    labels[: shape[0] // 4] = 0
    return labels


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A finished run on a part of an image."""
    rng = np.random.default_rng(0)
    image = volume(tmp_path / "image.zarr", rng.integers(0, 255, (40, 60, 80), dtype=np.uint8), offset=(100, 0, 0))
    folder = tmp_path / "run"
    folder.mkdir()
    start = tuple(a + b for a, b in zip(image.info.offset_voxels, BOX.start, strict=True))
    info = VolumeInfo(shape=BOX.shape, dtype=np.dtype(np.uint64), voxel_size_nm=SIZE, offset_voxels=start)
    fine, coarse = create_pyramid(str(folder / "segmentation.zarr"), info, [(1, 2, 2)])
    fine.write(fine.box, blobs(BOX.shape))
    coarse.write(coarse.box, np.ascontiguousarray(blobs(BOX.shape)[:, ::2, ::2]))
    line = Skeleton(np.array([[2400, 300, 300], [2500, 300, 600]], np.float32), np.array([[0, 1]]), np.array([90, 90]))
    PrecomputedSkeletons(str(folder / "skeletons" / "precomputed")).create().write(0, [(TOP, line), (7, line)])
    (folder / "run.json").write_text(json.dumps({"image": image.url, "box": str(BOX), "voxel_size_nm": SIZE}))
    return folder


def test_colours_depend_on_the_id_alone() -> None:
    ids = np.array([0, 1, 2, TOP, 1], dtype=np.uint64)
    colours = segment_colours(ids)
    assert colours.dtype == np.uint8
    assert colours[0].tolist() == [0, 0, 0]
    assert colours[1].tolist() == colours[4].tolist() == segment_colours(np.array([1], dtype=np.uint8))[0].tolist()
    many = segment_colours(np.arange(1, 1001, dtype=np.uint64))
    assert len(np.unique(many, axis=0)) > 990
    assert many.max(axis=1).min() > 200  # all bright


def test_borders_are_darker_and_background_stays_grey() -> None:
    labels = np.zeros((6, 9), dtype=np.uint64)
    labels[:, 3:6], labels[:, 6:] = 5, TOP
    assert np.flatnonzero(borders(labels)[2]).tolist() == [2, 3, 5, 6]
    coloured = blend(np.full((6, 9), 200, np.uint8), labels)
    assert (coloured[:, :3] == 200).all()
    inside, edge = coloured[2, 4].astype(int), coloured[2, 3].astype(int)
    assert edge.sum() < 0.7 * inside.sum()
    assert len({tuple(coloured[2, x]) for x in (0, 4, 8)}) == 3


@pytest.mark.parametrize("with_truth", [False, True])
def test_overlay_has_a_column_per_volume_in_physical_proportion(with_truth: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    image, labels = rng.integers(0, 255, (10, 20, 40), dtype=np.uint8), blobs((10, 20, 40))
    truth = {"truth": labels} if with_truth else {}
    for name in ("a", "b"):
        write_overlay(
            image, labels, tmp_path / f"{name}.png", voxel_size_nm=(20, 10, 10), caption="what it is", **truth
        )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    columns = 3 if with_truth else 2
    assert pixels.shape[1] == 48 + 560 * columns + 14 * (columns - 1) > 1000
    # xy, xz, yz: heights 200, 200, 200 nm at 400 nm = 560 pixels; below them labels and the caption.
    assert pixels.shape[0] == 24 + 40 + 3 * (280 + 28 + 14) + 24 + 24
    left, middle = pixels[64:344, 24:584], pixels[64:344, 598:1158]
    assert (left.max(axis=2) == left.min(axis=2)).all()
    assert (middle.max(axis=2) - middle.min(axis=2)).mean() > 20
    if with_truth:
        np.testing.assert_array_equal(pixels[64:344, 1172:1732], middle)
    colour = segment_colours(np.array([1], dtype=np.uint64))[0].astype(int)
    tint = middle[20:120, 20:260].mean(axis=(0, 1)) - left[20:120, 20:260].mean(axis=(0, 1))
    assert np.corrcoef(tint, colour)[0, 1] > 0.99


def test_any_number_type_and_shape_makes_a_picture(tmp_path: Path) -> None:
    image = np.linspace(-3, 9, 5 * 6 * 700).reshape(5, 6, 700).astype(np.float32)
    image[0, 0, 0], image[2, 3, 4] = np.nan, np.inf
    for turned in (image, image.T):
        flat = np.ones(turned.shape, np.uint8)
        write_overlay(turned, flat, tmp_path / "f.png", voxel_size_nm=(4, 4, 4), caption="")
        with Image.open(tmp_path / "f.png") as opened:
            assert opened.width > 1000
            assert opened.height < 6000
    alone = picture([Slice(0, 3, np.zeros((4, 5)), ())], voxel_size_nm=(1, 1, 1), caption="c" * 900)
    assert alone.startswith(b"\x89PNG")


def test_pictures_that_cannot_be_are_refused(tmp_path: Path) -> None:
    image, labels = np.zeros((3, 4, 5), np.uint8), np.zeros((3, 4, 5), np.uint64)
    path, options = tmp_path / "x.png", {"voxel_size_nm": (1.0, 1.0, 1.0), "caption": ""}
    with pytest.raises(InvalidVolume, match=r"got \(3, 4, 5\) and \(5, 4, 3\)"):
        write_overlay(image, labels.T, path, **options)
    with pytest.raises(InvalidVolume, match="float64"):
        write_overlay(image, labels.astype(float), path, **options)
    with pytest.raises(InvalidInput, match="voxel_size_nm"):
        write_overlay(image, labels, path, voxel_size_nm=(0, 1, 1), caption="")


def test_middle_planes_of_a_box() -> None:
    assert middle_planes(Box((0, 10, 20), (5, 16, 21))) == [
        (0, Box((2, 10, 20), (3, 16, 21))),
        (1, Box((0, 13, 20), (5, 14, 21))),
        (2, Box((0, 10, 20), (5, 16, 21))),
    ]


def test_picture_of_a_run(out: Path, tmp_path: Path) -> None:
    scene = find_scene(str(out))
    assert (scene.box, scene.voxel_size_nm, scene.offset_voxels) == (BOX, SIZE, (100, 0, 0))
    assert scene.skeletons is not None
    caption = write_picture(scene, tmp_path / "run.png")
    assert str(BOX) in caption
    assert "20 x 10 x 10 nm" in caption
    assert "4 segments" in caption
    with Image.open(tmp_path / "run.png") as opened:
        assert opened.width > 1000
    with pytest.raises(StorageFailed, match="cannot be written"):
        write_picture(scene, tmp_path / "no" / "run.png")


def test_a_large_scene_is_read_slice_by_slice(tmp_path: Path) -> None:
    image = create_volume(
        str(tmp_path / "large.zarr"),
        VolumeInfo(shape=(10**5,) * 3, dtype=np.dtype("uint8"), voxel_size_nm=(8, 8, 8), chunk_shape=(64, 64, 64)),
    )
    caption = write_picture(find_scene(image.url), tmp_path / "large.png")
    assert "49488:50512,49488:50512,49488:50512" in caption


def test_image_with_another_segmentation(out: Path, tmp_path: Path) -> None:
    image = str(tmp_path / "image.zarr")
    whole = volume(tmp_path / "whole.zarr", blobs((40, 60, 80)))
    assert find_scene(image, whole.url).segmentation is not None
    assert find_scene(image).segmentation is None
    assert find_scene(str(out), whole.url).box == whole.box
    np.savez(tmp_path / "raw.npz", raw=np.zeros((4, 5, 6), np.uint8))
    raw = f"{tmp_path}/raw.npz:raw"
    assert find_scene(raw, voxel_size_nm=(5, 5, 5)).voxel_size_nm == (5, 5, 5)
    with pytest.raises(InvalidVolume, match="voxel size is not known"):
        find_scene(raw)
    with pytest.raises(InvalidVolume, match=r"of shape \(40, 60, 80\), got uint64 of shape \(32, 48, 64\)"):
        find_scene(image, str(out / "segmentation.zarr"))
    with pytest.raises(InvalidVolume, match="expected integer labels"):
        find_scene(image, str(volume(tmp_path / "float.zarr", np.zeros((40, 60, 80), np.float32)).url))
    with pytest.raises(NotFound):
        find_scene(str(tmp_path / "nothing"))


def test_run_that_is_not_whole_says_so(out: Path) -> None:
    shutil.rmtree(out / "segmentation.zarr")
    with pytest.raises(NotFound, match="has the run finished"):
        find_scene(str(out))
    (out / "run.json").write_text('{"voxel_size_nm": [1, 1, 1]}')
    with pytest.raises(InvalidVolume, match="missing 'box'"):
        find_scene(str(out))


def test_lazy_array_reads_only_what_is_asked_for(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.neuroglancer_sources import LazyArray, segmentation_source

    segmentation = find_scene(str(out)).segmentation
    assert segmentation is not None
    read: list[Box] = []
    original = Volume.read

    def spy(self: Volume, box: Box, **options: object) -> np.ndarray:
        read.append(box)
        return original(self, box, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Volume, "read", spy)
    lazy = LazyArray(segmentation, np.dtype(np.uint64))
    assert lazy.shape == BOX.shape[::-1]
    np.testing.assert_array_equal(lazy[3:9, 20:40, 10:12], blobs(BOX.shape)[10:12, 20:40, 3:9].T)
    source = segmentation_source(segmentation, SIZE, (104, 6, 10))
    assert source.info()["voxelOffset"].tolist() == [10, 6, 104]
    data, _ = source.get_encoded_subvolume("npz", np.array([0, 0, 0]), np.array([4, 5, 6]), "2,2,1")
    assert len(data) > 0
    assert read == [Box((10, 20, 3), (12, 40, 9)), Box((0, 0, 0), (6, 10, 8))]


def test_what_the_client_reads_by_itself(out: Path, tmp_path: Path) -> None:
    from services.neuroglancer_sources import client_format

    scene = find_scene(str(out))
    assert scene.image is not None
    assert scene.segmentation is not None
    assert client_format(scene.segmentation) == "zarr3"
    assert client_format(scene.image) is None, "an array without OME metadata does not say where it lies"
    assert client_format(open_volume(scene.segmentation.url, voxel_size_nm=(7, 7, 7))) is None
    nowhere = create_volume(f"{tmp_path}/nowhere.zarr", VolumeInfo(shape=(4, 5, 6), dtype=np.dtype(np.uint64)))
    assert client_format(nowhere) is None, "nor does one without a voxel size"
    for url, expected in ((f"zarr2://{tmp_path}/old", "zarr2"), (f"precomputed://{tmp_path}/pre", "precomputed")):
        info = VolumeInfo(shape=(8, 9, 10), dtype=np.dtype(np.uint8), voxel_size_nm=SIZE)
        create_pyramid(url, info, [(1, 2, 2)])
        assert client_format(open_volume(url)) == expected
    double = VolumeInfo(shape=(8, 9, 10), dtype=np.dtype(np.float64), voxel_size_nm=SIZE)
    assert client_format(create_pyramid(str(tmp_path / "double.zarr"), double, [(1, 2, 2)])[0]) is None
    assert scene.meshes is None


@pytest.fixture
def served(out: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The URL of a viewer in a process of its own, started as a user does."""
    job = prepare_meshes(str(out / "segmentation.zarr"), str(out / "meshes"), MeshOptions(dust_voxels=1))
    run_stages(mesh_stages(job), np.random.default_rng(0))
    start = [sys.executable, "-c", "from services.cli import main; main()", "view", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        try:
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r"http://\S+", line):
                    yield found.group(), process
                    break
            else:
                pytest.fail(f"no URL from the viewer: {''.join(lines)}")
        finally:
            process.kill()


def test_viewer_ends_at_ctrl_c(served: tuple[str, subprocess.Popen[str]]) -> None:
    url, process = served
    assert url.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)")
def test_viewer_shows_image_levels_of_segments_skeletons_and_meshes(served: tuple[str, subprocess.Popen[str]]) -> None:
    from playwright.sync_api import sync_playwright

    url, _ = served
    answered: set[str] = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
        )
        page = browser.new_page(viewport={"width": 900, "height": 700})
        page.on("response", lambda r: answered.add(re.sub(r"[0-9a-f]{20,}", "…", r.url)) if r.ok else None)
        page.goto(url)
        deadline = time.monotonic() + 90
        shot = b""
        shards = r"/objects/…/{}/.*\.shard"
        wanted = [r"/neuroglancer/npz", r"/segmentation/(s?0)/c", shards.format("skeletons"), shards.format("meshes")]
        while time.monotonic() < deadline:
            page.wait_for_timeout(500)
            if all(any(re.search(part, address) for address in answered) for part in wanted):
                page.wait_for_timeout(1500)
                shot = page.screenshot()
                break
        page.mouse.move(200, 200)  # from far away the coarse level is enough
        page.keyboard.down("Control")
        page.mouse.wheel(0, 1500)
        while time.monotonic() < deadline and not any(re.search(r"/segmentation/(s?1)/c", a) for a in answered):
            page.wait_for_timeout(500)
        browser.close()
    assert any(re.search(r"/segmentation/(s?1)/c", address) for address in answered), answered
    assert shot, answered
    import io

    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
    colourful = (pixels.max(axis=2) - pixels.min(axis=2)) > 40
    assert colourful.mean() > 0.05
