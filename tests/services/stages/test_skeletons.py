"""Skeletons of a small volume in many chunks, so that fragments pass through the whole exchange."""

from pathlib import Path

import numpy as np
import pytest
from stage_runs import run_stages

from infra.objects import Folder
from infra.skeletons import PrecomputedSkeletons, read_swc
from infra.volumes import VolumeInfo, create_pyramid, create_volume, open_volume
from models.segmentation.coarsening import most_frequent
from services.pipelines.skeletonize import prepare_skeletons, skeleton_stages
from services.stages.skeletonize import SkeletonOptions
from services.stages.skeletons import SkeletonJob

SHAPE = (40, 60, 100)
VOXEL = (10.0, 10.0, 10.0)
LONG, SMALL, TOP = 7, 1 << 60, (1 << 64) - 1


def scene() -> np.ndarray:
    voxels = np.zeros(SHAPE, np.uint64)
    voxels[16:25, 16:25, 2:98] = LONG
    voxels[2:38, 45:54, 45:54] = TOP
    voxels[18:22, 30:34, 50:54] = SMALL  # 64 voxels in two chunks
    return voxels


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    voxels = scene()
    url = str(tmp_path_factory.mktemp("labels") / "labels.zarr")
    info = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint64"), voxel_size_nm=VOXEL, offset_voxels=(5, 0, 0))
    with create_volume(url, info) as volume:
        volume.write(volume.box, voxels)
        return volume.url


def files(labels: str, out: Path, rng: np.random.Generator, **options: object) -> dict[str, bytes]:
    """Run all stages, each in random order and one chunk twice, and return what was written."""
    settings = SkeletonOptions(**{"dust_voxels": 65, "const_nm": 80, "chunk_voxels": (20, 20, 20), **options})
    volume = open_volume(labels)
    job = SkeletonJob(labels, volume.box, VOXEL, (5, 0, 0), settings, str(out), str(out / "work"), str(out), "key")
    assert run_stages(skeleton_stages(job), rng) == ["skeletonize", "skeletons_pass_1", "skeletons"]
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.s*")) if p.is_file()}


def test_skeletons_are_whole_and_do_not_depend_on_the_order(labels: str, tmp_path: Path) -> None:
    first = files(labels, tmp_path / "a", np.random.default_rng(0))
    assert first == files(labels, tmp_path / "b", np.random.default_rng(1))
    assert {name for name in first if name.startswith("swc")} == {f"swc/{LONG}.swc", f"swc/{TOP}.swc"}
    store = PrecomputedSkeletons(str(tmp_path / "a" / "precomputed"))
    assert sorted(store.ids()) == [LONG, TOP]
    for segment, length in ((LONG, 940), (TOP, 330)):
        skeleton = store.read(segment)
        assert int(skeleton.components.max()) == 0
        assert skeleton.cable_length_nm == pytest.approx(length, rel=0.3)
        again = read_swc(str(tmp_path / "a" / "swc" / f"{segment}.swc"))
        assert again.cable_length_nm == pytest.approx(skeleton.cable_length_nm)
    z, _, x = store.read(LONG).vertices.T
    assert 200 < z.min() <= z.max() < 310  # with the volume's offset
    assert x.min() < 150
    assert x.max() > 850


def test_swc_files_are_optional_and_dust_may_be_kept(labels: str, tmp_path: Path) -> None:
    found = files(labels, tmp_path, np.random.default_rng(2), swc=False, dust_voxels=64, const_nm=5)
    assert all(name.endswith(".shard") for name in found)
    tables = [Folder(str(tmp_path / "segments")).read_table(path.name) for path in (tmp_path / "segments").iterdir()]
    voxels = {int(i): int(n) for table in tables for i, n in zip(table["segment"], table["voxels"], strict=True)}
    assert voxels == {LONG: 9 * 9 * 96, TOP: 36 * 9 * 9, SMALL: 64}
    assert sorted(PrecomputedSkeletons(str(tmp_path / "precomputed")).ids()) == [LONG, SMALL, TOP]


