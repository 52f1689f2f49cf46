"""Endpoints under load while models roll out, replicas are killed and the bucket fails: every reply is compared.

`pytest -m slow -s tests/benchmarks/test_endpoint_chaos.py` prints the tables; `PETAVOXEL_CHAOS_S` is how many seconds
it takes (default 1800), and `PETAVOXEL_CHAOS_LOG` a file for all that was seen. Faults come one by one. The last third
has only roll-outs of models and failing buckets, so that processes live long enough to show a leak.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from bucket_servers import GoogleServer, google_environment
from compared_load import ComparedLoad, Question
from faulty_bucket import Fault, FaultyBucket
from numpy.typing import NDArray
from served_head import ServedHead

from infra.objects import Folder
from infra.volumes import VolumeInfo, create_volume, open_volume
from models.catalog import CARD_NAME, Model, Segmentation
from models.geometry import Box
from services.endpoints.segmentation import segment_box
from services.predict import Predictor

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SECONDS = float(os.environ.get("PETAVOXEL_CHAOS_S", "1800"))
CALM_S = 60.0
"""Without faults, at the beginning."""
OUTAGE_S = 8.0
RECOVERED_WITHIN_S = 30.0
WINDOW_S = 10.0
SHAPE, BOX = (18, 20, 22), Box((3, 4, 5), (17, 22, 25))
STORED = (28, 30, 32)
RAW = "application/octet-stream"
HEADERS = {"Content-Type": RAW, "Accept": RAW, "X-Shape": ",".join(map(str, SHAPE)), "X-Dtype": "uint8"}
BUCKET = "gs://chaos"
SETTINGS = Segmentation(low=0.02, high=0.95, threshold=0.45, basin_voxels=20, basin_affinity=0.1)


class Versions:
    """Versions of one model that answer differently, and what each must answer."""

    def __init__(self, model: Model, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._rng = np.random.default_rng(0)
        self.image = self._rng.integers(0, 256, SHAPE, dtype=np.uint8)
        self.stored = self._rng.integers(0, 256, STORED, dtype=np.uint8)
        self.newest = 0
        self._wanted: dict[tuple[str, str], NDArray[Any]] = {}

    def roll_out(self) -> None:
        """Put the next version into the folder, and take the one before the last out of it."""
        number, card = self.newest + 1, self._model.card
        scale = card.normalisation.scale * (1 + 0.1 * (number % 7) + 0.001 * number)
        card = replace(card, name="chaos", version=str(number), normalisation=replace(card.normalisation, scale=scale))
        making = self._folder.parent / f"making-{number}"
        making.mkdir()
        shutil.copy(self._model.onnx_path, making / card.file.name)
        (making / CARD_NAME).write_text(card.to_json())
        self._compute(str(number), Predictor(making, precision="fp32", threads=1))
        making.rename(self._folder / f"chaos-{number}")
        self.newest = number
        shutil.rmtree(self._folder / f"chaos-{number - 2}", ignore_errors=True)

    def wanted(self, kind: str, version: str) -> NDArray[Any]:
        """The array that a version must answer to a kind of question."""
        return self._wanted[kind, version]

    def _compute(self, version: str, predictor: Predictor) -> None:
        patch = predictor.predict(self.image)
        boxed = predictor.predict_box(lambda box: self.stored[box.slices()], STORED, BOX)
        offsets, whole = predictor.card.output.offsets, Box.from_shape(SHAPE)
        self._wanted["patch", version] = patch
        self._wanted["box", version] = boxed
        self._wanted["patch labels", version] = segment_box(patch, offsets, whole, SHAPE, SETTINGS)
        self._wanted["box labels", version] = segment_box(boxed, offsets, BOX, STORED, SETTINGS)


def _questions(versions: Versions) -> list[Question]:
    settings = {"model": "chaos"} | {name: str(value) for name, value in asdict(SETTINGS).items()}
    reference = {"model": "chaos", "volume": f"{BUCKET}/in/em.zarr", "box": str(BOX)}
    body = versions.image.tobytes()

    def same(kind: str) -> Callable[[httpx.Response], bool]:
        def check(reply: httpx.Response) -> bool:
            wanted = versions.wanted(kind, reply.headers["x-model-version"])
            if reply.headers["content-type"] == RAW:
                return reply.content == wanted.tobytes()
            return bool(np.array_equal(np.load(io.BytesIO(reply.content), allow_pickle=False), wanted))

        return check

    def stored(reply: httpx.Response) -> bool:
        answer = reply.json()
        with open_volume(answer["output"]) as volume:
            found = volume.read(volume.box)
        Folder(f"{BUCKET}/out").remove(answer["output"].rpartition("/")[2])  # else the emulator slows down as it fills
        return bool(np.array_equal(found, versions.wanted("box", answer["version"])))

    def write(client: httpx.Client) -> httpx.Response:
        output = f"{BUCKET}/out/{uuid.uuid4().hex}.zarr"
        return client.post("/v1/boundary", json=reference | {"output": output})

    def patch(route: str, query: dict[str, str]) -> Callable[[httpx.Client], httpx.Response]:
        return lambda client: client.post(route, content=body, headers=HEADERS, params=query)

    def box(route: str, more: dict[str, Any]) -> Callable[[httpx.Client], httpx.Response]:
        return lambda client: client.post(route, json=reference | more)

    return [
        Question("patch", patch("/v1/boundary", {"model": "chaos"}), same("patch"), 5),
        Question("patch labels", patch("/v1/segment", settings), same("patch labels"), 2),
        Question("box", box("/v1/boundary", {}), same("box"), 2),
        Question("box labels", box("/v1/segment", asdict(SETTINGS)), same("box labels"), 1),
        Question("written", write, stored, 0.5),
    ]


@dataclass
class Chaos:
    """What does harm, one at a time; each returns when it is over."""

    head: ServedHead
    bucket: FaultyBucket
    versions: Versions
    config: dict[str, Any]
    done: list[tuple[str, float, float]] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(1))

    def run(self, kind: str) -> None:
        """One fault, by name."""
        began = time.monotonic()
        if kind == "new version":
            self.versions.roll_out()
        elif kind == "new options":
            self.config["max_queued_requests"] += 1
            self.head.deploy(self.config)
        elif kind.startswith("kill "):
            role = kind.removeprefix("kill ")
            victims = [pid for pid, name in self.head.processes().items() if name == role]
            psutil.Process(self.rng.choice(victims)).kill()
        else:
            name = kind.removeprefix("bucket ")
            self.bucket.faults = [Fault("status", status=503) if name == "503" else Fault(name)]  # type: ignore[arg-type]
            time.sleep(OUTAGE_S)
            self.bucket.faults = []
        self.done.append((kind, began, time.monotonic()))


KILLS = ("new version", "kill Models", "bucket 503", "kill Segmenters", "new options", "bucket reset", "kill Ingress")
LEAKS = ("new version", "bucket 503", "new version", "bucket stall", "new version", "bucket reset")


class Memory:
    """Samples the private memory of Serve's processes every few seconds; a context manager."""

    def __init__(self, head: ServedHead, every_s: float = 5.0) -> None:
        self.samples: list[tuple[float, dict[int, tuple[str, int]]]] = []
        self.loads: list[float] = []
        self._head, self._every_s, self._stop = head, every_s, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _sample(self) -> None:
        while not self._stop.wait(self._every_s):
            found = {}
            for pid, role in self._head.processes().items():
                try:
                    found[pid] = (role, psutil.Process(pid).memory_full_info().uss)
                except psutil.Error:
                    continue
            self.samples.append((time.monotonic(), found))
            self.loads.append(os.getloadavg()[0])


