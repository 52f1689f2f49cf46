import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidInput
from models.geometry import Box, ChunkGrid, triple

extents = st.tuples(*[st.integers(1, 12)] * 3)
corners = st.tuples(*[st.integers(-20, 20)] * 3)
boxes = st.builds(Box.from_shape, extents, corners)


@given(boxes, extents)
def test_chunks_tile_the_box(box: Box, chunk_shape: tuple[int, int, int]) -> None:
    chunks = list(ChunkGrid(box, chunk_shape))
    assert sum(chunk.box.size for chunk in chunks) == box.size
    assert all(box.contains(chunk.box) for chunk in chunks)
    assert len({chunk.box.start for chunk in chunks}) == len(chunks) == len(ChunkGrid(box, chunk_shape))
    assert len({chunk.name for chunk in chunks}) == len(chunks)


@given(boxes, boxes)
def test_intersection_is_what_both_contain(a: Box, b: Box) -> None:
    common = a.intersection(b)
    assert common.size == b.intersection(a).size
    assert a.contains(common)
    assert b.contains(common)
    assert common.size == 0 or all(max(p, q) == r for p, q, r in zip(a.start, b.start, common.start, strict=True))


@given(boxes)
def test_text_round_trip(box: Box) -> None:
    assert Box.parse(str(box)) == box


def test_slices_cut_relative_to_an_origin() -> None:
    assert Box((5, 6, 7), (8, 9, 11)).slices((5, 5, 5)) == (slice(0, 3), slice(1, 4), slice(2, 6))


@pytest.mark.parametrize("text", ["", "1:2", "1:2,3:4,5", "a:b,c:d,e:f", "3:1,0:1,0:1"])
def test_bad_boxes_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="box"):
        Box.parse(text)


@pytest.mark.parametrize("values", [None, (1, 2), (1, 2, "x"), (1, 2, 3.5), (1, 0, 3)])
def test_bad_triples_are_refused(values: object) -> None:
    with pytest.raises(InvalidInput, match="extent"):
        triple(values, "extent", minimum=1)


@given(boxes, extents)
def test_a_grid_is_a_sequence_of_its_chunks(box: Box, chunk_shape: tuple[int, int, int]) -> None:
    grid = ChunkGrid(box, chunk_shape)
    chunks = list(grid)
    assert [grid[rank] for rank in range(len(grid))] == chunks
    assert [grid.chunk(chunk.index) for chunk in chunks] == chunks
    assert [grid.rank(chunk) for chunk in chunks] == list(range(len(grid)))
    with pytest.raises(IndexError, match="place"):
        grid[len(grid)]


def test_a_chunk_beyond_the_grid_is_refused() -> None:
    with pytest.raises(InvalidInput, match="chunk index"):
        ChunkGrid(Box.from_shape((4, 4, 4)), (2, 2, 2)).chunk((0, 2, 0))
