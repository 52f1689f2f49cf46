"""An array that vanishes while it is open is an error, a piece that was never written is zeros."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_bucket import Fault

from infra.settings import Settings
from infra.volumes import Volume, VolumeInfo, create_pyramid, create_volume, open_volume
from infra.volumes.location import Location
from infra.volumes.metering import metered
from infra.volumes.presence import has_blank_piece
from infra.volumes.stores import Objects
from models.errors import StorageFailed
from models.geometry import Box

SHAPE = (20, 33, 40)
INFO = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint32"), voxel_size_nm=(8.0, 8.0, 8.0), chunk_shape=(16, 16, 16))
SHARDED = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint32"), chunk_shape=(16, 16, 16), shard_shape=(32, 32, 32))
WHOLE = Box.from_shape(SHAPE)
METADATA = {"": "zarr.json", "zarr2://": ".zarray", "precomputed://": "info"}


def filled(url: str, info: VolumeInfo = INFO) -> Volume:
    create_volume(url, info).write(WHOLE, np.full(SHAPE, 7, np.uint32))
    return open_volume(url, "r+")


@pytest.mark.parametrize(("prefix", "info"), [("", INFO), ("", SHARDED), ("zarr2://", INFO), ("precomputed://", INFO)])
def test_a_folder_that_vanishes(tmp_path: Path, prefix: str, info: VolumeInfo) -> None:
    volume = filled(f"{prefix}{tmp_path}/a.zarr", info)
    shutil.rmtree(tmp_path / "a.zarr")
    with pytest.raises(StorageFailed, match="gone since the volume was opened"):
        volume.read(Box((0, 0, 0), (3, 4, 5)))
    for box in (WHOLE, Box((1, 1, 1), (3, 4, 5))):
        with pytest.raises(StorageFailed, match="gone since the volume was opened, nothing is written"):
            volume.write(box, np.ones(box.shape, np.uint32))
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("prefix", ["", "precomputed://"])
def test_a_bucket_prefix_that_is_emptied(gcs_bucket: str, prefix: str) -> None:
    volume = filled(f"{prefix}{gcs_bucket}/a.zarr")
    Objects(Location.parse(f"{gcs_bucket}/a.zarr"), Settings()).delete_all()
    with pytest.raises(StorageFailed, match="gone since the volume was opened"):
        volume.read(WHOLE)


def test_an_amazon_prefix_that_is_emptied(s3_bucket: str) -> None:
    volume = filled(f"{s3_bucket}/a.zarr")
    Objects(Location.parse(f"{s3_bucket}/a.zarr"), Settings()).delete_all()
    with pytest.raises(StorageFailed, match="gone since the volume was opened"):
        volume.read(WHOLE)


@pytest.mark.parametrize("prefix", ["", "precomputed://"])
def test_a_bucket_that_is_not_found_any_more(faulty_google: Any, prefix: str) -> None:
    volume = filled(f"{prefix}{faulty_google.url}/a.zarr")
    faulty_google.proxy.faults = [Fault("gone")]
    with pytest.raises(StorageFailed, match="gone since the volume was opened"):
        volume.read(WHOLE)
    faulty_google.proxy.faults = []
    assert (volume.read(WHOLE) == 7).all()


@pytest.mark.parametrize("prefix", METADATA)
def test_an_array_that_becomes_another(tmp_path: Path, prefix: str) -> None:
    volume = filled(f"{prefix}{tmp_path}/a.zarr")
    create_volume(f"{prefix}{tmp_path}/a.zarr", replace(INFO, shape=(20, 33, 41)), exists="replace")
    with pytest.raises(StorageFailed, match="changed since the volume was opened"):
        volume.read(WHOLE)
    (tmp_path / "a.zarr" / METADATA[prefix]).write_bytes(b"{}")
    with pytest.raises(StorageFailed, match="changed since the volume was opened"):
        volume.read(WHOLE)


@pytest.mark.parametrize("prefix", ["", "zarr2://"])
def test_attributes_may_change_meanwhile(tmp_path: Path, prefix: str) -> None:
    create_volume(f"{prefix}{tmp_path}/a.zarr", INFO)
    volume = open_volume(f"{prefix}{tmp_path}/a.zarr")
    document = tmp_path / "a.zarr" / ("zarr.json" if not prefix else ".zattrs")
    content = json.loads(document.read_text())
    (content["attributes"] if not prefix else content)["comment"] = "seen"
    document.write_text(json.dumps(content))
    assert not volume.read(WHOLE).any()


@pytest.mark.parametrize("fill", [np.nan, 0.5])
def test_other_fill_values(tmp_path: Path, fill: float) -> None:
    import zarr

    zarr.create_array(str(tmp_path / "a.zarr"), shape=(4, 5, 6), chunks=(2, 2, 2), dtype="f4", fill_value=fill)
    found = open_volume(tmp_path / "a.zarr").read(Box.from_shape((4, 5, 6)))
    np.testing.assert_array_equal(found, np.full((4, 5, 6), fill, np.float32))


def test_levels_of_a_pyramid_are_told_apart(tmp_path: Path) -> None:
    levels = create_pyramid(f"{tmp_path}/a.zarr", INFO, [(2, 2, 2)])
    shutil.rmtree(tmp_path / "a.zarr" / "1")
    assert not levels[0].read(WHOLE).any()
    with pytest.raises(StorageFailed, match=r"a\.zarr/1/zarr\.json: gone"):
        levels[1].read(levels[1].box)


@pytest.mark.parametrize("prefix", ["", "precomputed://"])
def test_what_is_not_missing_costs_no_request(faulty_google: Any, prefix: str) -> None:
    url = f"{prefix}{faulty_google.url}/a.zarr"
    create_volume(url, INFO).write(WHOLE, np.full(SHAPE, 7, np.uint32))
    volume = open_volume(url)
    volume.read(WHOLE)
    faulty_google.proxy.forget()
    volume.read(WHOLE)
    pieces = 2 * 3 * 3
    assert len(faulty_google.proxy.seen()) == pieces
    with open_volume(url, "r+") as again:
        again.write(Box((0, 0, 0), (16, 16, 16)), np.zeros((16, 16, 16), np.uint32))
    faulty_google.proxy.forget()
    with metered() as requests:
        assert not volume.read(Box((0, 0, 0), (16, 16, 16))).any()
    assert requests["get"] == len(faulty_google.proxy.seen()) == 2


def test_blank_pieces() -> None:
    box, piece = Box((3, 0, 5), (9, 8, 13)), (4, 4, 4)
    found = np.ones(box.shape, np.uint8)
    assert not has_blank_piece(found, box, piece)
    found[0, 0, 0] = 0
    assert not has_blank_piece(found, box, piece)
    found[:1, :4, :3] = 0  # the part of piece (0, 0, 1) that the box shows
    assert has_blank_piece(found, box, piece)
    channels = np.stack([found, np.ones_like(found)])
    assert not has_blank_piece(channels, box, piece)
    assert has_blank_piece(np.stack([found, found]), box, piece)