def pyramid(url: str, size: tuple[float, float, float], step: tuple[int, int, int]) -> str:
    info = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint64"), voxel_size_nm=size, offset_voxels=(5, 0, 3))
    fine, coarse = create_pyramid(url, info, [step])
    fine.write(fine.box, scene())
    coarse.write(coarse.box, most_frequent(scene(), step))
    return fine.url


@pytest.mark.parametrize(
    ("size", "step", "nm"), [((10.0, 10.0, 10.0), (2, 2, 2), 20.0), ((40.0, 16.0, 16.0), (1, 2, 2), 32.0)]
)
def test_coarser_level_is_traced_where_the_finest_lies(
    size: tuple[float, float, float], step: tuple[int, int, int], nm: float, tmp_path: Path
) -> None:
    url = pyramid(str(tmp_path / "labels.zarr"), size, step)
    options = SkeletonOptions(dust_voxels=65, const_nm=80, chunk_voxels=(12, 10, 13), swc=False, voxel_nm=nm)
    written = []
    for seed in range(2):
        job = prepare_skeletons(url, str(tmp_path / f"out{seed}"), options)
        assert (job.level, job.factor) == (1, step)
        run_stages(skeleton_stages(job), np.random.default_rng(seed))
        written.append({path.name: path.read_bytes() for path in (tmp_path / f"out{seed}").rglob("*.shard")})
    assert written[0] == written[1]
    store = PrecomputedSkeletons(str(tmp_path / "out0" / "precomputed"))
    assert sorted(store.ids()) == [LONG, TOP]  # 64 voxels of the finest level are dust, whatever is traced
    segments = Folder(str(tmp_path / "out0")) / "segments"
    tables = [segments.read_table(name) for name in segments.names()]
    voxels = {int(i): int(n) for table in tables for i, n in zip(table["segment"], table["voxels"], strict=True)}
    assert voxels == {LONG: 9 * 9 * 96, TOP: 36 * 9 * 9}
    for segment in (LONG, TOP):
        skeleton = store.read(segment)
        assert int(skeleton.components.max()) == 0
        at = skeleton.vertices / size - (5, 0, 3)
        # Centres of the coarse voxels, in voxels of the finest: half a coarse voxel from the volume's corner.
        steps = at / step - 0.5
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
        inside = np.argwhere(scene() == segment)
        assert (at >= inside.min(0)).all()
        assert (at <= inside.max(0) + 1).all()
        middle = inside.mean(0) + 0.5
        along = 2 if segment == LONG else 0
        across = np.delete(np.abs(at - middle), along, axis=1)
        assert across.max() < 5
        assert np.median(across) <= 1.5


def test_part_of_a_volume_counts_its_own_voxels_and_volumes_without_levels_are_traced_as_they_are(
    labels: str, tmp_path: Path
) -> None:
    url = pyramid(str(tmp_path / "labels.zarr"), VOXEL, (2, 2, 2))
    options = SkeletonOptions(dust_voxels=5, const_nm=80, voxel_nm=25, swc=False)
    job = prepare_skeletons(url, str(tmp_path / "part"), options, box="3:39,7:60,5:61")
    assert job.traced.shape == (19, 27, 29)
    run_stages(skeleton_stages(job), np.random.default_rng(0))
    table = Folder(str(tmp_path / "part")).read_table("segments/0_0_0.parquet")
    voxels = dict(zip(table["segment"].tolist(), table["voxels"].tolist(), strict=True))
    assert voxels == {LONG: 9 * 9 * 56, TOP: 35 * 9 * 9, SMALL: 64}
    assert prepare_skeletons(url, str(tmp_path / "finest"), SkeletonOptions(voxel_nm=0)).level == 0
    assert prepare_skeletons(labels, str(tmp_path / "single"), options).level == 0
