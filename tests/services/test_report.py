import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from infra.objects import Folder
from infra.volumes import VolumeInfo, create_volume
from models.errors import InvalidVolume, NotFound
from models.geometry import Box
from models.metrics.contingency import contingency_table
from models.metrics.objects import object_terms
from models.metrics.voi import variation_of_information
from models.segmentation.merge_tree import MergeTree
from services.cli.main import app
from services.label_pair import LabelPair
from services.report import write_report
from services.worst_objects import locate, worst_objects

BOX = Box((2, 4, 6), (14, 40, 54))
SIZE = (40.0, 10.0, 10.0)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def truth_and_segments() -> tuple[np.ndarray, np.ndarray]:
    """Six columns of 6 x 48 voxels; 3 is split at z = 7, 5 and 6 are merged from z = 4 to 9."""
    truth = np.repeat(np.arange(1, 7), 6)[None, :, None] * np.ones((12, 1, 48), int)
    segments = truth * 10
    segments[7:][truth[7:] == 3] = 31
    segments[4:9][truth[4:9] == 6] = 50
    return truth.astype(np.uint32), segments.astype(np.uint64)


@pytest.fixture
def run(tmp_path: Path) -> tuple[str, str]:
    """A finished run over a part of an image, with a merge tree, and truth of the whole image."""
    truth, segments = truth_and_segments()
    image = np.random.default_rng(0).integers(90, 160, (16, 44, 60), dtype=np.uint8)
    whole = np.zeros(image.shape, np.uint32)
    whole[BOX.slices()] = truth
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "truth.npy", whole)
    out = Folder(str(tmp_path / "out"))
    for name in ("supervoxels.zarr", "segmentation.zarr"):
        info = VolumeInfo(shape=BOX.shape, dtype=np.dtype("uint64"), voxel_size_nm=SIZE, offset_voxels=BOX.start)
        volume = create_volume(out.at(name), info)
        volume.write(volume.box, segments)
    one = MergeTree(*(np.array([value], kind) for value, kind in ((30, "u8"), (31, "u8"), (120, "i8"), (1, "i8"))))
    columns = {column: getattr(one, column) for column in ("a", "b", "affinity_sum", "face_count")}
    out.write_table("agglomeration/merges/0/0_0_0.parquet", {**columns, "score": one.scores})
    ids = np.unique(segments)
    out.write_table("agglomeration/basin_of/0_0_0.parquet", {"supervoxel": ids, "basin": ids})
    out.write_json(
        "run.json",
        {
            "image": str(tmp_path / "image.npy"),
            "box": str(BOX),
            "voxel_size_nm": list(SIZE),
            "model": {"name": "<small>"},
            "options": {"agglomeration": {"threshold": 0.6, "tree_floor": 0.1}},
        },
    )
    stage = {"stage": "watershed", "chunks": 8, "computed": 8, "seconds": 2.5, "voxels_per_s": 4e6, "totals": {}}
    out.write_json("progress/summary.json", {"stages": [stage]})
    return out.url, str(tmp_path / "truth.npy")


def test_worst_objects_are_found_where_the_mistake_is() -> None:
    truth, segments = truth_and_segments()
    table = contingency_table(segments, truth)
    terms = object_terms(table)
    splits = worst_objects(table, terms, "split", 9)
    assert {(item.truth, item.segment, item.segments) for item in splits} == {(6, 60, 2), (3, 30, 2)}
    assert splits[0].cost_bits >= splits[1].cost_bits
    voi = variation_of_information(table)
    assert sum(item.cost_bits for item in splits) == pytest.approx(voi.split)
    merges = worst_objects(table, terms, "merge", 9)
    assert {item.truth for item in merges} == {5, 6}
    assert sum(item.cost_bits for item in merges) == pytest.approx(voi.merge)
    assert {item.others for item in merges if item.truth == 5} == {1}
    assert len(worst_objects(table, terms, "merge", 1)) == 1


def test_a_merger_is_shown_where_it_costs_most() -> None:
    truth = np.ones((1, 1, 6400), np.uint64)
    truth[..., 1400:] = 2
    pred = np.full_like(truth, 20)
    pred[..., :1000] = 10
    table = contingency_table(pred, truth)
    one = next(item for item in worst_objects(table, object_terms(table), "merge", 9) if item.truth == 1)
    assert (one.segment, one.others) == (20, 1), "its largest segment, 10, holds nothing else"


def test_places_lie_on_the_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.label_pair._EXTENT", 7)
    truth, segments = truth_and_segments()
    np.save(tmp_path / "truth.npy", truth)
    np.save(tmp_path / "pred.npy", segments)
    pair = LabelPair.open(f"{tmp_path}/pred.npy", f"{tmp_path}/truth.npy")
    table = pair.table()
    five = next(item for item in worst_objects(table, object_terms(table), "merge", 9) if item.truth == 5)
    (place,) = locate(pair, [five])
    assert 4 <= place[0] < 9  # where 5 and 6 are merged
    assert place[1] in (29, 30)  # between the two
    assert locate(pair, []) == []


def test_report_of_a_segmentation(run) -> None:
    out, truth = run
    result = CliRunner().invoke(app, ["report", out, "--truth", truth, "--worst", "2"], catch_exceptions=False)
    assert result.stdout.strip() == f"{out}/report.html"
    html = Path(f"{out}/report.html").read_text()
    for words in ("Worst splits", "Worst mergers", "95 % interval", "&lt;small&gt;", "watershed", "CREMI score"):
        assert words in html
    assert html.count("<img") == 1 + 2 + 2
    assert "http" not in html.replace("http-equiv", "")
    plain = write_report(out, f"{out}/plain.html")
    assert "Scores" not in Path(plain).read_text()


def test_report_of_a_training(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    folder = tmp_path / "training"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": "small & quick", "seed": 5}))
    with pytest.raises(NotFound, match="has the training begun"):
        write_report(str(folder))
    with SummaryWriter(str(folder / "logs")) as board:
        for step in range(1, 6):
            board.add_scalar("loss/all", 1 / step, step)
            board.add_scalar("validation/voi", 3 / step, step)
    html = Path(write_report(str(folder))).read_text()
    assert html.count("<img") == 2
    for words in ("small &amp; quick", "<td>loss/all</td>", "validation/voi", ">0.2<", ">0.6<"):
        assert words in html


def test_mistakes(run, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="expected a run"):
        write_report(str(tmp_path))
    with pytest.raises(NotFound, match=r"none\.npy"):
        write_report(run[0], truth=f"{tmp_path}/none.npy")
    Folder(f"{tmp_path}/other").write_json("run.json", {"box": "0:1,0:1,0:1"})
    with pytest.raises(InvalidVolume, match="description of a segmentation"):
        write_report(f"{tmp_path}/other")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_opens_in_a_browser_without_fetching_anything(run) -> None:
    from playwright.sync_api import sync_playwright

    out, truth = run
    page_file = write_report(out, truth=truth, worst=1)
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{page_file}")
        widths = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
        headings = page.eval_on_selector_all("h2", "found => found.map(heading => heading.textContent)")
        rows = page.locator("table").nth(1).locator("tbody tr").count()
        browser.close()
    assert len(widths) == 3
    assert min(widths) > 500
    assert headings == ["Stages", "Scores", "Thresholds", "Worst splits", "Worst mergers", "Configuration"]
    assert rows == 5
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
