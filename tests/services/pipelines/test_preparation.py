"""What is known of a run before anything is computed."""

import logging
import time
from pathlib import Path

import numpy as np
import pytest

from infra.cluster import cluster, largest_memory
from infra.volumes import VolumeInfo, create_volume, open_volume
from models.catalog import Model
from services.pipelines.preparation import Request, check, opened_run, prepare
from services.run import SegmentOptions


def stored(form: str, folder: Path) -> str:
    """A volume below a folder; its URL relative to it."""
    info = VolumeInfo(shape=(24, 26, 28), dtype=np.dtype("uint8"), voxel_size_nm=(10, 10, 10), chunk_shape=(8, 8, 8))
    with create_volume(form.format(folder), info) as volume:
        volume.write(volume.box, np.full(info.shape, 7, np.uint8))
    return form.format(".")


@pytest.mark.parametrize(
    "form",
    [
        "{}/em.zarr",
        "zarr2://{}/em.zarr",
        "zarr3://{}/em",
        "precomputed://{}/em",
        "{}/em.h5:/raw",
        "{}/em.tif",
        "{}/em.npy",
    ],
)
def test_a_relative_image_is_the_same_from_everywhere(
    form: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    image = stored(form, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    run = prepare(check(Request(image, "out", str(model.folder), SegmentOptions(), chunk=(16, 16, 16))))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run.out == str(tmp_path / "here" / "out")
    for known in (run, opened_run(run.out)):
        volume = open_volume(known.image)
        assert volume.identity() == run.image_identity
        assert volume.url == known.image
        assert volume.read(volume.box).min() == 7


@pytest.mark.cluster
@pytest.mark.filterwarnings("default")
def test_a_volume_whose_root_has_no_room_is_announced(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = str(tmp_path / "petavoxel.zarr")
    info = VolumeInfo(
        shape=(100_000,) * 3, dtype=np.dtype("uint8"), voxel_size_nm=(10, 10, 10), chunk_shape=(128, 128, 128)
    )
    create_volume(url, info).close()
    with cluster(cpus=1), caplog.at_level(logging.WARNING):
        for box, warnings in (("0:1024,0:1024,0:1024", 0), (None, 1)):
            out, began = str(tmp_path / f"out{warnings}"), time.monotonic()
            run = prepare(check(Request(url, out, str(model.folder), SegmentOptions(), box=box, chunk=(512, 512, 512))))
            assert time.monotonic() - began < 60
            told = [record.getMessage() for record in caplog.records if "largest node" in record.getMessage()]
            assert len(told) == warnings
        assert run.domain.size == 10**15
        assert "will take about 3720 GB in one worker" in told[0]
        assert f"largest node has {largest_memory() / 1e9:.0f} GB" in told[0]
