"""What a replica writes and refuses to read, without a server."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile

from infra.volumes import Volume, VolumeInfo, create_volume, open_volume
from models.catalog import Model
from models.errors import AccessDenied, RunConflict, StorageFailed
from models.geometry import Box
from services.endpoints.catalog import Entry
from services.endpoints.config import ServeConfig
from services.endpoints.schemas import Reference
from services.endpoints.worker import Answer, Loaded, Place, Worker

SHAPE = (6, 7, 8)
IMAGE = np.random.default_rng(0).integers(1, 255, SHAPE, dtype=np.uint8)
PLACE = Place(Box((1, 2, 3), (51, 52, 53)), (99, 99, 99), (40.0, 4.0, 4.0))
LABELS = np.random.default_rng(0).integers(1, 2**60, PLACE.box.shape, dtype=np.uint64)
LABELLED = Answer(LABELS, LABELS.shape, "uint64", "fp32", PLACE)
BOX = "0:6,0:7,0:8"


@contextmanager
def _full_disk() -> Iterator[None]:
    """A limit on file sizes makes the operating system refuse bytes as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("prefix", ["", "zarr2://", "precomputed://"])
def test_what_cannot_be_written_leaves_nothing(prefix: str, model: Model, tmp_path: Path) -> None:
    worker = Worker(ServeConfig(outputs=(str(tmp_path),)))
    output = f"{prefix}{tmp_path}/{'labels' if prefix else 'labels.zarr'}"
    with _full_disk(), pytest.raises(StorageFailed):
        worker.write_labels(model.card, LABELLED, output)
    assert list(tmp_path.iterdir()) == []
    worker.write_labels(model.card, LABELLED, output)
    with open_volume(output) as written:
        np.testing.assert_array_equal(written.read(written.box), LABELS)


@pytest.mark.parametrize("name", ["a.h5:/labels", "a.tif", "a.npy"])
def test_files_that_cannot_be_filled_make_room(
    name: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Volume, box: Box, array: Any) -> None:
        raise StorageFailed("the disk is full")

    worker = Worker(ServeConfig(outputs=(str(tmp_path),)))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["older"] = IMAGE
    with monkeypatch.context() as patched:
        patched.setattr(Volume, "write", fail)
        with pytest.raises(StorageFailed, match="full"):
            worker.write_labels(model.card, LABELLED, f"{tmp_path}/{name}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
    worker.write_labels(model.card, LABELLED, f"{tmp_path}/{name}")
    with open_volume(f"{tmp_path}/{name}") as written:
        np.testing.assert_array_equal(written.read(written.box), LABELS)
    with open_volume(f"{tmp_path}/a.h5:/older") as older:
        np.testing.assert_array_equal(older.read(older.box), IMAGE)


def test_what_was_there_before_stays(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(ServeConfig(outputs=(str(tmp_path),)))
    output = f"{tmp_path}/labels.zarr"
    worker.write_labels(model.card, LABELLED, output)
    with _full_disk(), pytest.raises(RunConflict, match="already there"):
        worker.write_labels(model.card, LABELLED, output)
    monkeypatch.setattr(worker, "_free_output", lambda url: url)  # another request makes it meanwhile
    with pytest.raises(ValueError, match="already there"):
        worker.write_labels(model.card, LABELLED, output)
    with open_volume(output) as written:
        np.testing.assert_array_equal(written.read(written.box), LABELS)


def _external_hdf5(folder: Path, outside: Path) -> str:
    IMAGE.tofile(outside / "raw.bin")
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("x", SHAPE, np.uint8, external=[(str(outside / "raw.bin"), 0, IMAGE.nbytes)])
    return f"{folder}/a.h5:/x"


def _virtual_hdf5(folder: Path, outside: Path) -> str:
    with h5py.File(outside / "b.h5", "w") as file:
        file["raw"] = IMAGE
    layout = h5py.VirtualLayout(SHAPE, np.uint8)
    layout[:] = h5py.VirtualSource(outside / "b.h5", "raw", SHAPE)
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    return f"{folder}/a.h5:/x"


def _precomputed(folder: Path, outside: Path) -> str:
    info = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint8"), voxel_size_nm=(10, 10, 10))
    with create_volume(f"precomputed://{outside}/secret", info) as volume:
        volume.write(volume.box, IMAGE)
    stored = json.loads((outside / "secret" / "info").read_text())
    stored["scales"][0]["key"] = f"../../{outside.name}/secret/10_10_10"
    (folder / "a").mkdir()
    (folder / "a" / "info").write_text(json.dumps(stored))
    return f"precomputed://{folder}/a"


def _ome_tiff(folder: Path, outside: Path) -> str:
    tifffile.imwrite(outside / "b.tif", IMAGE, photometric="minisblack", metadata=None)
    sizes = f'SizeX="{SHAPE[2]}" SizeY="{SHAPE[1]}" SizeZ="{SHAPE[0]}" SizeC="1" SizeT="1"'
    ome = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" {sizes}><Channel ID="Channel:0:0"/>'
        f'<TiffData IFD="0" PlaneCount="{SHAPE[0]}">'
        f'<UUID FileName="../{outside.name}/b.tif">urn:uuid:2</UUID></TiffData></Pixels></Image></OME>'
    )
    tifffile.imwrite(folder / "a.tif", IMAGE[:1] * 0, photometric="minisblack", description=ome, metadata=None)
    return f"{folder}/a.tif"


@pytest.fixture(scope="module")
def loaded(model: Model) -> Loaded:
    return Loaded(Entry(model.card, str(model.folder)), ServeConfig(threads=1))


@pytest.mark.filterwarnings("ignore:.*reading array from closed file")
@pytest.mark.parametrize("make", [_external_hdf5, _virtual_hdf5, _precomputed, _ome_tiff])
def test_volumes_that_reach_out_of_the_prefixes(
    make: Any, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, outside = tmp_path / "volumes", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    url = make(folder, outside)
    with open_volume(url) as volume:
        np.testing.assert_array_equal(volume.read(volume.box), IMAGE, "the command line may")
    monkeypatch.setattr(Volume, "read", None)
    with pytest.raises(AccessDenied, match="other files"):
        Worker(ServeConfig(volumes=(str(folder),))).read(loaded, Reference(volume=url, box=BOX, any_voxel_size=True))


def test_volumes_of_one_piece_are_read(loaded: Loaded, tmp_path: Path) -> None:
    worker = Worker(ServeConfig(volumes=(str(tmp_path),)))
    info = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint8"), voxel_size_nm=(10, 10, 10))
    for url in (f"{tmp_path}/a.h5:/x", f"precomputed://{tmp_path}/a", f"{tmp_path}/a.tif", f"{tmp_path}/a.zarr"):
        with create_volume(url, info) as volume:
            volume.write(volume.box, IMAGE)
        np.testing.assert_array_equal(worker.read(loaded, Reference(volume=url, box=BOX)).image, IMAGE)
