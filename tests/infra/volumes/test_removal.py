"""Objects are removed one request each, and what a store refuses to remove is an error."""

from __future__ import annotations

import json
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_bucket import Fault

from infra import objects
from infra.ledger import Ledger
from infra.objects import Folder
from infra.settings import Settings
from infra.volumes.location import Location
from infra.volumes.metering import metered
from infra.volumes.stores import Objects
from models.errors import AccessDenied, StorageFailed
from models.geometry import Box, Chunk

CHUNK = Chunk((0, 0, 0), Box((0, 0, 0), (1, 2, 3)))


@pytest.fixture(params=["disk", "memory", "gcs_bucket", "s3_bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    local = {"disk": str(tmp_path), "memory": f"memory://removal/{tmp_path.name}"}
    return Folder(local.get(request.param) or f"{request.getfixturevalue(request.param)}/out")


@pytest.fixture
def guarded(s3_server: str) -> Iterator[str]:
    """An S3 bucket whose policy denies `s3:DeleteObject`, not more."""
    name = f"guarded-{uuid.uuid4().hex}"
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": f"arn:aws:s3:::{name}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]}).encode()
    for path, body in ((name, b""), (f"{name}?policy", policy)):
        asked = urllib.request.Request(
            f"{s3_server}/{path}", data=body, method="PUT", headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=10):
            pass
    yield f"s3://{name}"
    with urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{name}?policy", method="DELETE"), timeout=10):
        pass


def test_single_objects_are_removed_and_no_others(folder: Folder) -> None:
    for name in ("a", "ab", "b/a", "c"):
        folder.write(name, b"1")
    folder.delete(["a", "nowhere", "no/where", "c", "c"])
    assert folder.names() == ["ab"]
    assert folder.names("b") == ["a"]
    folder.delete([])
    folder.remove("b")
    folder.remove("b")
    assert folder.names("b") == []
    assert folder.names() == ["ab"]


def test_what_is_no_object_is_left(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("b/a", b"1")
    folder.delete(["b", "b/a/c"])
    assert folder.names("b") == ["a"]


def test_a_marker_goes_with_one_request(faulty: Any) -> None:
    ledger = Ledger(Folder(faulty.url), "seams", "k")
    for number in range(5):
        ledger.folder.write(f"progress/seams/{number}_0_0.k.json", b"{}")
    faulty.proxy.forget()
    with metered() as requests:
        ledger.forget(f"{number}_0_0" for number in range(7))
    assert [one.method for one in faulty.proxy.seen()] == ["DELETE"] * 7
    assert (requests["delete"], requests["list"], requests["get"], requests["head"]) == (7, 0, 0, 0)
    assert ledger.markers().done == {}


def test_a_lost_answer_is_asked_for_again(faulty: Any) -> None:
    folder = Folder(faulty.url)
    folder.write("a", b"1")
    faulty.proxy.faults = [Fault("lost", method="DELETE", count=1)]
    folder.delete(["a"])
    assert folder.names() == []


def test_names_are_taken_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_AT_ONCE", 10)
    folder, taken, removed, most = Folder(str(tmp_path)), 0, 0, 0
    lock, delete = threading.Lock(), Objects.delete

    def counted(self: Objects, name: str) -> None:
        nonlocal removed
        delete(self, name)
        with lock:
            removed += 1

    def names() -> Iterator[str]:
        nonlocal taken, most
        for number in range(95):
            folder.write(str(number), b"1")
            taken += 1
            most = max(most, taken - removed)
            yield str(number)

    monkeypatch.setattr(Objects, "delete", counted)
    folder.delete(names())
    assert (folder.names(), removed) == ([], 95)
    assert most <= 10


@pytest.mark.parametrize("status", [403, 503])
def test_a_refused_removal_of_a_marker_is_an_error(faulty: Any, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETAVOXEL_STORAGE_TIMEOUT_S", "2")
    ledger = Ledger(Folder(faulty.url), "seams", "k")
    ledger.mark(CHUNK, [])
    ledger.mark_failed(CHUNK.name, "", "cause")
    faulty.proxy.faults = [Fault("status", method="DELETE", status=status)]
    expected = AccessDenied if status == 403 else StorageFailed
    with pytest.raises(expected, match=rf"{CHUNK.name}\.k\.json"):
        ledger.forget([CHUNK.name])
    with pytest.raises(expected, match=rf"{CHUNK.name}\.failed\.json"):
        ledger.forget_failures([CHUNK.name])
    faulty.proxy.faults = []
    assert (ledger.markers().done, ledger.markers().failed) == ({"k": {CHUNK.name}}, {CHUNK.name})


def test_what_amazon_refuses_to_remove_is_an_error(guarded: str) -> None:
    folder = Folder(f"{guarded}/out")
    folder.write("work/a/b", b"1")
    folder.write("progress/complete.json", b"{}")
    for name in ("work", "work/a/b", "progress/complete.json"):
        with pytest.raises(StorageFailed, match=f"{name}: still there after its removal"):
            folder.remove(name)
    with pytest.raises(StorageFailed, match="still there after its removal"):
        Objects(Location.parse(folder.url), Settings()).delete_all()
    assert folder.names("work/a") == ["b"]
    ledger = Ledger(folder, "seams", "k")
    ledger.mark(CHUNK, [])
    with pytest.raises(AccessDenied, match=rf"{CHUNK.name}\.k\.json"):
        ledger.forget([CHUNK.name])
    assert ledger.markers().done == {"k": {CHUNK.name}}


def test_what_google_refuses_to_remove_is_an_error(faulty_google: Any) -> None:
    folder = Folder(faulty_google.url)
    folder.write("work/a", b"1")
    faulty_google.proxy.faults = [Fault("status", method="DELETE", status=403)]
    with pytest.raises(AccessDenied, match="work"):
        folder.remove("work")
    assert folder.names("work") == ["a"]
