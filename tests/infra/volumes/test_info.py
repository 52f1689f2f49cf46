from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.settings import Settings
from infra.volumes import VolumeInfo, open_volume
from infra.volumes.location import Location
from infra.volumes.pyramid import pyramid_levels
from models.errors import InvalidInput, InvalidVolume


def given(**changes: Any) -> dict[str, Any]:
    return {"shape": (4, 5, 6), "dtype": "uint8", **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (4, 5)}, "shape of a volume: expected three integers"),
        ({"shape": (4, 0, 6)}, "of at least 1"),
        ({"dtype": "complex64"}, "dtype: expected one of"),
        ({"dtype": "S3"}, "dtype: expected one of"),
        ({"dtype": "nonsense"}, "dtype: expected a number type"),
        ({"channels": 0}, "channels: expected None or at least 1"),
        ({"voxel_size_nm": (1, 2)}, "voxel_size_nm: expected three numbers"),
        ({"voxel_size_nm": (1, 2, 0)}, "expected numbers above 0"),
        ({"voxel_size_nm": (1, 2, float("nan"))}, "expected numbers above 0"),
        ({"affinity_offsets": ((-1, 0, 0),)}, r"affinity_offsets: expected one per channel \(None\), got 1"),
        ({"channels": 2, "affinity_offsets": ((-1, 0, 0),)}, r"expected one per channel \(2\), got 1"),
        ({"chunk_shape": (4, 4, 0)}, "chunk_shape"),
        ({"shard_shape": (4, 4, 4)}, "expected multiples of chunk_shape None"),
        ({"chunk_shape": (4, 4, 4), "shard_shape": (8, 8, 6)}, r"expected multiples of chunk_shape \(4, 4, 4\)"),
        ({"attributes": {"a": {1, 2}}}, "a mapping that JSON can hold"),
        ({"attributes": {"a": float("nan")}}, "a mapping that JSON can hold"),
    ],
)
def test_impossible_infos(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidVolume, match=message):
        VolumeInfo(**given(**changes))


def test_document_round_trip() -> None:
    info = VolumeInfo(
        **given(
            channels=2, voxel_size_nm=(40, 4, 4), offset_voxels=(1, 2, 3), affinity_offsets=((-1, 0, 0), (0, -3, 0))
        )
    )
    bare = VolumeInfo(**given(channels=2))
    assert bare.with_document(info.document(), "x") == info
    with pytest.raises(InvalidVolume, match="expected axes 'zyx', metadata says 'czyx'"):
        VolumeInfo(**given()).with_document(info.document(), "x")
    assert hash(info) == hash(bare.with_document(info.document(), "x"))


@pytest.mark.parametrize(
    ("url", "scheme", "path", "format_", "member"),
    [
        ("/data/a.zarr", "file", "/data/a.zarr", "zarr", None),
        ("file:///data/a.zarr/labels/", "file", "/data/a.zarr/labels", "zarr", None),
        ("gs://bucket/run/a.zarr/", "gs", "bucket/run/a.zarr", "zarr", None),
        ("zarr2://s3://bucket/a", "s3", "bucket/a", "zarr2", None),
        ("precomputed://gs://bucket/a", "gs", "bucket/a", "precomputed", None),
        ("memory://a", "memory", "a", None, None),
        ("/d/a.h5:/volumes/raw", "file", "/d/a.h5", "hdf5", "/volumes/raw"),
        ("/d/A.HDF:raw", "file", "/d/A.HDF", "hdf5", "raw"),
        ("/d/a.npz:labels", "file", "/d/a.npz", "npz", "labels"),
        ("/d/a:b.tiff", "file", "/d/a:b.tiff", "tiff", None),
    ],
)
def test_locations(url: str, scheme: str, path: str, format_: str | None, member: str | None) -> None:
    location = Location.parse(url)
    assert (location.scheme, location.path, location.format, location.member) == (scheme, path, format_, member)
    assert Location.parse(str(location)) == location


@pytest.mark.parametrize("url", ["http://host/a.zarr", "gs://", "", "zarr://"])
def test_impossible_locations(url: str) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        Location.parse(url)


def test_relative_paths_survive_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.zeros((2, 3, 4), np.uint8))
    volume = open_volume(Path("a.npy"))
    monkeypatch.chdir("/")
    assert os.path.isabs(volume.url)
    assert open_volume(volume.url).identity() == volume.identity()


def test_pyramid_levels() -> None:
    info = VolumeInfo(**given(shape=(5, 9, 16), voxel_size_nm=(40, 4, 4), offset_voxels=(1, -3, 8)))
    levels, totals = pyramid_levels(info, [(1, 2, 2), (2, 2, 2)])
    assert totals == [(1, 1, 1), (1, 2, 2), (2, 4, 4)]
    assert [level.shape for level in levels] == [(5, 9, 16), (5, 5, 8), (3, 3, 4)]
    assert [level.offset_voxels for level in levels] == [(1, -3, 8), (1, -2, 4), (0, -1, 2)]
    assert levels[2].voxel_size_nm == (80, 16, 16)
    with pytest.raises(InvalidInput, match="factor of level 2"):
        pyramid_levels(info, [(1, 2, 2), (2, 0, 2)])


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETAVOXEL_STORAGE_TIMEOUT_S", "7")
    settings = Settings()
    assert settings.storage_timeout_s == 7
    assert settings.timeout_s(3_000_000) == 10
    with pytest.raises(ValueError, match="frozen"):
        settings.storage_timeout_s = 3  # type: ignore[misc]


def test_wrong_mode(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="expected mode 'r' or"):
        open_volume(tmp_path / "a.zarr", "w")  # type: ignore[arg-type]
