"""One contract for every format on every store: each combination subclasses `VolumeContract`."""

from __future__ import annotations

import json
import pickle
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.volumes import Volume, VolumeInfo, create_volume, delete_volume, open_volume
from models.errors import AccessDenied, InvalidVolume, NotFound
from models.geometry import Box

SHAPE = (21, 34, 45)
CHUNK = (8, 16, 12)
NEAREST = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
UNALIGNED = Box((3, 5, 7), (19, 34, 30))


def info(**changes: Any) -> VolumeInfo:
    given: dict[str, Any] = {
        "shape": SHAPE,
        "dtype": np.uint8,
        "voxel_size_nm": (40.0, 4.5, 4.0),
        "offset_voxels": (7, 0, 12),
        "chunk_shape": CHUNK,
    }
    return VolumeInfo(**{**given, **changes})


def random_array(of: VolumeInfo, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    if of.dtype.kind == "f":
        return rng.random(of.array_shape()).astype(of.dtype)
    return rng.integers(0, np.iinfo(of.dtype).max, of.array_shape(), dtype=of.dtype, endpoint=True)


def pickled(volume: Volume) -> Volume:
    again = pickle.loads(pickle.dumps(volume))  # noqa: S301
    assert isinstance(again, Volume)
    return again


class VolumeContract:
    """What holds for all; subclasses say where a new volume of the format lies (`url`)."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        raise NotImplementedError

    def create(self, url: str, of: VolumeInfo) -> Volume:
        return create_volume(url, of)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64, np.float32])
    def test_round_trip(self, url: str, dtype: type) -> None:
        of = info(dtype=dtype)
        array = random_array(of)
        with self.create(url, of) as volume:
            volume.write(volume.box, array)
        with open_volume(url) as again:
            found = again.read(again.box)
            assert found.dtype == of.dtype
            assert found.flags.c_contiguous
            assert found.flags.writeable
            np.testing.assert_array_equal(found, array)
            np.testing.assert_array_equal(again.read(UNALIGNED), array[UNALIGNED.slices()])

    def test_ids_above_2_to_the_53(self, url: str) -> None:
        of = info(dtype=np.uint64, shape=(3, 4, 5), chunk_shape=(3, 4, 5))
        array = np.uint64(2**64 - 1) - np.arange(60, dtype=np.uint64).reshape(3, 4, 5)
        array[0, 0, 0] = 2**53 + 1
        self.create(url, of).write(Box.from_shape((3, 4, 5)), array)
        volume = open_volume(url)
        np.testing.assert_array_equal(volume.read(volume.box), array)

    def test_channels(self, url: str) -> None:
        of = info(channels=3, affinity_offsets=NEAREST)
        array = random_array(of)
        self.create(url, of).write(of.box, array)
        volume = open_volume(url)
        assert volume.info.affinity_offsets == NEAREST
        assert volume.info.axes == ("c", "z", "y", "x")
        np.testing.assert_array_equal(volume.read(UNALIGNED), array[(slice(None), *UNALIGNED.slices())])

    def test_one_channel_stays_an_axis(self, url: str) -> None:
        of = info(channels=1)
        array = random_array(of)
        self.create(url, of).write(of.box, array)
        volume = open_volume(url)
        assert volume.info.channels == 1
        np.testing.assert_array_equal(volume.read(of.box), array)

    def test_partial_writes_leave_the_rest(self, url: str) -> None:
        volume = self.create(url, info())
        whole = np.zeros(SHAPE, np.uint8)
        rng = np.random.default_rng(1)
        for box in (
            UNALIGNED,
            Box((0, 0, 0), (1, 1, 1)),
            Box((20, 33, 40), (21, 34, 45)),
            Box((8, 16, 12), (16, 32, 24)),
        ):
            part = rng.integers(1, 255, box.shape, dtype=np.uint8)
            volume.write(box, part)
            whole[box.slices()] = part
            np.testing.assert_array_equal(volume.read(volume.box), whole)

    def test_strided_input_is_written_as_it_looks(self, url: str) -> None:
        volume = self.create(url, info())
        array = np.asfortranarray(random_array(volume.info))
        volume.write(volume.box, array)
        np.testing.assert_array_equal(volume.read(volume.box), array)

    def test_unwritten_is_zero(self, url: str) -> None:
        self.create(url, info(dtype=np.uint64))
        assert not open_volume(url).read(UNALIGNED).any()

    def test_beyond_the_edge(self, url: str) -> None:
        volume = self.create(url, info())
        array = random_array(volume.info)
        volume.write(volume.box, array)
        beyond = Box((-2, 30, 40), (3, 36, 45))
        with pytest.raises(InvalidVolume, match="-2:3,30:36,40:45 lies beyond the volume's bounds 0:21,0:34,0:45"):
            volume.read(beyond)
        with pytest.raises(InvalidVolume, match="beyond the volume's bounds"):
            volume.write(beyond, np.zeros(beyond.shape, np.uint8))
        expected = np.pad(array, ((2, 0), (0, 2), (0, 0)), constant_values=9)[0:5, 30:36, 40:45]
        np.testing.assert_array_equal(volume.read(beyond, fill=9), expected)
        outside = Box((50, 0, 0), (52, 3, 4))
        np.testing.assert_array_equal(volume.read(outside, fill=1), np.ones((2, 3, 4), np.uint8))

    def test_empty_box(self, url: str) -> None:
        volume = self.create(url, info())
        empty = Box((3, 3, 3), (3, 9, 9))
        assert volume.read(empty).shape == (0, 6, 6)
        volume.write(empty, np.zeros((0, 6, 6), np.uint8))

    @pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.float32, np.bool_])
    def test_wrong_dtype_is_never_cast(self, url: str, dtype: type) -> None:
        volume = self.create(url, info())
        with pytest.raises(InvalidVolume, match="expected dtype uint8"):
            volume.write(volume.box, np.zeros(SHAPE, dtype))

    def test_wrong_shape(self, url: str) -> None:
        volume = self.create(url, info())
        with pytest.raises(InvalidVolume, match=r"expected shape \(21, 34, 45\), got \(34, 21, 45\)"):
            volume.write(volume.box, np.zeros((34, 21, 45), np.uint8))

    def test_reading_mode_refuses_writes(self, url: str) -> None:
        self.create(url, info())
        volume = open_volume(url)
        with pytest.raises(AccessDenied, match="opened for reading"):
            volume.write(volume.box, np.zeros(SHAPE, np.uint8))
        again = open_volume(url, "r+")
        again.write(UNALIGNED, np.ones(UNALIGNED.shape, np.uint8))
        assert again.read(UNALIGNED).all()

    def test_missing(self, url: str) -> None:
        with pytest.raises(NotFound) as caught:
            open_volume(url)
        assert "image" in str(caught.value)

    def test_metadata(self, url: str) -> None:
        attributes = {"model": "tiny", "sha256": "ab" * 32, "nested": {"list": [1, 2.5, None, "µ"]}}
        of = info(attributes=attributes)
        self.create(url, of)
        found = open_volume(url).info
        assert of.difference(found) is None
        assert json.loads(json.dumps(found.attributes)) == attributes
        assert found.axes == ("z", "y", "x")

    def test_given_voxel_size_wins(self, url: str) -> None:
        self.create(url, info())
        volume = open_volume(url, voxel_size_nm=(8, 8, 8))
        assert volume.info.voxel_size_nm == (8.0, 8.0, 8.0)
        assert pickled(volume).info.voxel_size_nm == (8.0, 8.0, 8.0)

    def test_pickle(self, url: str) -> None:
        volume = self.create(url, info())
        array = random_array(volume.info)
        volume.write(volume.box, array)
        volume.close()
        again = pickled(volume)
        assert again.writable
        np.testing.assert_array_equal(again.read(UNALIGNED), array[UNALIGNED.slices()])
        assert not pickled(open_volume(url)).writable

    def test_identity(self, url: str) -> None:
        first = self.create(url, info()).identity()
        assert open_volume(url).identity() == first == open_volume(url).identity()
        assert "uint8" in first
        create_volume(url, info(dtype=np.uint16), exists="replace")
        second = open_volume(url).identity()
        assert second != first

    def test_exists(self, url: str) -> None:
        array = random_array(info())
        self.create(url, info()).write(info().box, array)
        with pytest.raises(InvalidVolume, match="already there"):
            create_volume(url, info())
        reused = create_volume(url, info(), exists="reuse")
        np.testing.assert_array_equal(reused.read(reused.box), array)
        with pytest.raises(InvalidVolume, match="cannot be reused: wanted voxel_size_nm"):
            create_volume(url, info(voxel_size_nm=(1, 2, 3)), exists="reuse")
        replaced = create_volume(url, info(), exists="replace")
        assert not replaced.read(replaced.box).any()

    def test_a_deleted_volume_makes_room(self, url: str) -> None:
        self.create(url, info()).close()
        delete_volume(url)
        for missing in (open_volume, delete_volume):
            with pytest.raises(NotFound):
                missing(url)
        self.create(url, info()).close()


class NoVoxelSizeContract:
    """For formats that can leave the voxel size open."""

    def test_unknown_voxel_size_stays_unknown(self, url: str) -> None:
        create_volume(url, info(voxel_size_nm=None))
        assert open_volume(url).info.voxel_size_nm is None
        assert open_volume(url, voxel_size_nm=(1, 2, 3)).info.voxel_size_nm == (1.0, 2.0, 3.0)


class PrefixContract:
    """For formats whose volume is a prefix full of objects."""

    def test_what_is_no_volume_is_left_alone(self, url: str) -> None:
        from infra.settings import Settings
        from infra.volumes.location import Location
        from infra.volumes.stores import Objects

        objects = Objects(Location.parse(url), Settings())
        objects.write("precious.txt", b"data")
        for exists in ("error", "reuse", "replace"):
            with pytest.raises(InvalidVolume, match="no volume; it is left alone"):
                create_volume(url, info(), exists=exists)  # type: ignore[arg-type]
        assert objects.read("precious.txt") == b"data"

    def test_other_chunks_cannot_be_reused(self, url: str) -> None:
        create_volume(url, info())
        assert open_volume(url).info.chunk_shape == CHUNK
        with pytest.raises(InvalidVolume, match="cannot be reused: wanted chunk_shape"):
            create_volume(url, info(chunk_shape=(4, 4, 4)), exists="reuse")


class TestZarr3(VolumeContract, NoVoxelSizeContract, PrefixContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/image.zarr"


class TestZarr3Sharded(VolumeContract, NoVoxelSizeContract, PrefixContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"{tmp_path}/image.zarr"

    def create(self, url: str, of: VolumeInfo) -> Volume:
        from dataclasses import replace

        z, y, x = of.chunk_shape or (1, 1, 1)
        volume = create_volume(url, replace(of, shard_shape=(2 * z, y, 3 * x)))
        assert volume.info.write_shape == (2 * z, y, 3 * x)
        return volume


class TestZarr2(VolumeContract, NoVoxelSizeContract, PrefixContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"zarr2://{tmp_path}/image.zarr"


class TestZarrMemory(VolumeContract, NoVoxelSizeContract, PrefixContract):
    @pytest.fixture
    def url(self) -> str:
        return f"memory://{uuid.uuid4().hex}/image.zarr"


class TestZarrGoogle(VolumeContract, PrefixContract):
    @pytest.fixture
    def url(self, gcs_bucket: str) -> str:
        return f"{gcs_bucket}/image.zarr"


class TestZarrShardedGoogle(TestZarr3Sharded):
    @pytest.fixture
    def url(self, gcs_bucket: str) -> str:
        return f"{gcs_bucket}/image.zarr"


class TestZarrAmazon(VolumeContract, PrefixContract):
    @pytest.fixture
    def url(self, s3_bucket: str) -> str:
        return f"{s3_bucket}/image.zarr"


def test_shards_on_amazon(s3_bucket: str) -> None:
    of = info(shard_shape=(16, 16, 36))
    array = random_array(of)
    create_volume(f"{s3_bucket}/image.zarr", of).write(of.box, array)
    np.testing.assert_array_equal(open_volume(f"{s3_bucket}/image.zarr").read(UNALIGNED), array[UNALIGNED.slices()])


class TestPrecomputed(VolumeContract, PrefixContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"precomputed://{tmp_path}/image"


class TestPrecomputedGoogle(VolumeContract, PrefixContract):
    @pytest.fixture
    def url(self, gcs_bucket: str) -> str:
        return f"precomputed://{gcs_bucket}/image"


class TestPrecomputedAmazon(VolumeContract, PrefixContract):
    @pytest.fixture
    def url(self, s3_bucket: str) -> str:
        return f"precomputed://{s3_bucket}/image"


class TestHdf5(VolumeContract, NoVoxelSizeContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"{tmp_path}/image.h5:/volumes/raw"


class TestTiff(VolumeContract, NoVoxelSizeContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"{tmp_path}/image.tif"


class TestNpy(VolumeContract, NoVoxelSizeContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"{tmp_path}/image.npy"
