"""Meshes in many chunks are closed, where they belong and of the right size, read by cloud-volume."""

from pathlib import Path

import numpy as np
import pytest
from cloud_meshes import layer_of, open_edges, read_mesh, volume_and_area, welded
from stage_runs import run_stages

from infra.objects import Folder
from infra.shards import ShardedObjects, Sharding
from infra.volumes import VolumeInfo, create_pyramid
from models.errors import InvalidVolume
from services.pipelines.meshes import mesh_stages, prepare_meshes
from services.stages.meshes import MeshOptions, plan_details
from services.stages.meshing import surfaces

SHAPE = (50, 57, 64)
VOXEL = (20.0, 10.0, 10.0)
OFFSET = (100, 0, 7)
BALL, SLAB, DUST, TOP = 1 << 60, 4, 9, (1 << 64) - 1
CENTRE, RADIUS = np.array((500.0, 285.0, 300.0)), 230.0  # nm from the corner


def scene() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint64)
    at = (np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) + 0.5) * VOXEL
    labels[np.linalg.norm(at - CENTRE, axis=-1) < RADIUS] = BALL
    labels[:, :, 56:] = SLAB  # touches five faces of the volume
    labels[1:3, 1:3, 1:3] = DUST
    labels[30:46, 4:9, 4:9] = TOP
    return labels


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("labels") / "segmentation.zarr")
    info = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint64"), voxel_size_nm=VOXEL, offset_voxels=OFFSET)
    labels = scene()
    fine, middle, coarse = create_pyramid(url, info, [(1, 2, 2), (2, 2, 2)])
    fine.write(fine.box, labels)
    middle.write(middle.box, np.ascontiguousarray(labels[:, ::2, ::2]))
    coarse.write(coarse.box, np.ascontiguousarray(labels[::2, ::4, ::4]))
    return url


def meshes(
    segmentation: str, out: Path, rng: np.random.Generator, *, passes: bool = True, **options: object
) -> dict[str, bytes]:
    settings = MeshOptions(**{"dust_voxels": 9, "chunk_voxels": (16, 16, 16), **options})
    done = run_stages(mesh_stages(prepare_meshes(segmentation, str(out), settings)), rng)
    assert ("meshes_pass_1" in done) is passes
    assert done[-1] == "meshes"
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted((out / "precomputed").rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finished(segmentation: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("meshes")
    meshes(segmentation, out, np.random.default_rng(0), max_error_nm=0)
    return out


def test_a_ball_over_many_chunks_is_closed_and_of_the_right_size(finished: Path, tmp_path: Path) -> None:
    layer = layer_of(finished, mesh="precomputed")
    vertices, faces = welded(*read_mesh(layer, BALL, 0, tmp_path), tolerance=0.5)
    assert len(faces) > 6000
    assert open_edges(faces) == 0
    volume, area = volume_and_area(vertices, faces)
    assert volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.03)
    assert area == pytest.approx(4 * np.pi * RADIUS**2, rel=0.12)  # steps of voxels make it larger
    middle = (vertices.min(0) + vertices.max(0)) / 2
    np.testing.assert_allclose(middle, (CENTRE + np.array(OFFSET) * VOXEL)[::-1], atol=10)


def test_surfaces_close_at_the_faces_of_the_volume(finished: Path, tmp_path: Path) -> None:
    vertices, faces = welded(*read_mesh(layer_of(finished, mesh="precomputed"), SLAB, 0, tmp_path), tolerance=0.5)
    assert open_edges(faces) == 0
    volume, _ = volume_and_area(vertices, faces)
    assert volume == pytest.approx(50 * 20 * 57 * 10 * 8 * 10, rel=0.03)
    corner = np.array(OFFSET) * VOXEL
    np.testing.assert_allclose(vertices.min(0), (corner + np.array((0, 0, 56)) * VOXEL)[::-1], atol=0.1)
    np.testing.assert_allclose(vertices.max(0), (corner + np.array(SHAPE) * VOXEL)[::-1], atol=0.1)


def test_simplified_surfaces_stay_closed(segmentation: str, tmp_path: Path) -> None:
    meshes(segmentation, tmp_path, np.random.default_rng(1), max_error_nm=15, levels=1)
    layer = layer_of(tmp_path, mesh="precomputed")
    vertices, faces = welded(*read_mesh(layer, BALL, 0, tmp_path), tolerance=0.5)
    assert len(faces) < 3500  # of more than 6000
    assert open_edges(faces) == 0
    volume, area = volume_and_area(vertices, faces)
    assert volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.04)
    assert area == pytest.approx(4 * np.pi * RADIUS**2, rel=0.12)


