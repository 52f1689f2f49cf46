import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InvalidInput
from models.tracing.forest import clean_forest


def line(*points: float) -> np.ndarray:
    return np.array([[0, 0, p] for p in points], dtype=np.float32).reshape(-1, 3)


def clean(vertices, edges, radii=None, *, join_nm=0.0, reach=0.0):
    vertices = np.asarray(vertices, dtype=np.float32)
    radii = np.ones(len(vertices), np.float32) if radii is None else np.asarray(radii, dtype=np.float32)
    reach = np.broadcast_to(np.asarray(reach, float), len(vertices))
    edges = np.array(edges, dtype=np.int64).reshape(-1, 2)
    alive, kept = clean_forest(vertices, edges, radii, join_nm=join_nm, reach_nm=reach)
    return alive.tolist(), {tuple(edge) for edge in kept.tolist()}


def test_ring_opens_at_its_thinnest_edge() -> None:
    square = [[0, 0, 0], [0, 0, 10], [0, 10, 10], [0, 10, 0]]
    _, kept = clean(square, [[0, 1], [1, 2], [2, 3], [3, 0]], [5, 5, 5, 1], reach=100)
    assert kept == {(0, 1), (1, 2), (2, 3)}  # (0, 3) is the first of the two thinnest
    _, equal = clean(square, [[3, 0], [2, 3], [1, 2], [0, 1], [1, 0], [2, 2]])
    assert equal == {(0, 3), (1, 2), (2, 3)}  # doubles and loops vanish


def ladder() -> tuple[list[list[float]], list[list[int]]]:
    """A rail 0-4 and another 5-9 beside it, 8 apart, joined at both ends; tails 10 and 11 at both ends of the first."""
    vertices = [[0, 0, 10.0 * i] for i in range(5)] + [[0, 8, 10.0 * i] for i in range(5)]
    vertices += [[0, 0, -500], [0, 0, 600]]
    rails = [[i, i + 1] for i in (0, 1, 2, 3, 5, 6, 7, 8)]
    return vertices, [*rails, [0, 5], [4, 9], [0, 10], [4, 11]]


def test_path_beside_a_thicker_one_is_removed_as_a_whole() -> None:
    vertices, edges = ladder()
    alive, kept = clean(vertices, edges, [9] * 5 + [3] * 5 + [9] * 2, reach=9)
    assert alive == [True] * 5 + [False] * 5 + [True] * 2
    assert kept == {(0, 1), (1, 2), (2, 3), (3, 4), (0, 10), (4, 11)}
    other_thicker, _ = clean(vertices, edges, [3] * 5 + [9] * 5 + [9] * 2, reach=9)
    assert other_thicker == [True, False, False, False, True] + [True] * 7


def test_path_that_leads_away_loses_only_an_edge() -> None:
    vertices, edges = ladder()
    alive, kept = clean(vertices, edges, [9] * 5 + [3, 3, 2, 3, 3] + [9] * 2, reach=7)
    assert all(alive)
    assert kept == {tuple(sorted(edge)) for edge in edges} - {(6, 7)}


def test_gaps_are_closed_between_nearest_vertices_only_within_reach() -> None:
    vertices = line(0, 10, 25, 35, 100)
    assert clean(vertices, [[0, 1], [2, 3]], join_nm=15)[1] == {(0, 1), (1, 2), (2, 3)}
    assert clean(vertices, [[0, 1], [2, 3]], join_nm=14)[1] == {(0, 1), (2, 3)}
    assert clean(vertices, [], join_nm=1000)[1] == {(0, 1), (1, 2), (2, 3), (3, 4)}


def test_ticks_go_shortest_first_and_the_survivor_is_measured_anew() -> None:
    # A trunk 0-2 of 400 nm; at 100 nm a side branch of 20, at its end a fork of 30 and 50: the 30 goes, then the 50 is
    # part of the trunk.
    vertices = [[0, 0, 0], [0, 0, 100], [0, 0, 400], [0, 20, 100], [0, 30, 400], [0, -50, 400]]
    edges = [[0, 1], [1, 2], [1, 3], [2, 4], [2, 5]]
    alive, kept = clean(vertices, edges, reach=60)
    assert alive == [True, True, True, False, False, True]
    assert kept == {(0, 1), (1, 2), (2, 5)}
    assert all(clean(vertices, edges, reach=19)[0])
    assert clean(vertices, edges, reach=[0, 0, 60, 60, 60, 60])[0] == [True, True, True, True, False, True]


