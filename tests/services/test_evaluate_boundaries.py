import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from infra.volumes import VolumeInfo, create_volume
from models.errors import InvalidInput, InvalidVolume
from models.geometry import NEAREST, Box
from models.metrics.affinities import average_precision, edge_histogram
from models.metrics.boundary import boundary_counts
from services.cli.evaluate import app
from services.cli.reports import affinity_report
from services.evaluate_boundaries import AffinityMeasure, AffinityScores, BoundaryMeasure, BoundaryScores
from services.pipelines.evaluate import finish_measure, measure_job, measure_stage

SHAPE = (13, 21, 30)
SIZE = (40.0, 10.0, 10.0)
OFFSETS = (*NEAREST, (-2, 0, 0), (0, 0, -5))
BOX = Box((2, 3, 4), (12, 20, 29))


def evaluate_boundaries(pred: str, truth: str, **options: object) -> BoundaryScores:
    """Measured in one go."""
    measure = BoundaryMeasure.open(pred, truth, **options)  # type: ignore[arg-type]
    return measure.scores([measure.measured(measure.box)])


def evaluate_affinities(pred: str, truth: str, **options: object) -> AffinityScores:
    """Measured in one go."""
    measure = AffinityMeasure.open(pred, truth, **options)  # type: ignore[arg-type]
    return measure.scores([measure.measured(measure.box)])


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    monkeypatch.setattr("services.label_pair._EXTENT", 8)
    rng = np.random.default_rng(0)
    truth, pred = (
        np.kron(rng.integers(0, 4, (4, 5, 6)), np.ones((4, 5, 5), int))[tuple(map(slice, SHAPE))].astype(np.uint32)
        for _ in range(2)
    )
    arrays = {"truth": truth, "pred": pred, "affinities": rng.integers(0, 256, (5, *SHAPE), dtype=np.uint8)}
    for name, array in arrays.items():
        many = {"channels": 5, "affinity_offsets": OFFSETS} if array.ndim == 4 else {}
        info = VolumeInfo(shape=SHAPE, dtype=array.dtype, voxel_size_nm=SIZE, chunk_shape=(8, 8, 8), **many)
        volume = create_volume(f"{tmp_path}/{name}.zarr", info)
        volume.write(volume.box, array)
    return arrays


@pytest.mark.parametrize("tolerance", [0.0, 25.0, 45.0])
def test_boundaries_of_blocks_are_those_of_the_whole(volumes, tmp_path: Path, tolerance: float) -> None:
    found = evaluate_boundaries(f"{tmp_path}/pred.zarr", f"{tmp_path}/truth.zarr", tolerance_nm=tolerance, box=BOX)
    pred, truth = (volumes[name][BOX.slices()] for name in ("pred", "truth"))
    assert found.counts == boundary_counts(pred, truth, voxel_size_nm=SIZE, tolerance_nm=tolerance)
    assert 0 < found.counts.f_score <= 1


def test_average_precision_of_blocks_is_that_of_the_whole(volumes, tmp_path: Path) -> None:
    found = evaluate_affinities(f"{tmp_path}/affinities.zarr", f"{tmp_path}/truth.zarr", box=BOX)
    affinities, truth = volumes["affinities"][(slice(None), *BOX.slices())], volumes["truth"][BOX.slices()]
    assert found.overall == average_precision(edge_histogram(affinities, truth, offsets=OFFSETS))
    for channel, offset in enumerate(OFFSETS):
        own = edge_histogram(affinities[channel : channel + 1], truth, offsets=(offset,))
        assert found.channels[channel] == average_precision(own)


def test_a_channel_without_edges_of_both_kinds_has_no_score(volumes, tmp_path: Path) -> None:
    section = Box((3, 0, 0), (4, SHAPE[1], SHAPE[2]))  # no edges along z
    found = evaluate_affinities(f"{tmp_path}/affinities.zarr", f"{tmp_path}/truth.zarr", box=section)
    affinities, truth = volumes["affinities"][(slice(None), *section.slices())], volumes["truth"][section.slices()]
    assert found.overall == average_precision(edge_histogram(affinities, truth, offsets=OFFSETS))
    assert [one is None for one in found.channels] == [True, False, False, True, False]
    assert found.as_json()["channels"][0]["average_precision_cut"] is None
    assert "has not both kinds of edges" in affinity_report(found)
    with pytest.raises(InvalidInput, match="both kinds"):
        evaluate_affinities(f"{tmp_path}/affinities.zarr", f"{tmp_path}/truth.zarr", box=Box((3, 1, 1), (4, 2, 2)))


@pytest.mark.parametrize("kind", ["boundaries", "affinities"])
def test_chunks_measure_what_the_whole_measures(volumes, tmp_path: Path, kind: str) -> None:
    pred, truth, affinities = (f"{tmp_path}/{name}.zarr" for name in ("pred", "truth", "affinities"))
    measure = (
        BoundaryMeasure.open(pred, truth, tolerance_nm=25, box=BOX)
        if kind == "boundaries"
        else AffinityMeasure.open(affinities, truth, box=BOX)
    )
    job = measure_job(measure, f"{tmp_path}/out", (5, 9, 11))
    stage = measure_stage(job)
    apply = stage.make(*stage.arguments)
    for chunk in reversed(stage.chunks):
        apply(chunk)
    scores = finish_measure(job)
    assert scores == measure.scores([measure.measured(BOX)])
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == json.loads(json.dumps(scores.as_json()))
    assert json.loads((tmp_path / "out" / "progress" / "complete.json").read_text()) == {"key": job.key}


def test_commands(volumes, tmp_path: Path) -> None:
    pred, truth, affinities = (f"{tmp_path}/{name}.zarr" for name in ("pred", "truth", "affinities"))
    run = CliRunner()
    text = run.invoke(app, ["boundaries", pred, truth, "--tolerance", "25"], catch_exceptions=False).stdout
    assert "boundary F-score" in text
    assert "within 25 nm" in text
    assert "40 x 10 x 10 nm" in text
    arguments = ["affinities", affinities, truth, "--json"]
    told = json.loads(run.invoke(app, arguments, catch_exceptions=False).stdout)
    overall = evaluate_affinities(affinities, truth).overall
    assert (told["average_precision_cut"], told["cut_edges"]) == (overall.cut, overall.cut_edges)
    assert [channel["offset"] for channel in told["channels"]] == [list(offset) for offset in OFFSETS]
    assert "offset 0,0,-5" in run.invoke(app, arguments[:-1], catch_exceptions=False).stdout


def test_mistakes_are_refused(volumes, tmp_path: Path) -> None:
    pred, truth, affinities = (f"{tmp_path}/{name}.zarr" for name in ("pred", "truth", "affinities"))
    with pytest.raises(InvalidInput, match="tolerance"):
        evaluate_boundaries(pred, truth, tolerance_nm=-1)
    with pytest.raises(InvalidVolume, match="uint8 affinities"):
        evaluate_affinities(pred, truth)
    with pytest.raises(InvalidVolume, match="integer labels"):
        evaluate_affinities(affinities, affinities)
    np.save(tmp_path / "labels.npy", volumes["truth"])
    with pytest.raises(InvalidVolume, match="--voxel-size"):
        evaluate_boundaries(f"{tmp_path}/labels.npy", f"{tmp_path}/labels.npy", tolerance_nm=1)