@pytest.mark.parametrize("level", [1, 2])
def test_coarser_levels_lie_at_the_same_place(level: int, finished: Path, tmp_path: Path) -> None:
    vertices, faces = welded(*read_mesh(layer_of(finished, mesh="precomputed"), BALL, level, tmp_path), tolerance=0.5)
    assert open_edges(faces) == 0
    volume, _ = volume_and_area(vertices, faces)
    assert volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.1)
    middle = (vertices.min(0) + vertices.max(0)) / 2
    np.testing.assert_allclose(middle, (CENTRE + np.array(OFFSET) * VOXEL)[::-1], atol=25)


@pytest.mark.parametrize(("most_nm", "passes"), [(20, True), (40, False)])
def test_the_finest_detail_may_be_a_coarser_level(
    most_nm: float, passes: bool, segmentation: str, tmp_path: Path
) -> None:
    """Level 1 has voxels of 20 nm, level 2 of 40; a ball lies where it did, dust is counted in the finest voxels."""
    found = meshes(segmentation, tmp_path / "dust", np.random.default_rng(2), voxel_nm=most_nm, passes=passes)
    assert found == meshes(segmentation, tmp_path / "again", np.random.default_rng(3), voxel_nm=most_nm, passes=passes)
    layer = layer_of(tmp_path / "dust", mesh="precomputed")
    vertices, faces = welded(*read_mesh(layer, BALL, 0, tmp_path), tolerance=0.5)
    assert open_edges(faces) == 0
    assert len(faces) < 5500 * (20 / most_nm) ** 2  # of more than 6000 before
    volume, _ = volume_and_area(vertices, faces)
    assert volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.1)
    middle = (vertices.min(0) + vertices.max(0)) / 2
    np.testing.assert_allclose(middle, (CENTRE + np.array(OFFSET) * VOXEL)[::-1], atol=25)
    sizes = {segment: int((scene() == segment).sum()) for segment in (BALL, SLAB, TOP, DUST)}
    for limit, kept in ((sizes[TOP], [SLAB, BALL, TOP]), (sizes[TOP] + 1, [SLAB, BALL])):
        out = tmp_path / str(limit)
        meshes(segmentation, out, np.random.default_rng(4), voxel_nm=most_nm, dust_voxels=limit, passes=passes)
        folder = Folder(str(out / "precomputed"))
        sharding = Sharding.of(folder.read_json("info")["sharding"], folder.url)
        assert sorted(ShardedObjects(folder, sharding).ids()) == kept


def test_bytes_do_not_depend_on_the_order(segmentation: str, finished: Path, tmp_path: Path) -> None:
    again = meshes(segmentation, tmp_path, np.random.default_rng(5), max_error_nm=0)
    assert again == {
        str(p.relative_to(finished)): p.read_bytes() for p in (finished / "precomputed").rglob("*") if p.is_file()
    }


def test_dust_has_no_mesh(finished: Path) -> None:
    folder = Folder(str(finished / "precomputed"))
    sharding = Sharding.of(folder.read_json("info")["sharding"], folder.url)
    assert sorted(ShardedObjects(folder, sharding).ids()) == [SLAB, BALL, TOP]


def test_levels_follow_the_pyramid() -> None:
    shapes = [(64, 512, 512), (64, 256, 256), (64, 128, 128), (32, 64, 64)]
    factors = [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8)]
    details = plan_details(shapes, factors, 0, MeshOptions(chunk_voxels=(64, 64, 64)))
    assert [detail.chunk_voxels for detail in details] == [(64, 64, 64), (128, 64, 64), (256, 64, 64), (256, 64, 64)]
    assert len(plan_details(shapes, factors, 0, MeshOptions(chunk_voxels=(64, 64, 64), levels=2))) == 2
    assert len(plan_details(shapes, factors, 0, MeshOptions(chunk_voxels=(256, 512, 512)))) == 2
    later = plan_details(shapes, factors, 1, MeshOptions(chunk_voxels=(64, 64, 64)))
    assert [(detail.level, detail.chunk_voxels) for detail in later] == [
        (1, (64, 64, 64)),
        (2, (128, 64, 64)),
        (3, (128, 64, 64)),
    ]
    with pytest.raises(InvalidVolume, match="halves"):
        plan_details(shapes[:2], [(1, 1, 1), (1, 3, 3)], 0, MeshOptions())
    with pytest.raises(ValueError, match="even extents"):
        MeshOptions(chunk_voxels=(63, 64, 64))


def test_labels_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidVolume, match="got float64"):
        surfaces(np.zeros((3, 4, 5)), VOXEL, max_error_nm=0)
    assert surfaces(np.zeros((3, 4, 5), np.uint64), VOXEL, max_error_nm=0) == {}
