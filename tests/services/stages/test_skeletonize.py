import numpy as np
import pytest
from pydantic import ValidationError

from infra.skeletons import Skeleton, to_swc
from models.errors import InvalidInput, InvalidVolume
from models.geometry import Box, ChunkGrid
from services.stages.skeletonize import (
    SkeletonOptions,
    merge_fragments,
    overlap_box,
    possibly_large,
    skeletonize_chunk,
)

VOXEL = (10.0, 10.0, 10.0)
TOP = (1 << 64) - 1
SHAPE = (60, 70, 130)
ENDS = [(30, 35, 5), (12, 12, 115), (48, 55, 120), (30, 60, 60)]
"""A trunk from the first to the fork at (30, 35, 60), then three branches."""
FORK = (30, 35, 60)


def tube(labels: np.ndarray, start, stop, radius: float, value: int) -> None:
    """Draw a round tube between two voxels."""
    a, b = np.array(start, float), np.array(stop, float)
    grid = np.stack(np.meshgrid(*map(np.arange, labels.shape), indexing="ij"), axis=-1)
    along = np.clip(((grid - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
    labels[np.linalg.norm(grid - a - along[..., None] * (b - a), axis=-1) <= radius] = value


@pytest.fixture(scope="module")
def branching() -> np.ndarray:
    labels = np.zeros(SHAPE, dtype=np.uint64)
    for end in ENDS:
        tube(labels, FORK, end, 4.2, TOP)
    return labels


def options(**changes) -> SkeletonOptions:
    return SkeletonOptions(**{"const_nm": 80, "scale": 1.5, **changes})


def chunked(labels: np.ndarray, chunk, settings: SkeletonOptions, start=(0, 0, 0)) -> list[tuple[int, Skeleton]]:
    volume = Box.from_shape(labels.shape, start)
    found = []
    for piece in ChunkGrid(volume, chunk):
        box = overlap_box(piece.box, volume)
        found += skeletonize_chunk(labels[box.slices(start)], box, VOXEL, options=settings)
    return found


def same(a: Skeleton, b: Skeleton) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("vertices", "edges", "radii"))


@pytest.mark.parametrize("chunk", [(60, 70, 50), (32, 32, 32), (23, 41, 37), (17, 70, 29)])
def test_chunked_skeleton_is_one_tree_with_the_right_ends(branching: np.ndarray, chunk) -> None:
    whole = merge_fragments([s for _, s in chunked(branching, SHAPE, options())], options=options())
    fragments = chunked(branching, chunk, options())
    assert {segment for segment, _ in fragments} == {TOP}
    assert len(fragments) > 1
    merged = merge_fragments([skeleton for _, skeleton in fragments], options=options())
    assert int(merged.components.max()) == 0
    assert len(merged.edges) == len(merged.vertices) - 1
    assert len(merged.end_points) == len(whole.end_points) == len(ENDS)
    assert (merged.degrees > 2).sum() <= 2
    assert merged.cable_length_nm == pytest.approx(whole.cable_length_nm, rel=0.1)
    for end in ENDS:
        distances = np.linalg.norm(merged.vertices[merged.end_points] - (np.array(end) + 0.5) * VOXEL, axis=1)
        assert distances.min() < 80
    assert to_swc(merged).count(" -1\n") == 1


def test_order_of_fragments_does_not_matter(branching: np.ndarray) -> None:
    fragments = [skeleton for _, skeleton in chunked(branching, (23, 41, 37), options())]
    expected = merge_fragments(fragments, options=options())
    rng = np.random.default_rng(0)
    for _ in range(5):
        shuffled = [fragments[i] for i in rng.permutation(len(fragments))]
        assert same(expected, merge_fragments(shuffled, options=options()))


def test_fragments_meet_at_one_voxel_of_the_shared_plane() -> None:
    labels = np.zeros((20, 22, 60), dtype=np.uint16)
    tube(labels, (9, 10, 0), (9, 10, 59), 4, 7)
    boxes = [Box((0, 0, 0), (20, 22, 31)), Box((0, 0, 30), (20, 22, 60))]
    ((_, first),), ((_, second),) = (
        skeletonize_chunk(labels[box.slices()], box, VOXEL, options=options()) for box in boxes
    )
    shared = set(map(tuple, first.vertices.tolist())) & set(map(tuple, second.vertices.tolist()))
    assert len(shared) == 1
    assert next(iter(shared)) == (95.0, 105.0, 305.0)


def test_fragment_lies_where_the_box_is() -> None:
    labels = np.zeros((9, 11, 40), dtype=np.int32)
    tube(labels, (4, 5, 2), (4, 5, 37), 2.5, 3)
    voxel = (40.0, 8.0, 4.0)
    ((_, here),) = skeletonize_chunk(labels, Box.from_shape(labels.shape), voxel, options=options())
    box = Box.from_shape(labels.shape, (100, 2000, 30000))
    ((segment, there),) = skeletonize_chunk(labels, box, voxel, options=options())
    assert segment == 3
    assert (there.vertices - here.vertices == (4000.0, 16000.0, 120000.0)).all()
    index = np.rint(here.vertices / voxel - 0.5).astype(int)
    assert (labels[tuple(index.T)] == 3).all()
    assert here.radii.max() < 40


def test_segments_above_2_to_the_53_stay_apart_and_only_kept_ones_are_traced() -> None:
    labels = np.zeros((20, 30, 40), dtype=np.uint64)
    for row, segment in enumerate((1 << 53, (1 << 53) + 1, TOP)):
        tube(labels, (10, 5 + 10 * row, 3), (10, 5 + 10 * row, 36), 3, segment)
    box = Box.from_shape(labels.shape)
    traced = skeletonize_chunk(labels, box, VOXEL, options=options())
    assert [segment for segment, _ in traced] == [1 << 53, (1 << 53) + 1, TOP]
    kept = np.array([TOP, 5, 1 << 53], dtype=np.uint64)
    some = skeletonize_chunk(labels, box, VOXEL, options=options(), keep=kept)
    assert [segment for segment, _ in some] == [1 << 53, TOP]
    assert same(some[1][1], traced[2][1])
    assert skeletonize_chunk(labels, box, VOXEL, options=options(), keep=np.empty(0, np.uint64)) == []
    assert skeletonize_chunk(labels * np.uint64(0), box, VOXEL, options=options()) == []


def test_only_dust_inside_a_chunk_is_known_to_be_dust() -> None:
    labels = np.zeros((20, 30, 40), dtype=np.uint64)
    labels[5:9, 5:9, 5:9] = 3  # 64 voxels inside
    labels[5:15, 10:20, 10:20] = TOP  # 1000 voxels inside
    labels[:2, :2, :2], labels[-2:, -2:, -2:] = 5, 6
    volume, large = Box((0, 0, 0), (20, 60, 80)), np.array([TOP], np.uint64)
    for box, expected in (
        (Box((0, 0, 0), (20, 30, 40)), [6, TOP]),
        (Box((0, 30, 40), (20, 60, 80)), [5, TOP]),
        (Box((0, 0, 40), (20, 30, 80)), [5, 6, TOP]),
    ):
        assert possibly_large(labels, box, volume, large).tolist() == expected
    assert possibly_large(labels, Box.from_shape(labels.shape), Box.from_shape(labels.shape), large).tolist() == [TOP]
    assert possibly_large((labels % np.uint64(9)).astype(np.int32), box, volume, large[:0]).tolist() == [5, 6]


def test_labels_are_left_as_they_were(branching: np.ndarray) -> None:
    before = branching.copy()
    skeletonize_chunk(branching, Box.from_shape(SHAPE), VOXEL, options=options(), keep=np.array([5], dtype=np.uint64))
    skeletonize_chunk(branching, Box.from_shape(SHAPE), VOXEL, options=options())
    np.testing.assert_array_equal(branching, before)


def test_nothing_to_merge_is_an_empty_skeleton() -> None:
    assert len(merge_fragments([], options=options()).vertices) == 0


def test_smaller_radius_wins_at_a_shared_vertex() -> None:
    a = Skeleton(np.array([[0, 0, 0], [0, 0, 9]]), np.array([[0, 1]]), np.array([3, 8]))
    b = Skeleton(np.array([[0, 0, 9], [0, 0, 20]]), np.array([[0, 1]]), np.array([5, 4]))
    merged = merge_fragments([b, a], options=options())
    assert merged.radii.tolist() == [3, 5, 4]
    assert merged.edges.tolist() == [[0, 1], [1, 2]]


def test_bad_input_is_refused() -> None:
    labels, box = np.ones((3, 4, 5), dtype=np.uint32), Box.from_shape((3, 4, 5))
    with pytest.raises(InvalidVolume, match=r"shape \(3, 4, 5\) for box .* got uint32 of shape \(5, 4, 3\)"):
        skeletonize_chunk(labels.T, box, VOXEL, options=options())
    with pytest.raises(InvalidVolume, match="got float64"):
        skeletonize_chunk(labels.astype(float), box, VOXEL, options=options())
    with pytest.raises(InvalidVolume, match="got -1"):
        skeletonize_chunk(np.full((3, 4, 5), -1), box, VOXEL, options=options())
    with pytest.raises(InvalidInput, match="voxel_size_nm"):
        skeletonize_chunk(labels, box, (10, 0, 10), options=options())
    with pytest.raises(ValidationError, match="scal"):
        SkeletonOptions(scal=3)  # type: ignore[call-arg]
