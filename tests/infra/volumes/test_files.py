"""What only single files have: HDF5 as CREMI writes it, TIFF as microscopes write it, .npz, sidecars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile

from infra.volumes import VolumeInfo, create_pyramid, create_volume, open_volume
from models.errors import AccessDenied, InvalidInput, InvalidVolume, NotFound
from models.geometry import Box

ARRAY = np.random.default_rng(0).integers(0, 255, (6, 7, 8), dtype=np.uint8)
BOX = Box((1, 2, 3), (5, 7, 6))


@pytest.fixture
def cremi(tmp_path: Path) -> Path:
    path = tmp_path / "sample.hdf"
    with h5py.File(path, "w") as file:
        raw = file.create_dataset("volumes/raw", data=ARRAY, chunks=(2, 4, 4), compression="gzip")
        raw.attrs["resolution"] = (40.0, 4.0, 4.0)
        labels = file.create_dataset("volumes/labels/neuron_ids", data=ARRAY.astype("u8")[1:])
        labels.attrs["resolution"] = (40.0, 4.0, 4.0)
        labels.attrs["offset"] = (40.0, 8.0, 0.0)
        file.create_dataset("annotations/ids", data=np.arange(5))
    return path


def test_cremi(cremi: Path) -> None:
    raw = open_volume(f"{cremi}:/volumes/raw")
    assert raw.info.voxel_size_nm == (40, 4, 4)
    assert raw.info.chunk_shape == (2, 4, 4)
    np.testing.assert_array_equal(raw.read(BOX), ARRAY[BOX.slices()])
    labels = open_volume(f"{cremi}:volumes/labels/neuron_ids")
    assert labels.info.offset_voxels == (1, 2, 0)
    assert labels.info.dtype == np.uint64


def test_hdf5_says_which_datasets_there_are(cremi: Path) -> None:
    with pytest.raises(NotFound, match=r"no dataset '/volumes/image'; its datasets: .*/volumes/raw"):
        open_volume(f"{cremi}:/volumes/image")
    with pytest.raises(InvalidVolume, match=r"expected a dataset, as in .*its datasets: "):
        open_volume(cremi)
    with pytest.raises(InvalidVolume, match="expected an array of 3"):
        open_volume(f"{cremi}:/annotations/ids")
    with pytest.raises(InvalidVolume, match="expected a dataset"):
        create_volume(cremi.with_name("new.h5"), VolumeInfo(shape=(1, 2, 3), dtype=np.dtype("uint8")))


def test_hdf5_with_one_volume_needs_no_dataset(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("only", data=ARRAY)
        file.create_dataset("table", data=np.arange(3))
    np.testing.assert_array_equal(open_volume(tmp_path / "a.h5").read(BOX), ARRAY[BOX.slices()])


def test_hdf5_stores_cremi_attributes(tmp_path: Path) -> None:
    info = VolumeInfo(shape=(6, 7, 8), dtype=np.dtype("uint8"), voxel_size_nm=(40.0, 4.0, 4.0), offset_voxels=(1, 2, 3))
    create_volume(f"{tmp_path}/a.h5:/raw", info)
    create_volume(f"{tmp_path}/a.h5:/labels", info)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["raw"].attrs["resolution"].tolist() == [40, 4, 4]
        assert file["labels"].attrs["offset"].tolist() == [40, 8, 12]


def check_tiff(path: Path, expected: Any, voxel_size: tuple[float, ...] | None) -> None:
    volume = open_volume(path)
    if voxel_size is None:
        assert volume.info.voxel_size_nm is None
    else:
        assert volume.info.voxel_size_nm == pytest.approx(voxel_size)
    for _ in range(2):
        np.testing.assert_array_equal(volume.read(BOX), expected[(..., *BOX.slices())])
    volume.close()
    with open_volume(path) as again:
        np.testing.assert_array_equal(again.read(again.box), expected)


def test_imagej_tiff(tmp_path: Path) -> None:
    metadata = {"axes": "ZYX", "spacing": 0.04, "unit": "um"}
    tifffile.imwrite(tmp_path / "a.tif", ARRAY, imagej=True, resolution=(250, 200), metadata=metadata)
    check_tiff(tmp_path / "a.tif", ARRAY, (40, 5, 4))


def test_imagej_channels_lie_inside_z(tmp_path: Path) -> None:
    zcyx = np.random.default_rng(1).integers(0, 2**16, (6, 2, 7, 8), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", zcyx, imagej=True, metadata={"axes": "ZCYX"})
    check_tiff(tmp_path / "a.tif", zcyx.transpose(1, 0, 2, 3), None)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_tiff(tmp_path: Path, compression: str | None) -> None:
    metadata = {"axes": "ZYX"}
    for axis, size in zip("ZYX", (0.04, 0.005, 0.004), strict=True):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}  # type: ignore[dict-item]
    tifffile.imwrite(tmp_path / "a.ome.tif", ARRAY, ome=True, metadata=metadata, compression=compression)
    check_tiff(tmp_path / "a.ome.tif", ARRAY, (40, 5, 4))


def test_plain_and_compressed_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ARRAY, photometric="minisblack", metadata=None)
    check_tiff(tmp_path / "a.tif", ARRAY, None)
    tifffile.imwrite(tmp_path / "b.tif", ARRAY, compression="zlib", tile=(16, 16), photometric="minisblack")
    check_tiff(tmp_path / "b.tif", ARRAY, None)
    tifffile.imwrite(tmp_path / "c.tif", ARRAY, byteorder=">", photometric="minisblack")
    check_tiff(tmp_path / "c.tif", ARRAY, None)
    with pytest.raises(AccessDenied, match="uncompressed"):
        open_volume(tmp_path / "b.tif", "r+")


def test_one_page_is_one_section(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", ARRAY[0])
    assert open_volume(tmp_path / "a.tif").info.shape == (1, 7, 8)


def test_colour_tiff_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 7, 8, 3), np.uint8), photometric="rgb")
    with pytest.raises(InvalidVolume, match="expected grey pages"):
        open_volume(tmp_path / "a.tif")


def test_tiff_that_we_write_is_read_by_others(tmp_path: Path) -> None:
    info = VolumeInfo(shape=(6, 7, 8), dtype=np.dtype("uint8"), voxel_size_nm=(40.0, 4.0, 4.0))
    with create_volume(tmp_path / "a.tif", info) as volume:
        volume.write(volume.box, ARRAY)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), ARRAY)


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, raw=ARRAY, labels=ARRAY.astype(np.uint64), scale=np.ones(3))
    volume = open_volume(f"{path}:labels", voxel_size_nm=(8, 8, 8))
    assert volume.info.dtype == np.uint64
    assert volume.info.voxel_size_nm == (8, 8, 8)
    np.testing.assert_array_equal(volume.read(BOX), ARRAY[BOX.slices()])
    assert open_volume(f"{path}:raw").info.voxel_size_nm is None
    with pytest.raises(NotFound, match="no array 'image'; its arrays: labels, raw, scale"):
        open_volume(f"{path}:image")
    with pytest.raises(InvalidVolume, match=r"expected a key.*its arrays: labels, raw, scale"):
        open_volume(path)
    with pytest.raises(AccessDenied, match="read only"):
        open_volume(f"{path}:raw", "r+")
    with pytest.raises(InvalidVolume, match="cannot be written box by box"):
        create_volume(tmp_path / "b.npz", volume.info)
    before = open_volume(f"{path}:raw").identity()
    np.savez(path, raw=ARRAY)
    assert open_volume(path).identity() != before
    np.testing.assert_array_equal(open_volume(path).read(BOX), ARRAY[BOX.slices()])


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    objects = np.empty((2, 2, 2), dtype=object)
    np.savez(tmp_path / "a.npz", raw=objects)
    np.save(tmp_path / "a.npy", objects)
    for name in ("a.npz", "a.npy"):
        with pytest.raises((InvalidVolume, OSError)):
            open_volume(tmp_path / name)


def test_sidecars(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ARRAY)
    assert open_volume(tmp_path / "a.npy").info.voxel_size_nm is None
    sidecar = tmp_path / "a.npy.json"
    sidecar.write_text(json.dumps({"axes": "zyx", "voxel_size_nm": [40, 4, 4]}))
    assert open_volume(tmp_path / "a.npy").info.voxel_size_nm == (40, 4, 4)
    sidecar.write_text(json.dumps({"axes": "xyz"}))
    with pytest.raises(InvalidVolume, match=r"a\.npy\.json: expected axes 'zyx', metadata says 'xyz'"):
        open_volume(tmp_path / "a.npy")
    sidecar.write_text("{")
    with pytest.raises(InvalidVolume, match="expected JSON"):
        open_volume(tmp_path / "a.npy")


def test_fortran_ordered_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(ARRAY))
    found = open_volume(tmp_path / "a.npy").read(BOX)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, ARRAY[BOX.slices()])


def test_npy_on_a_bucket_is_read(gcs_bucket: str) -> None:
    import io

    from infra.settings import Settings
    from infra.volumes.location import Location
    from infra.volumes.stores import Objects

    for name, save in (("a.npy", np.save), ("a.npz", np.savez)):
        buffer = io.BytesIO()
        save(buffer, ARRAY)  # type: ignore[operator]
        Objects(Location.parse(f"{gcs_bucket}/{name}"), Settings()).write("", buffer.getvalue())
        volume = open_volume(f"{gcs_bucket}/{name}")
        np.testing.assert_array_equal(volume.read(BOX), ARRAY[BOX.slices()])
        assert "generation" in volume.identity()
    with pytest.raises(NotFound):
        open_volume(f"{gcs_bucket}/b.npy")


@pytest.mark.parametrize("name", ["a.h5:/raw", "a.tif", "a.npy"])
def test_files_are_not_written_on_buckets(name: str) -> None:
    with pytest.raises((InvalidVolume, NotFound)) as caught:
        create_volume(f"memory://bucket/{name}", VolumeInfo(shape=(2, 3, 4), dtype=np.dtype("uint8")))
    assert "works on local files only" in str(caught.value)
    with pytest.raises(InvalidInput, match="expected zarr or precomputed for a pyramid"):
        create_pyramid(f"memory://bucket/{name}", VolumeInfo(shape=(2, 3, 4), dtype=np.dtype("uint8")), [(2, 2, 2)])
    if name != "a.npy":
        with pytest.raises(InvalidVolume, match="copy the file here first"):
            open_volume(f"memory://bucket/{name}")


@pytest.mark.parametrize("name", ["a.npy", "a.tif", "a.h5:/raw", "a.zarr"])
def test_single_volumes_have_one_level(tmp_path: Path, name: str) -> None:
    create_volume(f"{tmp_path}/{name}", VolumeInfo(shape=(2, 3, 4), dtype=np.dtype("uint8")))
    with pytest.raises(NotFound, match="level 0, asked for level 1"):
        open_volume(f"{tmp_path}/{name}", level=1)


def test_hdf5_voxels_of_other_files(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["raw"] = ARRAY
        file["group/raw"] = ARRAY
    ARRAY.tofile(tmp_path / "raw.bin")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["own"] = ARRAY
        file.create_dataset("external", ARRAY.shape, ARRAY.dtype, external=[(tmp_path / "raw.bin", 0, ARRAY.nbytes)])
        for name, source in (("virtual", tmp_path / "other.h5"), ("view", ".")):
            layout = h5py.VirtualLayout(ARRAY.shape, ARRAY.dtype)
            layout[:] = h5py.VirtualSource(source, "own" if source == "." else "raw", ARRAY.shape)
            file.create_virtual_dataset(name, layout)
        file["link"] = h5py.ExternalLink(tmp_path / "other.h5", "raw")
        file["group"] = h5py.ExternalLink(tmp_path / "other.h5", "group")
    reaching = {"own": False, "external": True, "virtual": True, "view": True}
    for name, expected in reaching.items():
        with open_volume(f"{tmp_path}/a.h5:/{name}") as volume:
            assert volume.reaches_out is expected, name
            np.testing.assert_array_equal(volume.read(volume.box), ARRAY)
    for name in ("link", "group/raw"):
        with pytest.raises(NotFound, match="no dataset"):
            open_volume(f"{tmp_path}/a.h5:/{name}")


def _ome(path: Path, own: int, files: list[tuple[str, int]]) -> None:
    """An OME-TIFF with `own` sections, and sections of other files behind them."""
    depth, height, width = own + sum(count for _, count in files), *ARRAY.shape[1:]
    planes = [f'<TiffData IFD="0" FirstZ="0" PlaneCount="{own}"/>'] if files and own else []
    begin = own
    for number, (name, count) in enumerate(files):
        uuid = f'<UUID FileName="{name}">urn:uuid:{number + 2}</UUID>'
        planes.append(f'<TiffData IFD="0" FirstZ="{begin}" PlaneCount="{count}">{uuid}</TiffData>')
        begin += count
    ome = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="{width}" SizeY="{height}" '
        f'SizeZ="{depth}" SizeC="1" SizeT="1"><Channel ID="Channel:0:0"/>{"".join(planes)}</Pixels></Image></OME>'
    )
    tifffile.imwrite(path, ARRAY[: max(own, 1)], photometric="minisblack", description=ome, metadata=None)


@pytest.mark.parametrize("own", [0, 2], ids=["all", "some"])
@pytest.mark.filterwarnings("ignore:.*reading array from closed file")
def test_tiff_sections_of_other_files(own: int, tmp_path: Path) -> None:
    rest = ARRAY[own:]
    tifffile.imwrite(tmp_path / "other.tif", rest, photometric="minisblack", metadata=None)
    _ome(tmp_path / "a.ome.tif", own, [("other.tif", len(rest))])
    with open_volume(tmp_path / "a.ome.tif") as volume:
        assert volume.reaches_out
        np.testing.assert_array_equal(volume.read(volume.box), ARRAY)
    tifffile.imwrite(tmp_path / "b.ome.tif", ARRAY, ome=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "c.ome.tif", ARRAY, ome=True, metadata={"axes": "ZYX"}, compression="zlib")
    for name in ("b.ome.tif", "c.ome.tif", "other.tif"):
        assert not open_volume(tmp_path / name).reaches_out
