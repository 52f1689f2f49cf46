"""Markers say what is done, from what, and why something is done again."""

import json
from pathlib import Path

import pytest

from infra.attempt import attempt
from infra.ledger import Ledger, digest, why_again
from infra.objects import Folder
from infra.written import Written
from models.errors import NotFound, StorageFailed
from models.geometry import Box, Chunk


def chunk(number: int) -> Chunk:
    return Chunk((number, 0, 0), Box((number, 0, 0), (number + 1, 2, 3)))


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(str(tmp_path) if request.param == "disk" else f"{request.getfixturevalue('gcs_bucket')}/out")


def test_a_marker_tells_what_was_stored_from_what_and_how(folder: Folder) -> None:
    ledger = Ledger(folder, "watershed", "k1", {"watershed.high": 0.99, "model_sha256": "ab"})
    written = folder.write("region_graph/0.parquet", b"edges")
    with attempt(3):
        ledger.mark(chunk(0), [written, Written(folder.at("a.zarr"), "c", Box((0, 0, 0), (1, 1, 1)), 2)], {"edges": 7})
    marker = ledger.marker("0_0_0")
    assert marker["outputs"][0] == {"name": "region_graph/0.parquet", "checksum": written.checksum}
    assert marker["outputs"][1] == {"name": "a.zarr", "checksum": "c", "box": "0:1,0:1,0:1", "level": 2}
    assert marker["made_from"] == {"watershed.high": 0.99, "model_sha256": "ab"}
    assert (marker["tries"], marker["edges"], marker["box"], marker["key"]) == (3, 7, "0:1,0:2,0:3", "k1")
    assert marker["seconds"] >= 0
    assert marker["host"]
    assert marker["time"].endswith("+00:00")


def test_done_is_what_has_a_marker_of_this_key(folder: Folder) -> None:
    ledger, other = Ledger(folder, "seams", "k1"), Ledger(folder, "seams", "k2")
    for number in range(3):
        ledger.mark(chunk(number), [])
    other.mark(chunk(3), [])
    Ledger(folder, "relabel", "k1").mark(chunk(4), [])
    ledger.mark_failed("5_0_0", "5:6,0:2,0:3", "damaged", 3)
    found = ledger.markers()
    assert found.done == {"k1": {"0_0_0", "1_0_0", "2_0_0"}, "k2": {"3_0_0"}}
    assert found.failed == {"5_0_0"}
    assert ledger.failure("5_0_0")["cause"] == "damaged"
    assert ledger.failure("0_0_0") == {}


def test_forgetting_is_exact(folder: Folder) -> None:
    ledger = Ledger(folder, "seams", "k1")
    for number in range(3):
        ledger.mark(chunk(number), [])
    ledger.mark_failed("1_0_0", "", "cause")
    ledger.forget(["1_0_0", "9_0_0"])
    assert ledger.markers().done == {"k1": {"0_0_0", "2_0_0"}}
    assert ledger.markers().failed == {"1_0_0"}
    ledger.forget_failures(["1_0_0"])
    assert ledger.markers().failed == set()
    with pytest.raises(NotFound, match="1_0_0"):
        ledger.marker("1_0_0")


def test_a_rerun_says_why(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    before = Ledger(folder, "watershed", "old", {"watershed.high": 0.996, "watershed.low": 0.0})
    ledger = Ledger(folder, "watershed", "new", {"watershed.high": 0.99, "watershed.low": 0.0})
    before.mark(chunk(0), [])
    before.mark(chunk(1), [])
    ledger.mark(chunk(2), [])
    ledger.mark_failed("3_0_0", "", "damaged")
    names = [chunk(number).name for number in (0, 1, 3, 4, 5, 6)]
    assert why_again(ledger, names, ledger.markers()) == (
        "3 missing, 2 made with another configuration (watershed.high 0.996 → 0.99), 1 failed or damaged before"
    )


def test_a_damaged_marker_of_another_configuration_still_explains(tmp_path: Path) -> None:
    ledger = Ledger(Folder(str(tmp_path)), "watershed", "new")
    (tmp_path / "progress" / "watershed").mkdir(parents=True)
    (tmp_path / "progress" / "watershed" / "0_0_0.old.json").write_text("{half")
    assert why_again(ledger, ["0_0_0"], ledger.markers()) == "1 made with another configuration"
    with pytest.raises(StorageFailed, match="damaged JSON"):
        ledger.with_key("old").marker("0_0_0")


def test_digests_are_stable_and_tell_parts_apart() -> None:
    assert digest("a", {"x": 1, "y": 2}) == digest("a", {"y": 2, "x": 1})
    assert digest("ab", "c") != digest("a", "bc")
    assert json.loads(json.dumps(digest(1))) == digest(1)
