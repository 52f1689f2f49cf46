"""Skeletons of a small volume in many chunks, so that fragments pass through the whole exchange."""

from pathlib import Path

import numpy as np
import pytest
from stage_runs import run_stages

from infra.objects import Folder
from infra.skeletons import PrecomputedSkeletons, read_swc
from infra.volumes import VolumeInfo, create_volume, open_volume
from services.pipelines.skeletonize import skeleton_stages
from services.stages.skeletonize import SkeletonOptions
from services.stages.skeletons import SkeletonJob

SHAPE = (40, 60, 100)
VOXEL = (10.0, 10.0, 10.0)
LONG, SMALL, TOP = 7, 1 << 60, (1 << 64) - 1


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    voxels = np.zeros(SHAPE, np.uint64)
    voxels[16:25, 16:25, 2:98] = LONG
    voxels[2:38, 45:54, 45:54] = TOP
    voxels[18:22, 30:34, 50:54] = SMALL  # 64 voxels in two chunks
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