def test_branch_that_grows_to_a_thicker_branch_point_is_judged_there() -> None:
    # From a trunk 0-1-2 with reach 100 at 1 leads a twig 1-3 that forks into 4 (10 nm) and 5 (20 nm), reach 15 at 3.
    vertices = [[0, 0, -500], [0, 0, 0], [0, 0, 500], [0, 50, 0], [0, 60, 0], [0, 50, 20]]
    edges = [[0, 1], [1, 2], [1, 3], [3, 4], [3, 5]]
    assert clean(vertices, edges, reach=[0, 100, 0, 15, 0, 0])[0] == [True, True, True, False, False, False]
    assert clean(vertices, edges, reach=[0, 50, 0, 15, 0, 0])[0] == [True, True, True, True, False, True]


def test_short_parts_without_a_branch_point_stay() -> None:
    assert all(clean(line(0, 1), [[0, 1]], reach=1000)[0])
    star = [[0, 0, 0], [0, 0, 1], [0, 2, 0], [3, 0, 0]]
    alive, kept = clean(star, [[0, 1], [0, 2], [0, 3]], reach=1000)
    assert alive == [True, False, True, True]
    assert kept == {(0, 2), (0, 3)}
    assert clean(line(), []) == ([], set())
    assert clean(line(5), []) == ([True], set())


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60), m=st.integers(0, 120), reach=st.floats(0, 5))
@settings(deadline=None, max_examples=80)
def test_result_is_a_forest_with_the_same_parts_and_no_ticks(seed: int, n: int, m: int, reach: float) -> None:
    rng = np.random.default_rng(seed)
    vertices = np.unique(rng.integers(0, 9, (n, 3)).astype(np.float32), axis=0)
    edges = rng.integers(0, len(vertices), (m, 2))
    radii = rng.integers(1, 4, len(vertices)).astype(np.float32)
    reaches = rng.uniform(0, 1, len(vertices)) + reach
    alive, kept = clean_forest(vertices, edges, radii, join_nm=0, reach_nm=reaches)
    shuffled = clean_forest(vertices, rng.permutation(edges)[:, ::-1], radii, join_nm=0, reach_nm=reaches)
    np.testing.assert_array_equal(alive, shuffled[0])
    np.testing.assert_array_equal(kept, shuffled[1])
    remaining = int(alive.sum())
    assert alive[kept].all()
    assert remaining - len(kept) == parts(len(vertices), edges)  # a forest with as many parts as before
    assert parts(len(vertices), kept) - int((~alive).sum()) == remaining - len(kept)
    for junction, length in side_branches(vertices, kept):
        assert length > reaches[junction]


def parts(n: int, edges: np.ndarray) -> int:
    names = list(range(n))
    for a, b in edges:
        old, new = names[a], names[b]
        names = [new if name == old else name for name in names]
    return len(set(names))


def side_branches(vertices: np.ndarray, edges: np.ndarray):
    neighbours: dict[int, list[int]] = {}
    for a, b in edges.tolist():
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    for leaf in [v for v, near in neighbours.items() if len(near) == 1]:
        before, vertex, length = -1, leaf, 0.0
        while len(neighbours[vertex]) < 3:
            following = [v for v in neighbours[vertex] if v != before]
            if not following:
                break
            length += float(np.linalg.norm(vertices[vertex].astype(float) - vertices[following[0]]))
            before, vertex = vertex, following[0]
        else:
            yield vertex, length


def test_bad_input_is_refused() -> None:
    with pytest.raises(InvalidInput, match="join_nm"):
        clean(line(0, 1), [[0, 1]], join_nm=-1)
    with pytest.raises(InvalidInput, match="reach_nm"):
        clean(line(0, 1), [[0, 1]], reach=-1)
    with pytest.raises(InvalidInput, match="a radius and a reach per vertex"):
        clean(line(0, 1), [[0, 1]], radii=[1])


def test_long_branch_beside_the_trunk_is_removed_and_one_that_leads_away_is_not() -> None:
    trunk = [[0, 0, 10.0 * i] for i in range(50)]
    beside = [[0, 9, 10.0 * i] for i in range(10, 40)]
    away = [[10.0 * i, 0, 250] for i in range(1, 9)]
    edges = [[i, i + 1] for i in range(49)] + [[50 + i, 51 + i] for i in range(29)] + [[10, 50]]
    edges += [[25, 80], *([80 + i, 81 + i] for i in range(7))]
    radii = [5.0] * 50 + [3.0] * 38
    alive, _ = clean(trunk + beside + away, edges, radii, reach=12)
    assert alive == [True] * 50 + [False] * 30 + [True] * 8
    assert all(clean(trunk + beside + away, edges, radii, reach=8)[0])
