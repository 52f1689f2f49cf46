"""What a worker tells of its chunks, without Ray."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from infra.attempt import attempt_figures
from infra.chunk_worker import Rules, Worker
from models.errors import InvalidModel, StorageFailed
from models.geometry import Chunk

RULES = Rules(tries=3, timeout_s=30, pause_s=0)


def told(apply: Callable[[Chunk], dict[str, Any]], chunks: int = 1, first: int = 1) -> list[dict[str, Any]]:
    rows = [json.dumps({"index": [i, 0, 0], "box": f"{i}:{i + 1},0:2,0:3", "try": first}) for i in range(chunks)]
    answers = list(Worker(lambda: apply, (), RULES)({"row": np.array(rows)}))
    return [message for answer in answers for message in json.loads(str(answer["row"][0]))]


def test_a_chunk_is_announced_before_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.chunk_worker.QUIET_S", 0.0)
    messages = told(lambda chunk: {"voxels": chunk.box.size}, 2)
    kinds = [(message["kind"], message["chunk"]) for message in messages]
    assert kinds == [("started", "0_0_0"), ("done", "0_0_0"), ("started", "1_0_0"), ("done", "1_0_0")]
    assert [message["alone"] for message in messages if message["kind"] == "started"] == [True, True]


def test_quick_chunks_share_their_rows() -> None:
    rows = [json.dumps({"index": [i, 0, 0], "box": f"{i}:{i + 1},0:2,0:3", "try": 1}) for i in range(200)]
    answers = [
        json.loads(str(answer["row"][0])) for answer in Worker(lambda: lambda _: {}, (), RULES)({"row": np.array(rows)})
    ]
    assert len(answers) < 20
    begun, done = set(), set()
    for message in (message for answer in answers for message in answer):
        (begun if message["kind"] == "started" else done).add(message["chunk"])
        assert done <= begun
    assert len(done) == 200


def test_a_slow_chunk_among_quick_ones_is_told_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.chunk_worker.QUIET_S", 0.5)

    def apply(chunk: Chunk) -> dict[str, Any]:
        time.sleep(0.7 if chunk.index[0] == 5 else 0)
        return {}

    rows = [json.dumps({"index": [i, 0, 0], "box": f"{i}:{i + 1},0:2,0:3", "try": 1}) for i in range(20)]
    answers = [json.loads(str(a["row"][0])) for a in Worker(lambda: apply, (), RULES)({"row": np.array(rows)})]
    (telling,) = (answer for answer in answers if any(m["kind"] == "done" and m["chunk"] == "5_0_0" for m in answer))
    assert telling[-1]["chunk"] == "5_0_0"


def test_storage_failures_are_tried_again() -> None:
    tries = []

    def apply(chunk: Chunk) -> dict[str, Any]:
        tries.append(attempt_figures()["tries"])
        if len(tries) < 3:
            raise StorageFailed("bucket: the store failed")
        return {"voxels": chunk.box.size}

    done = told(apply, first=4)[-1]
    assert tries == [4, 5, 6]
    assert (done["kind"], done["report"]["tries"], done["report"]["voxels"]) == ("done", 6, 6)


@pytest.mark.parametrize(
    ("error", "tries", "cause"),
    [
        (StorageFailed("x.zarr: damaged"), 3, "x.zarr: damaged (tried 3 times)"),
        (InvalidModel("no card"), 1, "InvalidModel: no card"),
        (ZeroDivisionError("a bug"), 1, "ZeroDivisionError: a bug"),
    ],
)
def test_what_keeps_failing_is_reported_and_the_next_chunk_goes_on(error: Exception, tries: int, cause: str) -> None:
    def apply(chunk: Chunk) -> dict[str, Any]:
        if chunk.index[0] == 0:
            raise error
        return {}

    messages = told(apply, 2)
    assert (messages[1]["kind"], messages[1]["cause"], messages[1]["tries"]) == ("failed", cause, tries)
    assert messages[-1]["kind"] == "done"


def test_a_function_that_cannot_be_made_is_reported_with_the_chunk() -> None:
    def make() -> Callable[[Chunk], dict[str, Any]]:
        raise InvalidModel("no model")

    row = json.dumps({"index": [0, 0, 0], "box": "0:1,0:1,0:1", "try": 1})
    answers = list(Worker(make, (), RULES)({"row": np.array([row])}))
    assert json.loads(str(answers[-1]["row"][0]))[0]["cause"] == "InvalidModel: no model"


def test_a_try_that_takes_too_long_ends_the_process_even_in_native_code() -> None:
    hang = "import ctypes; ctypes.PyDLL(None).sleep(60)"  # holds the interpreter's lock
    code = f"from infra.chunk_worker import time_limit\nwith time_limit(0.5):\n    {hang}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