@pytest.fixture(scope="module")
def google() -> Iterator[GoogleServer]:
    with GoogleServer() as server, pytest.MonkeyPatch.context() as environment:
        server.make_bucket("chaos")
        for name, value in google_environment(server.url).items():
            environment.setenv(name, value)
        yield server


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(100.0, id="short", marks=pytest.mark.timeout(400)),
        pytest.param(SECONDS, id="whole", marks=pytest.mark.timeout(int(SECONDS) + 600)),
    ],
)
def test_no_request_is_lost_or_answered_wrongly(
    seconds: float, google: GoogleServer, model: Model, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    versions = Versions(model, folder)
    versions.roll_out()
    url = f"{BUCKET}/in/em.zarr"
    info = VolumeInfo(shape=STORED, dtype=np.dtype(np.uint8), voxel_size_nm=(10, 10, 10), chunk_shape=(16, 16, 16))
    with create_volume(url, info) as volume:
        volume.write(volume.box, versions.stored)
    config: dict[str, Any] = {
        "models": [str(model.folder)],
        "model_folder": str(folder),
        "rescan_s": 0.5,
        "models_per_replica": 2,
        "replicas": 2,
        "threads": 1,
        "precision": "fp32",
        "volumes": [f"{BUCKET}/in"],
        "outputs": [f"{BUCKET}/out"],
        "request_timeout_s": 30.0,
        "drain_timeout_s": 20.0,
        "max_queued_requests": 32,
    }
    with FaultyBucket(google.url) as bucket:
        with pytest.MonkeyPatch.context() as environment:
            patience = {"PETAVOXEL_STORAGE_TIMEOUT_S": "10", "PETAVOXEL_STORAGE_REQUEST_TIMEOUT_S": "3"}
            for name, value in (google_environment(bucket.url) | patience).items():
                environment.setenv(name, value)
            head = ServedHead(cpus=8)
        with head:
            head.deploy(config)
            head.wait_for_replicas(180)
            chaos = Chaos(head, bucket, versions, config)
            with Memory(head) as memory, ComparedLoad(head.url, _questions(versions), 4, 0.1) as load:
                begin = _torment(chaos, seconds)
            log = _table(load, chaos, memory, begin)
    _judge(load, log, seconds)


def _torment(chaos: Chaos, seconds: float) -> float:
    """Faults until `seconds` have passed; returns when the load was warm."""
    short = seconds < 600
    calm_s, every_s = (25.0, 25.0) if short else (CALM_S, 55.0)
    begin = time.monotonic() + min(10.0, calm_s / 2)
    end = time.monotonic() + seconds
    time.sleep(calm_s)
    first = itertools.cycle(("new version", "kill Models", "bucket 503") if short else KILLS)
    last = itertools.cycle(LEAKS)
    while (left := end - time.monotonic()) > every_s - OUTAGE_S:
        following = time.monotonic() + every_s
        chaos.run(next(first) if short or left > seconds / 3 else next(last))
        time.sleep(max(0.0, min(following, end) - time.monotonic()))
    return begin


def _p99(times: list[float]) -> float:
    return float(np.quantile(times, 0.99)) if times else float("nan")


def _table(load: ComparedLoad, chaos: Chaos, memory: Memory, begin: float) -> dict[str, Any]:
    """What happened, printed, and kept as JSON where `PETAVOXEL_CHAOS_LOG` says."""
    asked, faults = sorted(load.asked, key=lambda one: one.began), chaos.done
    calm = [one.seconds for one in asked if begin <= one.began < faults[0][1] - 1 and one.outcome == "right"]
    base = _p99(calm)
    rows = []
    ends = [start for _, start, _ in faults[1:]] + [asked[-1].began + 1]
    for (kind, start, stop), until in zip(faults, ends, strict=True):
        recovered = 0.0
        for low in np.arange(stop, until - WINDOW_S, WINDOW_S):
            inside = [one for one in asked if low <= one.began + one.seconds < low + WINDOW_S]
            slow = _p99([one.seconds for one in inside]) > 2 * base
            if not inside or slow or any(one.outcome != "right" for one in inside):
                recovered = float(low + WINDOW_S - stop)
        after = [one.seconds for one in asked if stop + RECOVERED_WITHIN_S <= one.began < until]
        rows.append((kind, start, stop, recovered, _p99(after), dict(load.count(start, until))))
        print(f"{start - begin:6.0f} s {kind:15s} again as before after {recovered:4.0f} s; p99 later "
              f"{1000 * rows[-1][4]:5.0f} ms; {rows[-1][5]}")  # fmt: skip
    statuses = sorted({(one.status, one.outcome) for one in asked})
    print({f"{s} {o}": sum((one.status, one.outcome) == (s, o) for one in asked) for s, o in statuses})
    print(f"calm p50 {1000 * float(np.median(calm)):.0f} p99 {1000 * base:.0f} ms; {len(asked)} requests; "
          f"load {min(memory.loads):.0f} to {max(memory.loads):.0f}")  # fmt: skip
    growth = _growth(memory)
    for role, (early, late) in growth.items():
        print(f"{role}: {early / 1e6:.0f} MB, later {late / 1e6:.0f} MB")
    log = {
        "rows": rows,
        "base": base,
        "growth": growth,
        "asked": [(one.began, one.seconds, one.kind, one.status, one.outcome, one.text) for one in asked],
        "loads": memory.loads,
        "memory": [(moment, {str(pid): found for pid, found in seen.items()}) for moment, seen in memory.samples],
    }
    if path := os.environ.get("PETAVOXEL_CHAOS_LOG"):
        Path(path).write_text(json.dumps(log))
    return log


def _growth(memory: Memory) -> dict[str, tuple[float, float]]:
    """Private bytes by role, of the processes that lived in the last quarter: at its beginning and at its end."""
    samples = memory.samples[-max(4, len(memory.samples) // 4) :]
    lasting = set.intersection(*(set(seen) for _, seen in samples))
    part = max(1, len(samples) // 4)
    found: dict[str, tuple[float, float]] = {}
    for pid in lasting:
        role = samples[0][1][pid][0]
        early, late = (
            float(np.median([seen[pid][1] for _, seen in some])) for some in (samples[:part], samples[-part:])
        )
        before = found.get(role, (0.0, 0.0))
        found[role] = (before[0] + early, before[1] + late)
    return found


def _judge(load: ComparedLoad, log: dict[str, Any], seconds: float) -> None:
    count = load.count()
    assert count["right"] > 5 * seconds
    assert count["wrong"] == 0, [one for one in load.asked if one.outcome == "wrong"][:3]
    assert count["lost"] == 0, [one for one in load.asked if one.outcome == "lost"][:3]
    quiet = max(log["loads"]) < 2 * (os.cpu_count() or 1)  # else neighbours decide how long requests take
    for kind, _, _, recovered, _, outcomes in log["rows"]:
        assert not quiet or recovered <= RECOVERED_WITHIN_S, kind
        if kind in ("new version", "new options"):
            assert set(outcomes) == {"right"}, kind
    if seconds >= 600:
        early, late = (sum(both[i] for both in log["growth"].values()) for i in (0, 1))
        assert late < 1.05 * early
