"""`petavoxel status` reads a prefix alone: beside a run, after its end, after its death, on a bucket."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.chunk_map import Started
from infra.ledger import Ledger
from infra.objects import Folder
from models.errors import NotFound, StorageFailed
from models.geometry import Box, Chunk
from services.cli.main import app
from services.pipelines.progress import RUNNING, Heartbeat, PlannedStage, read_plan, write_plan
from services.status import run_status

STAGES = [
    PlannedStage("predict", "p", 4, 4000),
    PlannedStage("watershed", "w", 4, 4000),
    PlannedStage("cut", "c", 1, 9),
]


def chunk(number: int) -> Chunk:
    return Chunk((number, 0, 0), Box((number, 0, 0), (number + 1, 10, 100)))


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A run whose first stage is done and whose second has one chunk done and one failed."""
    place = Folder(str(tmp_path / "out") if request.param == "disk" else f"{request.getfixturevalue('gcs_bucket')}/out")
    place.write_json("run.json", {"key": "r"})
    write_plan(place, STAGES)
    write_plan(place, [PlannedStage("predict", "p", 4, 4000, seconds=2.0, computed=4, computed_voxels=4000)])
    for number in range(4):
        Ledger(place, "predict", "p").mark(chunk(number), [])
    Ledger(place, "watershed", "w").mark(chunk(0), [])
    Ledger(place, "watershed", "old").mark(chunk(1), [])
    Ledger(place, "watershed", "w").mark_failed("1_0_0", str(chunk(1).box), "image.zarr: damaged", 3)
    return place


def beating(folder: Folder) -> None:
    heartbeat = Heartbeat(folder, "watershed")
    heartbeat.started(Started(chunk(2), "node-7", 4711))
    heartbeat.started(Started(chunk(3), "node-8", 4712))
    heartbeat.ended("3_0_0")
    heartbeat.beat(voxels=1000, seconds=0.5)


def test_a_running_run(folder: Folder) -> None:
    beating(folder)
    found = run_status(folder.url)
    predict, watershed, cut = found.stages
    assert (predict.state, predict.done, predict.voxels_per_s) == ("done", 4, 2000)
    assert (watershed.state, watershed.done, watershed.chunks, watershed.failed) == ("running", 1, 4, 1)
    assert [(at.chunk, at.box) for at in watershed.running] == [("2_0_0", "2:3,0:10,0:100")]
    assert "process 4711 on node-7" in watershed.running[0].note
    assert [(at.chunk, at.box, at.note) for at in watershed.failures] == [
        ("1_0_0", "1:2,0:10,0:100", "image.zarr: damaged")
    ]
    assert watershed.voxels_per_s == 2000
    assert watershed.seconds_left == 1.5
    assert (cut.state, cut.done, cut.seconds_left) == ("waiting", 0, None)
    assert found.alive
    assert not found.complete


def test_a_run_whose_driver_died(folder: Folder) -> None:
    beating(folder)
    old = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    folder.write_json(RUNNING, {**folder.read_json(RUNNING), "time": old})
    found = run_status(folder.url)
    assert not found.alive
    assert old in found.last_sign
    assert found.stages[1].state == "failed"
    assert found.stages[1].running == ()
    Ledger(folder, "watershed", "w").forget_failures(["1_0_0"])
    assert run_status(folder.url).stages[1].state == "interrupted"


def test_a_complete_run(folder: Folder) -> None:
    Heartbeat(folder, "cut").end()
    folder.write_json("progress/complete.json", {"key": "r"})
    found = run_status(folder.url)
    assert found.complete
    assert not found.alive


def test_the_command_prints_a_table_or_json(folder: Folder) -> None:
    beating(folder)
    shown = CliRunner().invoke(app, ["status", folder.url], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "1 of 4" in shown.output
    assert "watershed: failed: chunk 1_0_0 (box 1:2,0:10,0:100): image.zarr: damaged" in shown.output
    assert "process 4711 on node-7" in shown.output
    raw = CliRunner().invoke(app, ["status", folder.url, "--json"])
    assert json.loads(raw.stdout)["stages"][1]["failures"][0]["chunk"] == "1_0_0"


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no run\.json"):
        run_status(str(tmp_path))


def test_a_plan_keeps_what_stages_took_until_their_key_changes(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    took = PlannedStage("predict", "p", 4, 4000, seconds=2.0, computed=4)
    write_plan(folder, [took])
    write_plan(folder, STAGES)
    assert read_plan(folder)[0] == took
    changed = PlannedStage("predict", "q", 4, 4000)
    write_plan(folder, [changed])
    assert read_plan(folder) == [changed, *STAGES[1:]]


def test_a_damaged_plan_is_reported_and_written_again(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_json("progress/plan.json", {"stages": [{"unknown": 1}]})
    with pytest.raises(StorageFailed, match="another version"):
        read_plan(folder)
    write_plan(folder, STAGES)
    assert read_plan(folder) == STAGES
