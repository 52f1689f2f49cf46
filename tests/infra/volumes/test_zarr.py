"""What only zarr volumes have: OME-Zarr pyramids, foreign metadata, codecs, processes that write side by side."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from infra.volumes import VolumeInfo, create_pyramid, create_volume, open_volume
from models.errors import InvalidInput, InvalidVolume, NotFound, StorageFailed
from models.geometry import Box, ChunkGrid

FACTORS = [(1, 2, 2), (2, 2, 2)]


def label_info(**changes: Any) -> VolumeInfo:
    given: dict[str, Any] = {
        "shape": (20, 33, 40),
        "dtype": np.uint64,
        "voxel_size_nm": (40.0, 4.0, 4.0),
        "offset_voxels": (10, 20, 31),
        "chunk_shape": (16, 16, 16),
        "attributes": {"model": "tiny"},
    }
    return VolumeInfo(**{**given, **changes})


@pytest.mark.parametrize("prefix", ["", "zarr2://"])
def test_pyramid_levels(tmp_path: Path, prefix: str) -> None:
    url = f"{prefix}{tmp_path}/labels.zarr"
    levels = create_pyramid(url, label_info(), FACTORS)
    assert [level.info.shape for level in levels] == [(20, 33, 40), (20, 17, 20), (10, 9, 10)]
    assert [level.info.voxel_size_nm for level in levels] == [(40, 4, 4), (40, 8, 8), (80, 16, 16)]
    for level in levels:
        level.write(level.box, np.full(level.info.shape, level.level + 1, np.uint64))
    for number in range(3):
        found = open_volume(url, level=number)
        assert (found.read(found.box) == number + 1).all()
        assert found.info.attributes == {"model": "tiny"}
    assert len({open_volume(url, level=number).identity() for number in range(3)}) == 3
    with pytest.raises(NotFound, match="expected a level from 0 to 2, asked for 3"):
        open_volume(url, level=3)
    again = create_pyramid(url, label_info(), FACTORS, exists="reuse")
    assert (again[2].read(again[2].box) == 3).all()
    with pytest.raises(InvalidVolume, match="level 1 cannot be reused: wanted shape"):
        create_pyramid(url, label_info(), [(1, 3, 3)], exists="reuse")


def test_ome_05_metadata(tmp_path: Path) -> None:
    create_pyramid(f"{tmp_path}/a.zarr", label_info(channels=3), FACTORS)
    group = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    ome = group["attributes"]["ome"]
    assert ome["version"] == "0.5"
    (multiscale,) = ome["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "z", "y", "x"]
    assert [axis.get("unit") for axis in multiscale["axes"]] == [None, "nanometer", "nanometer", "nanometer"]
    scales = [level["coordinateTransformations"][0]["scale"] for level in multiscale["datasets"]]
    shifts = [level["coordinateTransformations"][1]["translation"] for level in multiscale["datasets"]]
    assert scales == [[1, 40, 4, 4], [1, 40, 8, 8], [1, 80, 16, 16]]
    # 31 * 4 nm, and the centre of a voxel that averages 2 (4) fine ones lies 0.5 (1.5) fine voxels further on
    assert shifts == [[0, 400, 80, 124], [0, 400, 82, 126], [0, 420, 86, 130]]
    array = json.loads((tmp_path / "a.zarr" / "0" / "zarr.json").read_text())
    assert array["dimension_names"] == ["c", "z", "y", "x"]


def test_ome_04_metadata(tmp_path: Path) -> None:
    create_pyramid(f"zarr2://{tmp_path}/a.zarr", label_info(voxel_size_nm=None, offset_voxels=(0, 0, 0)), FACTORS)
    (multiscale,) = json.loads((tmp_path / "a.zarr" / ".zattrs").read_text())["multiscales"]
    assert multiscale["version"] == "0.4"
    assert multiscale["axes"] == [{"name": name, "type": "space"} for name in "zyx"]
    assert multiscale["datasets"][1]["coordinateTransformations"][0]["scale"] == [1, 2, 2]
    assert json.loads((tmp_path / "a.zarr" / "0" / ".zarray").read_text())["dimension_separator"] == "/"
    assert open_volume(f"{tmp_path}/a.zarr", level=1).info.voxel_size_nm is None


def test_interrupted_creation_is_completed(tmp_path: Path) -> None:
    import shutil

    url = f"{tmp_path}/a.zarr"
    create_pyramid(url, label_info(), FACTORS)
    shutil.rmtree(tmp_path / "a.zarr" / "0")
    with pytest.raises(NotFound, match="names the array '0', which is not there"):
        open_volume(url)
    levels = create_pyramid(url, label_info(), FACTORS, exists="reuse")
    assert not levels[0].read(levels[0].box).any()


def foreign_pyramid(path: Path, axes: list[dict[str, Any]], shape: tuple[int, ...], **transform: Any) -> zarr.Group:
    step = transform.get("transforms") or [{"type": "scale", "scale": [1.0] * (len(shape) - 3) + [0.2, 0.1, 0.1]}]
    datasets = [{"path": "s0", "coordinateTransformations": step}]
    multiscales = [{"version": "0.5", "axes": axes, "datasets": datasets}]
    group = zarr.create_group(str(path), attributes={"ome": {"version": "0.5", "multiscales": multiscales}})
    array = group.create_array("s0", shape=shape, dtype="uint16", chunks=shape)
    array[...] = np.arange(np.prod(shape)).reshape(shape)
    return group


def micrometre_axes(names: str) -> list[dict[str, Any]]:
    return [{"name": name, **({"unit": "micrometer"} if name in "zyx" else {})} for name in names]


def test_foreign_ome_with_time_and_channel(tmp_path: Path) -> None:
    foreign_pyramid(tmp_path / "a.zarr", micrometre_axes("tczyx"), (1, 2, 3, 4, 5))
    volume = open_volume(tmp_path / "a.zarr")
    assert volume.info.shape == (3, 4, 5)
    assert volume.info.channels == 2
    assert volume.info.voxel_size_nm == pytest.approx((200, 100, 100))
    box = Box((1, 1, 1), (3, 3, 3))
    expected = np.arange(120).reshape(2, 3, 4, 5)[:, 1:3, 1:3, 1:3]
    np.testing.assert_array_equal(volume.read(box), expected)


def test_foreign_ome_of_one_time_point_and_no_channel(tmp_path: Path) -> None:
    foreign_pyramid(tmp_path / "a.zarr", micrometre_axes("tzyx"), (1, 3, 4, 5))
    volume = open_volume(tmp_path / "a.zarr")
    assert volume.info.axes == ("z", "y", "x")
    np.testing.assert_array_equal(volume.read(volume.box), np.arange(60).reshape(3, 4, 5))


def test_several_time_points_are_refused(tmp_path: Path) -> None:
    foreign_pyramid(tmp_path / "a.zarr", micrometre_axes("tzyx"), (2, 3, 4, 5))
    with pytest.raises(InvalidVolume, match="expected one time point"):
        open_volume(tmp_path / "a.zarr")


def test_other_axis_orders_are_refused(tmp_path: Path) -> None:
    foreign_pyramid(tmp_path / "a.zarr", micrometre_axes("xyz"), (3, 4, 5))
    with pytest.raises(InvalidVolume, match="expected axes z, y, x, got x, y, z"):
        open_volume(tmp_path / "a.zarr")
    zarr.create_array(str(tmp_path / "b.zarr"), shape=(3, 4, 5), dtype="u1", dimension_names=("x", "y", "z"))
    with pytest.raises(InvalidVolume, match="expected axes z, y, x, got x, y, z"):
        open_volume(tmp_path / "b.zarr")


def test_translation_becomes_an_offset(tmp_path: Path) -> None:
    transforms = [
        {"type": "scale", "scale": [0.2, 0.1, 0.1]},
        {"type": "translation", "translation": [2.0, 0.3, 0.0]},
    ]
    foreign_pyramid(tmp_path / "a.zarr", micrometre_axes("zyx"), (3, 4, 5), transforms=transforms)
    assert open_volume(tmp_path / "a.zarr").info.offset_voxels == (10, 3, 0)


def test_voxel_size_and_offset_of_a_foreign_array(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attributes = {"resolution": [40, 4, 4], "offset": [1480, 3644, 3645]}
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(3, 4, 5), dtype="u1", attributes=attributes)
    info = open_volume(tmp_path / "a.zarr").info
    assert info.voxel_size_nm == (40, 4, 4)
    assert info.offset_voxels == (37, 911, 911)
    assert "not a multiple of the voxel size" in caplog.text


def test_a_prefix_without_a_telling_name(tmp_path: Path) -> None:
    create_volume(f"zarr://{tmp_path}/image", label_info())
    assert open_volume(tmp_path / "image").format == "zarr"
    with pytest.raises(NotFound, match="no volume is there"):
        open_volume(tmp_path / "nothing")
    with pytest.raises(InvalidInput, match="expected a name that says the format"):
        create_volume(tmp_path / "other", label_info())


def test_group_without_multiscales_lists_its_arrays(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    group.create_array("raw", shape=(3, 4, 5), dtype="u1")
    with pytest.raises(InvalidVolume, match="its arrays: raw"):
        open_volume(tmp_path / "a.zarr")
    assert open_volume(tmp_path / "a.zarr" / "raw").info.shape == (3, 4, 5)
    with pytest.raises(InvalidVolume, match="its arrays: raw"):
        create_volume(tmp_path / "a.zarr", label_info(), exists="replace")


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4, 5, 6)])
def test_other_dimensions_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), shape=shape, dtype="u1")
    with pytest.raises(InvalidVolume, match="expected"):
        open_volume(tmp_path / "a.zarr")


def test_big_endian_and_fortran_order_read_as_native(tmp_path: Path) -> None:
    array = np.arange(60, dtype=">u4").reshape(3, 4, 5)
    stored = zarr.create_array(str(tmp_path / "a.zarr"), shape=array.shape, dtype=">u4", zarr_format=2, order="F")
    stored[...] = array
    found = open_volume(tmp_path / "a.zarr").read(Box((0, 1, 0), (3, 4, 5)))
    assert found.dtype == np.dtype("uint32")
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, array[:, 1:])


def test_zarr_2_has_no_shards(tmp_path: Path) -> None:
    with pytest.raises(InvalidVolume, match="zarr 2 has no shards"):
        create_volume(f"zarr2://{tmp_path}/a.zarr", label_info(shard_shape=(32, 32, 32)))


def test_labels_compress(tmp_path: Path) -> None:
    volume = create_volume(f"{tmp_path}/a.zarr", label_info(shape=(64, 64, 64), chunk_shape=(32, 32, 32)))
    blocks = np.arange(1, 65, dtype=np.uint64).reshape(4, 4, 4) * np.uint64(2**40 + 77)
    array = np.kron(blocks, np.ones((16, 16, 16), np.uint64))
    volume.write(volume.box, array)
    size = sum(file.stat().st_size for file in (tmp_path / "a.zarr").rglob("*") if file.is_file())
    assert size < array.nbytes / 50


@pytest.mark.parametrize("name", ["zarr", "precomputed"])
def test_a_petavoxel_opens_and_reads_like_a_small_volume(tmp_path: Path, name: str) -> None:
    huge = {"shape": (100_000,) * 3, "dtype": np.uint8, "voxel_size_nm": (8.0, 8.0, 8.0), "chunk_shape": (32,) * 3}
    shard = {"shard_shape": (256,) * 3} if name == "zarr" else {}
    url = f"{name}://{tmp_path}/huge"
    info = VolumeInfo(**huge, **shard)  # type: ignore[arg-type]
    created = create_volume(url, info)
    box = Box((90_000, 50_000, 70_007), (90_040, 50_030, 70_050))
    array = np.random.default_rng(0).integers(0, 255, box.shape, dtype=np.uint8)
    created.write(box, array)
    start = time.perf_counter()
    volume = open_volume(url)
    np.testing.assert_array_equal(volume.read(box), array)
    assert not volume.read(Box((0, 0, 0), (64, 64, 64))).any()
    assert time.perf_counter() - start < 2
    assert sum(1 for file in tmp_path.rglob("*") if file.is_file()) < 32


def write_every_third(url: str, which: int) -> None:
    volume = open_volume(url, "r+")
    for number, chunk in enumerate(ChunkGrid(volume.box, volume.info.write_shape or (1, 1, 1))):
        if number % 3 == which:
            volume.write(chunk.box, np.full(chunk.box.shape, number + 1, volume.info.dtype))


@pytest.mark.parametrize("name", ["a.zarr", "a.h5:/labels"])
def test_processes_write_side_by_side(tmp_path: Path, name: str) -> None:
    shards = {} if ":" in name else {"shard_shape": (16, 32, 16)}
    url = f"{tmp_path}/{name}"
    volume = create_volume(url, label_info(shape=(40, 50, 33), **shards))
    volume.read(volume.box)  # a volume in use survives the fork
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_every_third, args=(url, which)) for which in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    found = volume.read(volume.box)
    for number, chunk in enumerate(ChunkGrid(volume.box, volume.info.write_shape or (1, 1, 1))):
        assert (found[chunk.box.slices()] == number + 1).all()


def test_forked_child_reads_an_open_volume(tmp_path: Path) -> None:
    volume = create_volume(f"{tmp_path}/a.zarr", label_info())
    volume.write(volume.box, np.full(volume.info.shape, 5, np.uint64))
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=lambda: results.put(int(volume.read(volume.box).sum())))
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0
    assert results.get() == 5 * 20 * 33 * 40


@pytest.mark.parametrize("consolidated", [False, True])
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("path", ["../secret.zarr", "0/../../secret.zarr", "{0}/secret.zarr", "file://{0}/secret.zarr"])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_levels_do_not_leave_the_volume(path: str, version: int, consolidated: bool, tmp_path: Path) -> None:
    prefix, path = "zarr2://" if version == 2 else "", path.format(tmp_path)
    secret = create_volume(f"{prefix}{tmp_path}/secret.zarr", label_info())
    secret.write(secret.box, np.full(secret.info.shape, 7, np.uint64))
    create_pyramid(f"{prefix}{tmp_path}/a.zarr", label_info(), [])
    if consolidated:
        zarr.consolidate_metadata(tmp_path / "a.zarr", zarr_format=version)  # type: ignore[arg-type]
    open_volume(f"{prefix}{tmp_path}/a.zarr").close()
    files = [tmp_path / "a.zarr" / name for name in (".zattrs", ".zmetadata", "zarr.json")]
    for file in (file for file in files if file.exists()):
        text = file.read_text()
        assert '"path": "0"' in text
        for before, after in (
            ('"path": "0"', f'"path": "{path}"'),
            ('"0": {', f'"{path}": {{'),
            ('"0/.z', f'"{path}/.z'),
        ):
            text = text.replace(before, after)
        file.write_text(text)
    with pytest.raises((NotFound, StorageFailed)):
        open_volume(f"{prefix}{tmp_path}/a.zarr")
