"""`petavoxel verify` finds every damage, and its repair drops exactly the markers concerned."""

import json
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.ledger import Ledger
from infra.objects import Folder
from infra.volumes import VolumeInfo, create_volume, open_volume
from infra.written import Written
from models.errors import NotFound
from models.geometry import Box, Chunk
from services.pipelines.progress import PlannedStage, read_plan, write_plan
from services.verify import Verification, repair, verify

CHUNKS = [Chunk((i, 0, 0), Box((8 * i, 0, 0), (8 * i + 8, 8, 8))) for i in range(3)]
PLAN = [
    PlannedStage("predict", "p", 3, 1536, phase="predict"),
    PlannedStage("watershed", "w", 3, 1536, phase="watershed"),
    PlannedStage("graph", "g", 3, 1536, phase="watershed"),
    PlannedStage("relabel", "r", 3, 1536, phase="relabel"),
]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A finished run: arrays, tables, and markers of intermediates that are gone."""
    folder, rng = Folder(str(tmp_path)), np.random.default_rng(1)
    folder.write_json("run.json", {})
    write_plan(folder, PLAN)
    for name, stage in (("affinities.zarr", PLAN[0]), ("segmentation.zarr", PLAN[3])):
        info = VolumeInfo(shape=(24, 8, 8), dtype=np.dtype("uint64"), voxel_size_nm=(1, 1, 1), chunk_shape=(8, 8, 8))
        with create_volume(str(tmp_path / name), info) as volume:
            for chunk in CHUNKS:
                values = rng.integers(1, 2**40, chunk.box.shape, np.uint64)
                volume.write(chunk.box, values)
                Ledger(folder, stage.stage, stage.key).mark(chunk, [Written.voxels(volume.url, chunk.box, values)])
    for chunk in CHUNKS:
        gone = Written(folder.at(f"work/watershed/{chunk.name}.npz"), "0")
        Ledger(folder, "watershed", "w").mark(chunk, [gone])
        Ledger(folder, "graph", "g").mark(chunk, [folder.write(f"region_graph/{chunk.name}.parquet", b"edges")])
    for phase in ("predict", "watershed", "relabel"):
        folder.write_json(f"progress/phases/{phase}.json", {})
    folder.write_json("progress/complete.json", {})
    return tmp_path


def damaged(out: Path) -> list[tuple[str, str]]:
    return sorted((damage.stage, damage.chunk) for damage in verify(str(out)).damages)


def markers(out: Path) -> set[str]:
    return {str(path.relative_to(out / "progress")) for path in (out / "progress").glob("*/*_*.json")}


def stored(out: Path, array: str, number: int) -> Path:
    return out / array / "c" / str(number) / "0" / "0"


def test_a_whole_run_is_whole(out: Path) -> None:
    found = verify(str(out))
    assert found.damages == []
    assert (found.chunks, found.outputs, found.gone) == (12, 9, {"watershed"})
    before = markers(out)
    assert repair(str(out), found) == []
    assert markers(out) == before
    assert (out / "progress" / "complete.json").exists()


def test_every_kind_of_damage_is_found(out: Path) -> None:
    piece = stored(out, "affinities.zarr", 0)
    piece.write_bytes(piece.read_bytes()[:-5])
    stored(out, "affinities.zarr", 1).unlink()
    with open_volume(str(out / "segmentation.zarr"), "r+") as volume:
        volume.write(CHUNKS[2].box, np.ones(CHUNKS[2].box.shape, np.uint64))
    (out / "region_graph" / "0_0_0.parquet").unlink()
    (out / "region_graph" / "1_0_0.parquet").write_bytes(b"edgeS")
    next((out / "progress" / "relabel").glob("0_0_0.*")).write_text("{half")
    assert damaged(out) == [
        ("graph", "0_0_0"),
        ("graph", "1_0_0"),
        ("predict", "0_0_0"),
        ("predict", "1_0_0"),
        ("relabel", "0_0_0"),
        ("relabel", "2_0_0"),
    ]
    by_output = {damage.output: damage for damage in verify(str(out)).damages}
    assert by_output["region_graph/0_0_0.parquet"].cause == "missing"
    assert by_output["region_graph/1_0_0.parquet"].cause == "other bytes than were written"
    assert by_output["segmentation.zarr 16:24,0:8,0:8"].box == "16:24,0:8,0:8"
    assert "damaged" in by_output["affinities.zarr 0:8,0:8,0:8"].cause
    assert json.dumps(verify(str(out)).as_json())


def test_a_repair_forgets_only_what_is_damaged(out: Path) -> None:
    stored(out, "segmentation.zarr", 1).unlink()
    before = markers(out)
    assert repair(str(out), verify(str(out))) == []
    assert before - markers(out) == {"relabel/1_0_0.r.json"}
    assert markers(out) - before == {"relabel/1_0_0.failed.json"}
    assert "damaged" in Ledger(Folder(str(out)), "relabel", "r").failure("1_0_0")["cause"]
    assert not (out / "progress" / "complete.json").exists()
    assert not (out / "progress" / "phases" / "relabel.json").exists()
    assert (out / "progress" / "phases" / "watershed.json").exists()
    assert damaged(out) == []


def test_what_needs_removed_intermediates_takes_their_stage_along(out: Path) -> None:
    (out / "region_graph" / "2_0_0.parquet").unlink()
    before = markers(out)
    assert repair(str(out), verify(str(out))) == ["watershed"]
    assert before - markers(out) == {"graph/2_0_0.g.json", *(f"watershed/{chunk.name}.w.json" for chunk in CHUNKS)}


def test_intermediates_of_an_unfinished_phase_are_checked(out: Path) -> None:
    (out / "progress" / "complete.json").unlink()
    (out / "progress" / "phases" / "watershed.json").unlink()
    assert damaged(out) == [("watershed", chunk.name) for chunk in CHUNKS]


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no run\.json"):
        verify(str(tmp_path))
    assert read_plan(Folder(str(tmp_path))) == []


def at_work(out: Path) -> None:
    """The watershed has not finished: its intermediates are there."""
    (out / "progress" / "complete.json").unlink()
    (out / "progress" / "phases" / "watershed.json").unlink()
    folder = Folder(str(out))
    for chunk in CHUNKS:
        written = folder.write(f"work/watershed/{chunk.name}.npz", chunk.name.encode())
        Ledger(folder, "watershed", "w").mark(chunk, [written])


def verified_while(
    happens: Callable[[], None], reading: str, monkeypatch: pytest.MonkeyPatch, out: Path
) -> Verification:
    """What is found where something happens just before an object is read."""
    read = Folder.read

    def late(folder: Folder, name: str) -> bytes:
        if name == reading:
            happens()
        return read(folder, name)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", late)
        return verify(str(out))


@pytest.mark.parametrize("marker", ["phases/watershed.json", "complete.json"])
def test_a_phase_that_ends_meanwhile_is_not_damaged(marker: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work(out)
    assert verify(str(out)).outputs == 12

    def end() -> None:
        (out / "progress" / marker).write_text("{}")
        shutil.rmtree(out / "work", ignore_errors=True)

    found = verified_while(end, "1_0_0.npz", monkeypatch, out)
    assert found.damages == []
    assert found.gone == {"watershed"}
    assert repair(str(out), found) == []


def test_a_chunk_that_is_to_be_done_again_meanwhile_is_not_damaged(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget() -> None:
        Ledger(Folder(str(out)), "graph", "g").forget(["1_0_0"])
        (out / "region_graph" / "1_0_0.parquet").unlink()

    found = verified_while(forget, "1_0_0.parquet", monkeypatch, out)
    assert found.damages == []
    assert (found.chunks, found.outputs) == (11, 8)


def test_chunks_wait_in_slices(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bounded(ThreadPoolExecutor):
        def map(self, function: Callable[..., Any], *parts: Iterable[Any], **options: Any) -> Any:
            held = [list(part) for part in parts]
            assert all(len(part) <= 2 for part in held)
            return super().map(function, *held, **options)

    monkeypatch.setattr("services.verify.AT_ONCE", 2)
    monkeypatch.setattr("services.verify.ThreadPoolExecutor", Bounded)
    found = verify(str(out))
    assert (found.chunks, found.outputs, found.damages) == (12, 9, [])
