"""Broken requests, some over HTTP and thousands in this process: each gets a reason, and nothing else changes."""

from __future__ import annotations

import asyncio
import gc
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from local_endpoints import local_api, local_client
from malformed_requests import IMAGE, Case, npy, random_cases

from models.catalog import Model
from services.endpoints.bodies import JSON, NPY, RAW
from services.endpoints.config import ServeConfig


def _valid(content: bytes) -> bool:
    """Whether an altered file is still an image of uint8."""
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception:
        return False
    return array.ndim == 3 and array.dtype == np.uint8 and array.size > 0


def _broken_npy(rng: np.random.Generator) -> Iterator[bytes]:
    good = npy()
    for _ in range(40):
        yield good[: rng.integers(0, len(good))]
    for _ in range(60):
        altered = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            altered[rng.integers(0, 90)] = rng.integers(0, 256)
        if not _valid(bytes(altered)):
            yield bytes(altered)
    for text in (
        "{'descr': '|O', 'fortran_order': False, 'shape': (5, 6, 7), }",
        "{'descr': '|V999999999', 'fortran_order': False, 'shape': (5, 6, 7), }",
        "{'descr': [('a', '<u4')], 'fortran_order': False, 'shape': (5, 6, 7), }",
        "{'descr': '|u1', 'fortran_order': 3, 'shape': (5, 6, 7), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-5, 6, 7), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 6, 7.5), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1e9, 6, 7), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "9" * 400 + ", 1, 1), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': 210, }",
        "{'descr': '|u1', 'fortran_order': False}",
        "__import__('os').abort()",
        "(" * 500,
        "-" * 500 + "1",
        "[" * 300 + "]" * 300,
        "",
        "\\N{",
    ):
        header = text.encode().ljust(630) + b"\n"
        yield np.lib.format.MAGIC_PREFIX + b"\x01\x00" + len(header).to_bytes(2, "little") + header + IMAGE.tobytes()
    yield np.lib.format.MAGIC_PREFIX + b"\x02\x00" + b"\xff\xff\xff\x7f" + bytes(200)
    yield np.lib.format.MAGIC_PREFIX + b"\x03\x00" + bytes(200)


def _broken_json(rng: np.random.Generator, volume: str) -> Iterator[bytes]:
    good = {"volume": volume, "box": "0:4,0:4,0:4"}
    values = [
        None,
        0,
        -1,
        1e400,
        True,
        [],
        {},
        "",
        "\ud800",
        "x" * 5000,
        "\u0000",
        ["0:4"] * 3,
        "nan:4,0:4,0:4",
        "9" * 150,
    ]
    for key in ("volume", "box", "model", "level", "voxel_size_nm", "any_voxel_size", "output", "unknown"):
        for value in values:
            if not (value is None and key in ("model", "voxel_size_nm", "output")):
                altered = good | {key: value}
                if key not in ("level", "any_voxel_size") or value not in (0, 1):
                    yield json.dumps(altered).encode()
    text = json.dumps(good).encode()
    for _ in range(20):
        yield text[: rng.integers(0, len(text))]
    yield from (b"[" * 60000, b'{"a":' * 10000, b"\xff\xfe{}", b"null", b'"' + b"\\" * 999, b"1" * 60000)


def _broken_raw(rng: np.random.Generator) -> Iterator[Case]:
    data = IMAGE.tobytes()
    shapes = ("", ",,", "5,6", "5,6,7,1", "5,6,-7", "0,6,7", "5.0,6,7", "5,6,x", "5,6,8", "5,6,6", "9e9,1,1", "²,6,7")
    for shape in (*shapes, "1" * 50, "1" * 5000, ",".join("1" * 200), "99999999999,99999999999,99999999999"):
        yield "/v1/boundary", data, {"X-Shape": shape.encode("ascii", "replace").decode(), "X-Dtype": "uint8"}
    for dtype in (
        "",
        "u1",
        "uint9",
        "object",
        "O",
        "float32",
        "uint16",
        "int8",
        "V8",
        "(3,)u1",
        "uint8,uint8",
        "a" * 3000,
    ):
        yield "/v1/boundary", data, {"X-Shape": "5,6,7", "X-Dtype": dtype}
    for name, value in (
        ("voxel_size_nm", "0,0,0"), ("voxel_size_nm", "inf,nan,1"), ("voxel_size_nm", "a"),
        ("voxel_size_nm", "1" * 999), ("model", "../../etc"), ("model", ""), ("any_voxel_size", "perhaps"),
        ("unknown", "1"), ("shape", "5;6;7"),
    ):  # fmt: skip
        yield f"/v1/boundary?{name}={value}", data, {"X-Shape": "5,6,7", "X-Dtype": "uint8"}
    for _ in range(10):
        yield "/v1/boundary", rng.bytes(int(rng.integers(0, 400)) * 2 + 1), {"X-Shape": "5,6,7", "X-Dtype": "uint8"}


