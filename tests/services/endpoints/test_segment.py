from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from pipeline_runs import run_in_process

from infra.volumes import open_volume
from models.catalog import Model
from models.geometry import Box
from models.segmentation.whole import segment_whole
from services.pipelines.preparation import Request
from services.predict import Predictor
from services.run import AgglomerationOptions, SegmentOptions, WatershedOptions

pytestmark = pytest.mark.cluster

BOX = Box((11, 3, 7), (30, 44, 33))
SETTINGS = {"low": 0.02, "high": 0.95, "threshold": 0.45, "basin_voxels": 20, "basin_affinity": 0.1}
RAW = {"Content-Type": "application/octet-stream", "X-Shape": "50,61,33", "X-Dtype": "uint8"}


def _labels(reply: httpx.Response) -> NDArray[np.uint64]:
    assert reply.status_code == 200, reply.text
    found: NDArray[np.uint64] = np.load(io.BytesIO(reply.content), allow_pickle=False)
    assert found.dtype == np.uint64
    return found


def test_a_box_is_segmented_as_the_pipeline_does(
    client: httpx.Client, model: Model, volume_url: str, outputs: Path, tmp_path: Path
) -> None:
    output = str(outputs / "labels.zarr")
    body = {"volume": volume_url, "box": str(BOX)} | SETTINGS
    found = _labels(client.post("/v1/segment", json=body))
    written = client.post("/v1/segment", json=body | {"output": output})
    assert written.status_code == 201, written.text
    assert written.json()["shape"] == list(BOX.shape)
    assert written.json()["dtype"] == "uint64"
    again = client.post("/v1/segment", json=body | {"output": output})
    assert (again.status_code, again.json()["type"]) == (409, "/problems/run-conflict")
    with open_volume(output) as volume:
        np.testing.assert_array_equal(volume.read(volume.box), found)
        assert volume.info.offset_voxels == (16, 9, 14)
        assert volume.info.voxel_size_nm == (10, 10, 10)

    options = SegmentOptions(
        watershed=WatershedOptions(low=SETTINGS["low"], high=SETTINGS["high"]),
        agglomeration=AgglomerationOptions(
            threshold=SETTINGS["threshold"],
            basin_voxels=int(SETTINGS["basin_voxels"]),
            basin_affinity=SETTINGS["basin_affinity"],
        ),
        skeletons=None,
    )
    out = tmp_path / "run"
    run_in_process(Request(volume_url, str(out), str(model.folder), options, box=str(BOX), chunk=(10, 16, 12)))
    with open_volume(str(out / "segmentation.zarr")) as volume:
        np.testing.assert_array_equal(volume.read(volume.box), found)
    assert 5 < np.unique(found).size < found.size / 10


def test_a_patch_is_segmented(client: httpx.Client, predictor: Predictor, image: NDArray[np.uint8]) -> None:
    reply = client.post("/v1/segment?threshold=0.6&basin_voxels=5", content=image.tobytes(), headers=RAW)
    found = _labels(reply)
    affinities = predictor.predict(image)
    whole = segment_whole(affinities, low=1, high=254, basin_voxels=5, basin_affinity=1, floor=0.6)
    np.testing.assert_array_equal(found, whole.segments_at(0.6))
    assert reply.headers["x-shape"] == "50,61,33"
    assert reply.headers["x-dtype"] == "uint64"
    assert reply.headers["x-axes"] == "zyx"
    assert "x-affinity-offsets" not in reply.headers
    raw = client.post(
        "/v1/segment?threshold=0.6&basin_voxels=5",
        content=image.tobytes(),
        headers=RAW | {"Accept": "application/octet-stream"},
    )
    assert raw.content == found.tobytes()


def test_what_cannot_be_segmented(client: httpx.Client, volume_url: str, tmp_path: Path) -> None:
    def problem(reply: httpx.Response, status: int, text: str) -> None:
        assert reply.status_code == status, reply.text
        assert text in reply.json()["detail"]

    def by_reference(**body: Any) -> httpx.Response:
        return client.post("/v1/segment", json={"volume": volume_url, "box": str(BOX)} | body)

    problem(by_reference(threshold=1.5), 422, "threshold")
    problem(by_reference(low=0.9, high=0.5), 422, "low must not exceed high")
    problem(by_reference(basin_voxels=-1), 422, "basin_voxels")
    problem(by_reference(mean=1), 422, "mean")
    problem(by_reference(box="0:101,0:100,0:100"), 413, "at most 1000000 voxels")
    problem(by_reference(output=str(tmp_path / "x.zarr")), 403, "--outputs")
    problem(by_reference(volume="/etc/x.zarr"), 403, "--volumes")
    large = RAW | {"X-Shape": "101,100,100"}
    problem(client.post("/v1/segment", content=bytes(101 * 10**4), headers=large), 413, "at most 1000000 voxels")
    problem(client.post("/v1/segment?threshold=x", content=b"", headers=RAW), 422, "threshold")
    problem(client.get("/v1/segment"), 405, "Not Allowed")
