"""The Open Inference Protocol v2, spoken by Triton's own client and by hand."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from models.catalog import Model
from services.predict import Predictor

pytestmark = pytest.mark.cluster

HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="session")
def expected(predictor: Predictor, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return predictor.predict(image)


@pytest.mark.filterwarnings("ignore")  # of the client's own dependencies
def test_tritons_client_works_unchanged(
    server: Any, model: Model, image: NDArray[np.uint8], expected: NDArray[np.uint8]
) -> None:
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

    client = triton.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=60)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small")
    assert client.is_model_ready("small", model.card.version)
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("small", "99")
    assert client.get_server_metadata()["name"] == "petavoxel"
    metadata = client.get_model_metadata("small")
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1]}]
    assert metadata["outputs"] == [{"name": "affinities", "datatype": "UINT8", "shape": [3, -1, -1, -1]}]
    assert [item["name"] for item in client.get_model_repository_index()][:2] == ["small", "small-float"]

    for shape in (image.shape, (1, 1, *image.shape)):
        for binary_in in (True, False):
            for binary_out in (True, False, None):
                tensor = triton.InferInput("image", list(shape), "UINT8")
                tensor.set_data_from_numpy(image.reshape(shape), binary_data=binary_in)
                outputs = None if binary_out is None else [triton.InferRequestedOutput("affinities", binary_out)]
                result = client.infer("small", [tensor], outputs=outputs, request_id="42")
                wanted = expected.reshape((*shape[:-4], *expected.shape)) if len(shape) == 3 else expected[None]
                np.testing.assert_array_equal(result.as_numpy("affinities"), wanted)
                assert result.get_response()["id"] == "42"
                assert result.get_response()["model_version"] == model.card.version
    wrong = triton.InferInput("image", [2, 2, 2], "FP32")
    wrong.set_data_from_numpy(np.zeros((2, 2, 2), np.float32))
    with pytest.raises(InferenceServerException, match="expects dtype uint8"):
        client.infer("small", [wrong])
    with pytest.raises(InferenceServerException, match="this server has small:1"):
        client.infer("nobody", [wrong])
    client.close()


@pytest.mark.filterwarnings("ignore")
def test_floats_through_tritons_client(server: Any, float_model: Model, image: NDArray[np.uint8]) -> None:
    import tritonclient.http as triton

    floats = image.astype(np.float32)
    tensor = triton.InferInput("image", list(floats.shape), "FP32")
    tensor.set_data_from_numpy(floats)
    client = triton.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=60)
    found = client.infer("small-float", [tensor], model_version=float_model.card.version).as_numpy("affinities")
    np.testing.assert_array_equal(found, Predictor(float_model).predict(floats))
    client.close()


def _request(**tensor: Any) -> dict[str, Any]:
    given = {"name": "image", "shape": [2, 2, 2], "datatype": "UINT8", "data": list(range(8))} | tensor
    return {"inputs": [{key: value for key, value in given.items() if value is not None}]}


def test_json_by_hand(client: httpx.Client, predictor: Predictor) -> None:
    image = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    for data in (image.tolist(), image.ravel().tolist()):
        answer = client.post("/v2/models/small/infer", json=_request(data=data))
        assert answer.status_code == 200, answer.text
        output = answer.json()["outputs"][0]
        assert (output["name"], output["datatype"], output["shape"]) == ("affinities", "UINT8", [3, 2, 2, 2])
        assert output["data"] == predictor.predict(image).ravel().tolist()
        assert "id" not in answer.json()


def test_refusals_have_reasons_in_both_forms(client: httpx.Client) -> None:
    def refused(status: int, text: str, **sent: Any) -> None:
        answer = client.post("/v2/models/small/infer", **sent)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert text in answer.json()["error"], answer.text
        assert answer.json()["error"] == answer.json()["detail"]

    refused(400, "JSON", content=b"{")
    refused(422, "inputs", json={})
    refused(422, "called 'image'", json=_request(name="x"))
    refused(422, "datatype", json=_request(datatype="BYTES"))
    refused(422, "expects dtype", json=_request(datatype="INT8"))
    refused(422, "[z, y, x]", json=_request(shape=[8]))
    refused(422, "[z, y, x]", json=_request(shape=[2, 1, 2, 2, 2]))
    refused(422, "at least 1", json=_request(shape=[0, 2, 2], data=[]))
    refused(400, "8 numbers", json=_request(data=[1]))
    refused(400, "data", json=_request(data=[[1, 2], [3]]))
    refused(422, "integers from 0 to 255", json=_request(data=[256] * 8))
    refused(422, "integers from 0 to 255", json=_request(data=[0.5] * 8))
    refused(422, "numbers", json=_request(data=["1"] * 8))
    refused(422, "numbers", json=_request(data=[10**40] * 8))
    refused(413, "at most", json=_request(shape=[10**6] * 3, data=[1]))
    refused(422, "data", json=_request(data=None))
    refused(422, "shared_memory_region", json=_request(parameters={"shared_memory_region": "a"}))
    refused(422, "called 'affinities'", json=_request() | {"outputs": [{"name": "x"}]})
    text = json.dumps(_request(data=None, parameters={"binary_data_size": 8})).encode()
    head = {HEADER: str(len(text))}
    refused(400, "got 7", content=text + bytes(7), headers=head)
    refused(400, "got more", content=text + bytes(9), headers=head)
    refused(400, "header of", content=text, headers={HEADER: "9999"})
    refused(400, HEADER, content=text, headers={HEADER: "-1"})
    refused(413, HEADER, content=text, headers={HEADER: "999999999"})
    refused(415, "gzip", content=text, headers=head | {"Content-Encoding": "gzip"})
    wrong = json.dumps(_request(data=None, parameters={"binary_data_size": 9})).encode()
    refused(400, "8 bytes", content=wrong + bytes(9), headers={HEADER: str(len(wrong))})
    huge = json.dumps(_request(shape=[999, 999, 999], data=None, parameters={"binary_data_size": 999**3})).encode()
    refused(413, "at most 4000000", content=huge + bytes(9), headers={HEADER: str(len(huge))})
    refused(413, "Content-Length", content=b" " * 4_300_000)
    plain = json.dumps(_request()).encode()
    refused(400, "bytes follow", content=plain + b"x", headers={HEADER: str(len(plain))})
    assert client.post("/v2/models/small/infer", content=text + bytes(8), headers=head).status_code == 200


def test_answers_too_large_for_json(client: httpx.Client) -> None:
    shape = [120, 120, 120]
    text = json.dumps(_request(shape=shape, data=None, parameters={"binary_data_size": 120**3})).encode()
    answer = client.post("/v2/models/small/infer", content=text + bytes(120**3), headers={HEADER: str(len(text))})
    assert answer.status_code == 413
    assert "binary_data" in answer.json()["error"]