def _cases(volume: str) -> Iterator[Case]:
    rng = np.random.default_rng(20)
    for content in _broken_npy(rng):
        yield "/v1/boundary", content, {"Content-Type": NPY}
    for content in _broken_json(rng, volume):
        yield "/v1/boundary", content, {"Content-Type": JSON}
    for url, content, headers in _broken_raw(rng):
        yield url, content, {"Content-Type": RAW} | headers
    for kind in ("", "*/*", "multipart/form-data", "application/x-www-form-urlencoded", "application/json+x", "\x80"):
        yield "/v1/boundary", rng.bytes(100), {"Content-Type": kind.encode("ascii", "replace").decode()}
    for accept in ("text/html", "application/x-npy;q=0", "application/x-npy;q=x", ";", "application/json"):
        yield "/v1/boundary", npy(), {"Content-Type": NPY, "Accept": accept}


@pytest.mark.cluster
def test_broken_requests_get_reasons(client: httpx.Client, server: Any, volume_url: str) -> None:
    before = server.replicas()
    failures, count = [], 0
    for url, content, headers in _cases(volume_url):
        count += 1
        reply = client.post(url, content=content, headers=headers)
        fine = 400 <= reply.status_code < 500 and reply.headers["content-type"] == "application/problem+json"
        if not fine or not reply.json()["detail"] or "Traceback" in reply.text:
            failures.append((reply.status_code, url, headers, content[:100], reply.text[:300]))
    assert not failures, f"{len(failures)} of {count}: {failures[:5]}"
    assert count >= 200
    for url, content, headers in random_cases(np.random.default_rng(1), volume_url, 300):
        reply = client.post(url, content=content, headers=headers)
        assert _fine(reply), (reply.status_code, url, headers, content[:300], reply.text[:300])
    assert client.get("/readyz").status_code == 200
    assert server.replicas() == before
    assert len(before) == 3
    assert client.post("/v1/boundary", content=npy(), headers={"Content-Type": NPY}).status_code == 200


def _fine(reply: httpx.Response) -> bool:
    """A reply that is no failure of the server, and if it refuses, then with a reason."""
    if reply.status_code < 400:
        return True
    return (
        reply.status_code < 500
        and reply.headers["content-type"] == "application/problem+json"
        and bool(reply.json()["detail"])
        and "Traceback" not in reply.text
    )


def _config(model: Model, volumes: Path) -> ServeConfig:
    return ServeConfig(models=(str(model.folder),), volumes=(str(volumes),), max_bytes=4_000_000)


async def _all_fine(config: ServeConfig, cases: Iterator[Case], every: int) -> tuple[Counter[int], list[int]]:
    """Sends all; returns how often each status came, and the process's memory after each `every` requests."""
    statuses, memory = Counter[int](), []
    async with local_client(local_api(config)) as client:
        for number, (url, content, headers) in enumerate(cases, start=1):
            reply = await client.post(url, content=content, headers=headers)
            assert _fine(reply), (reply.status_code, url, headers, content[:300], reply.text[:300])
            statuses[reply.status_code] += 1
            if number % every == 0:
                gc.collect()
                memory.append(psutil.Process().memory_info().rss)
    return statuses, memory


def test_random_requests(model: Model, volumes: Path, volume_url: str) -> None:
    cases = random_cases(np.random.default_rng(2), volume_url, 600)
    statuses, _ = asyncio.run(_all_fine(_config(model, volumes), cases, 600))
    assert {400, 413, 415, 422} <= set(statuses)
    assert sum(count for status, count in statuses.items() if status >= 400) > 400


@pytest.mark.slow
def test_many_random_requests_and_no_growth(model: Model, volumes: Path, volume_url: str) -> None:
    cases = random_cases(np.random.default_rng(3), volume_url, 12_000)
    statuses, memory = asyncio.run(_all_fine(_config(model, volumes), cases, 3000))
    print(dict(statuses), [f"{rss / 1e6:.0f} MB" for rss in memory])
    assert memory[-1] - memory[0] < 30e6
