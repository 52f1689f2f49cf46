"""Precomputed volumes against cloud-volume, tensorstore's own sharded writer, and the format's text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts

from infra.volumes import VolumeInfo, create_pyramid, create_volume, open_volume
from models.errors import InvalidVolume, NotFound
from models.geometry import Box, ChunkGrid


def image_info(**changes: Any) -> VolumeInfo:
    given: dict[str, Any] = {
        "shape": (20, 33, 40),
        "dtype": np.uint8,
        "voxel_size_nm": (40.0, 4.0, 8.0),
        "offset_voxels": (10, 20, 30),
        "chunk_shape": (16, 8, 12),
    }
    return VolumeInfo(**{**given, **changes})


def random_labels(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(0).integers(2**60, 2**60 + 50, shape, dtype=np.uint64)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::FutureWarning")
def test_cloud_volume_reads_what_we_write(tmp_path: Path) -> None:
    from cloudvolume import CloudVolume

    labels = random_labels((20, 33, 40))
    create_volume(f"precomputed://{tmp_path}/labels", image_info(dtype=np.uint64)).write(image_info().box, labels)
    cloud = CloudVolume(f"file://{tmp_path}/labels", progress=False)
    assert cloud.info["type"] == "segmentation"
    assert cloud.resolution.tolist() == [8, 4, 40]
    assert cloud.voxel_offset.tolist() == [30, 20, 10]
    found = np.asarray(cloud[30:70, 20:53, 10:30])
    np.testing.assert_array_equal(found[..., 0].transpose(2, 1, 0), labels)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::FutureWarning")
def test_we_read_what_cloud_volume_writes(tmp_path: Path) -> None:
    from cloudvolume import CloudVolume

    xyz = np.random.default_rng(0).integers(0, 255, (40, 33, 20), dtype=np.uint8)
    CloudVolume.from_numpy(
        xyz,
        vol_path=f"file://{tmp_path}/image",
        resolution=(8, 4, 40),
        voxel_offset=(3, 2, 1),
        chunk_size=(16, 16, 16),
        compress=False,
        progress=False,
    )
    volume = open_volume(tmp_path / "image")
    assert volume.format == "precomputed"
    assert volume.info.voxel_size_nm == (40, 4, 8)
    assert volume.info.offset_voxels == (1, 2, 3)
    assert volume.info.chunk_shape == (16, 16, 16)
    np.testing.assert_array_equal(volume.read(volume.box), xyz.transpose(2, 1, 0))


def test_info_object(tmp_path: Path) -> None:
    attributes = {"mesh": "mesh", "skeletons": "skeletons", "model": "tiny"}
    create_pyramid(
        f"precomputed://{tmp_path}/a", image_info(dtype=np.uint64, attributes=attributes), [(1, 2, 2), (2, 2, 2)]
    )
    stored = json.loads((tmp_path / "a" / "info").read_text())
    assert stored["mesh"] == "mesh"
    assert stored["skeletons"] == "skeletons"
    assert [scale["key"] for scale in stored["scales"]] == ["8_4_40", "16_8_40", "32_16_80"]
    assert [scale["size"] for scale in stored["scales"]] == [[40, 33, 20], [20, 17, 20], [10, 9, 10]]
    assert [scale["voxel_offset"] for scale in stored["scales"]] == [[30, 20, 10], [15, 10, 10], [7, 5, 5]]
    assert {scale["encoding"] for scale in stored["scales"]} == {"compressed_segmentation"}
    coarse = open_volume(f"precomputed://{tmp_path}/a", level=2)
    assert coarse.info.voxel_size_nm == (80, 16, 32)
    assert coarse.info.attributes == attributes
    with pytest.raises(NotFound, match="expected a level from 0 to 2"):
        open_volume(f"precomputed://{tmp_path}/a", level=3)


def test_levels_are_written_apart(tmp_path: Path) -> None:
    levels = create_pyramid(f"precomputed://{tmp_path}/a", image_info(), [(1, 2, 2)])
    for level in levels:
        level.write(level.box, np.full(level.info.shape, level.level + 1, np.uint8))
    for number in (0, 1):
        found = open_volume(f"precomputed://{tmp_path}/a", level=number)
        assert (found.read(found.box) == number + 1).all()


def test_sharded_volumes_are_read(tmp_path: Path) -> None:
    sharding = {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": 3,
        "hash": "identity",
        "minishard_bits": 1,
        "shard_bits": 2,
        "minishard_index_encoding": "gzip",
        "data_encoding": "gzip",
    }
    store = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{tmp_path}/a/"},
            "multiscale_metadata": {"data_type": "uint64", "num_channels": 1, "type": "segmentation"},
            "scale_metadata": {
                "size": [40, 33, 20],
                "resolution": [8, 4, 40],
                "chunk_size": [16, 16, 16],
                "encoding": "compressed_segmentation",
                "compressed_segmentation_block_size": [8, 8, 8],
                "sharding": sharding,
            },
            "create": True,
        }
    ).result()
    labels = random_labels((20, 33, 40))
    store[..., 0].write(labels.transpose(2, 1, 0)).result()
    box = Box((3, 4, 5), (19, 33, 31))
    np.testing.assert_array_equal(open_volume(tmp_path / "a").read(box), labels[box.slices()])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"voxel_size_nm": None}, "needs a voxel size"),
        ({"dtype": np.float64}, "precomputed holds uint8"),
    ],
)
def test_what_precomputed_cannot_store(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidVolume, match=message):
        create_volume(f"precomputed://{tmp_path}/a", image_info(**changes))
    assert not (tmp_path / "a" / "info").exists()


def test_memory_is_refused() -> None:
    with pytest.raises(InvalidVolume, match="precomputed cannot lie in memory://"):
        create_volume("precomputed://memory://a", image_info())
    with pytest.raises(InvalidVolume, match="precomputed cannot lie in memory://"):
        open_volume("precomputed://memory://a")


def test_broken_info(tmp_path: Path) -> None:
    (tmp_path / "info").write_text('{"scales": [{"size": [1, 2]}], "data_type": "uint8"}')
    with pytest.raises(InvalidVolume, match="expected"):
        open_volume(f"precomputed://{tmp_path}")
    (tmp_path / "info").write_text("[]")
    with pytest.raises(InvalidVolume, match="expected the info of a precomputed volume"):
        open_volume(f"precomputed://{tmp_path}")


@pytest.mark.parametrize(
    ("shape", "dtype"), [((20, 33, 40), "uint64"), ((130, 16, 200), "uint64"), ((9, 9, 9), "uint8")]
)
def test_shards_are_written_whole_and_read_by_tensorstore(shape: Any, dtype: str, tmp_path: Path) -> None:
    given = image_info(shape=shape, dtype=dtype, chunk_shape=(8, 8, 8), shard_shape=(32, 32, 32))
    volume = create_volume(f"precomputed://{tmp_path}/v", given)
    values = np.random.default_rng(0).integers(0, 9, shape).astype(dtype)
    boxes = list(ChunkGrid(volume.box, volume.write_shape))
    for chunk in boxes:
        volume.write(chunk.box, np.ascontiguousarray(values[chunk.box.slices()]))
    assert len(list((tmp_path / "v").rglob("*.shard"))) == len(boxes)
    spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{tmp_path}/v/"}}
    found = np.asarray(ts.open(spec).result().read().result())
    np.testing.assert_array_equal(found[..., 0].transpose(2, 1, 0), values)
    again = create_volume(f"precomputed://{tmp_path}/v", given, exists="reuse")
    np.testing.assert_array_equal(again.read(again.box), values)


@pytest.mark.parametrize("key", ["../secret/8_4_40", "../../{name}/secret/8_4_40", "a/../../secret/8_4_40"])
def test_scales_outside_the_volume(key: str, tmp_path: Path) -> None:
    url = f"precomputed://{tmp_path}/secret"
    image = np.random.default_rng(0).integers(1, 255, (20, 33, 40), dtype=np.uint8)
    create_volume(url, image_info()).write(image_info().box, image)
    assert not open_volume(url).reaches_out
    stored = json.loads((tmp_path / "secret" / "info").read_text())
    stored["scales"] = [stored["scales"][0], {**stored["scales"][0], "key": key.format(name=tmp_path.name)}]
    (tmp_path / "secret" / "info").unlink()
    (tmp_path / "secret" / "8_4_40").mkdir(exist_ok=True)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "info").write_text(json.dumps(stored))
    assert not open_volume(f"precomputed://{tmp_path}/a").reaches_out
    leaving = open_volume(f"precomputed://{tmp_path}/a", level=1)
    assert leaving.reaches_out
    np.testing.assert_array_equal(leaving.read(leaving.box), image)


@pytest.mark.parametrize("key", ["/secret", "//secret", "file:///secret", "gs://bucket/secret"])
def test_scales_with_absolute_keys(key: str, tmp_path: Path) -> None:
    create_volume(f"precomputed://{tmp_path}/a", image_info()).close()
    stored = json.loads((tmp_path / "a" / "info").read_text())
    stored["scales"][0]["key"] = key
    (tmp_path / "a" / "info").write_text(json.dumps(stored))
    assert open_volume(f"precomputed://{tmp_path}/a").reaches_out
