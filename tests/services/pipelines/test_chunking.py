"""The result does not depend on how the volume is cut, nor on the order in which chunks are done."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from pipeline_runs import OPTIONS, SHAPE, merges_of, region_graph_of, request, run_in_process

from models.catalog import Model
from models.geometry import Box
from services.pipelines.preparation import check, prepare
from services.run import Run
from services.stages.node_tables import read_map

ARRAYS = ("affinities.zarr", "supervoxels.zarr", "segmentation.zarr")


def results(run: Run) -> dict[str, np.ndarray]:
    """All arrays of a run, and its tables as one: region graph, merges and map."""
    found = {}
    for name in ARRAYS:
        volume = run.volume(name)
        found[name] = volume.read(volume.box)
    tables = {"region_graph": region_graph_of(run), "merges": merges_of(run)}
    for name, table in tables.items():
        for field in fields(table):
            found[f"{name}:{field.name}"] = getattr(table, field.name)
    for name in ("basin_of", "segment_of"):
        maps = [read_map(run.folder, f"agglomeration/{name}/{chunk.name}") for chunk in run.grid]
        found[name] = np.unique(np.concatenate([np.stack([m.keys, m.values]) for m in maps], axis=1), axis=1)
    return found


@pytest.fixture(scope="module")
def whole(image: str, model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The result of one chunk that holds the whole volume."""
    return results(run_in_process(request(image, tmp_path_factory.mktemp("whole"), model, SHAPE)))


def test_the_whole_has_something_to_compare(whole: dict[str, np.ndarray]) -> None:
    supervoxels, segments = (len(np.unique(whole[name])) for name in ("supervoxels.zarr", "segmentation.zarr"))
    assert supervoxels > segments > 5
    assert len(whole["merges:a"]) > 10


@pytest.mark.parametrize("seed", range(20))
def test_random_chunkings_give_the_same_labels(
    seed: int, image: str, model: Model, whole: dict[str, np.ndarray], tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    chunk = tuple(int(rng.integers(8, n + 1)) for n in SHAPE)
    chunked = results(run_in_process(request(image, tmp_path, model, chunk), rng=rng))
    assert chunked.keys() == whole.keys()
    for name, expected in whole.items():
        np.testing.assert_array_equal(chunked[name], expected, err_msg=f"{name} with chunks {chunk}")


def test_pyramid_and_skeletons_do_not_depend_on_chunks(image: str, model: Model, tmp_path: Path) -> None:
    outs = []
    for name, chunk in (("a", SHAPE), ("b", (13, 17, 9))):
        run = run_in_process(request(image, tmp_path / name, model, chunk), skeletons=True)
        files = sorted((tmp_path / name / "skeletons").rglob("*"))
        outs.append({str(f.relative_to(tmp_path / name)): f.read_bytes() for f in files if f.is_file()})
        assert run.keys
    assert len(outs[0]) > 10
    assert outs[0] == outs[1]


def test_a_box_has_the_affinities_of_the_whole(
    image: str, model: Model, whole: dict[str, np.ndarray], tmp_path: Path
) -> None:
    box = Box((5, 11, 3), (28, 40, 30))
    run = run_in_process(request(image, tmp_path, model, (10, 12, 14), str(box)))
    volume = run.volume("affinities.zarr")
    np.testing.assert_array_equal(volume.read(volume.box), whole["affinities.zarr"][(slice(None), *box.slices())])
    assert volume.info.offset_voxels == box.start
    assert volume.info.affinity_offsets == ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


def test_every_voxel_is_labelled_and_segments_are_unions_of_supervoxels(whole: dict[str, np.ndarray]) -> None:
    supervoxels, segments = whole["supervoxels.zarr"], whole["segmentation.zarr"]
    assert supervoxels.all()
    pairs = np.unique(np.stack([supervoxels.ravel(), segments.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(supervoxels))
    smallest = {int(s): int(supervoxels[segments == s].min()) for s in np.unique(segments)}
    assert all(segment == first for segment, first in smallest.items())


def test_options_change_only_what_they_decide(image: str, model: Model, tmp_path: Path) -> None:
    first = prepare(check(request(image, tmp_path / "a", model)))
    other = OPTIONS.model_copy(update={"agglomeration": OPTIONS.agglomeration.model_copy(update={"threshold": 0.6})})
    second = prepare(check(replace(request(image, tmp_path / "b", model), options=other)))
    same = {name for name in first.keys if first.keys[name] == second.keys[name]}
    assert same == {"predict", "watershed", "seams", "region_graph", "basins", "merges"}
