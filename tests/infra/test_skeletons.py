import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from osteoid import Skeleton as Oracle

from infra.skeletons import (
    PrecomputedSkeletons,
    Skeleton,
    decode_precomputed,
    encode_precomputed,
    from_swc,
    read_swc,
    to_swc,
    write_swc,
)
from models.errors import AccessDenied, InvalidInput, InvalidVolume, NotFound

TOP = (1 << 64) - 1


def forest(seed: int = 0, n: int = 30, roots: int = 3) -> Skeleton:
    """A random forest whose vertex order has nothing to do with its trees."""
    rng = np.random.default_rng(seed)
    edges = [(i, rng.integers(0, i)) for i in range(roots, n)]
    names = rng.permutation(n)
    vertices = rng.uniform(-1e6, 1e6, (n, 3)).astype(np.float32)
    return Skeleton(vertices, names[np.array(edges, dtype=np.int64).reshape(-1, 2)], rng.uniform(0, 500, n))


def segments_of(skeleton: Skeleton) -> set[frozenset[tuple[float, ...]]]:
    """Edges as pairs of positions: equal for equal graphs, whatever the order of vertices."""
    return {frozenset(tuple(map(float, skeleton.vertices[v])) for v in edge) for edge in skeleton.edges}


def points_of(skeleton: Skeleton) -> set[tuple[float, ...]]:
    return {(*map(float, v), float(r)) for v, r in zip(skeleton.vertices, skeleton.radii, strict=True)}


def test_properties_by_hand() -> None:
    skeleton = Skeleton(
        np.array([[0, 0, 0], [0, 0, 30], [0, 40, 30], [5, 0, 0], [9, 9, 9]]),
        np.array([[0, 1], [1, 2], [0, 3]]),
        np.ones(5),
    )
    assert skeleton.cable_length_nm == pytest.approx(75)
    assert skeleton.end_points.tolist() == [2, 3]
    assert skeleton.degrees.tolist() == [2, 2, 1, 1, 0]
    assert skeleton.components.tolist() == [0, 0, 0, 0, 1]
    assert (skeleton.vertices.dtype, skeleton.edges.dtype, skeleton.radii.dtype) == ("float32", "uint32", "float32")


@pytest.mark.parametrize(
    ("vertices", "edges", "radii", "message"),
    [
        (np.zeros((2, 3)), [[0, 2]], np.ones(2), "vertices 0 to 1"),
        (np.zeros((2, 3)), [[-1, 0]], np.ones(2), "indices -1 to 0"),
        (np.zeros((2, 3)), [[0, 1]], np.ones(3), "one radius per vertex"),
        (np.full((2, 3), np.nan), [[0, 1]], np.ones(2), "finite"),
    ],
)
def test_impossible_skeletons_are_refused(vertices, edges, radii, message) -> None:
    with pytest.raises(InvalidInput, match=message):
        Skeleton(vertices, np.array(edges), radii)


@given(seed=st.integers(0, 2**32 - 1), roots=st.integers(1, 5), more=st.integers(0, 60))
@settings(deadline=None, max_examples=40)
def test_swc_round_trip_is_exact(seed: int, roots: int, more: int) -> None:
    skeleton = forest(seed, roots + more, roots)
    back = from_swc(to_swc(skeleton))
    assert points_of(back) == points_of(skeleton)
    assert segments_of(back) == segments_of(skeleton)


def test_swc_text_by_hand() -> None:
    skeleton = Skeleton(np.array([[1, 2, 3], [4, 5, 6.5], [7, 8, 9]]), np.array([[0, 1]]), np.array([10, 20, 30]))
    lines = to_swc(skeleton).splitlines()
    assert lines[0] == "# unit: nm"
    assert lines[2] == "1 0 3.0 2.0 1.0 10.0 -1"
    assert "0 6.5 5.0 4.0 20.0 1" in lines[3] + lines[4]
    assert [line.split()[-1] for line in lines[2:]].count("-1") == 2
    micrometres = to_swc(skeleton, unit="um")
    assert micrometres.splitlines()[2] == "1 0 0.003 0.002 0.001 0.01 -1"
    np.testing.assert_allclose(from_swc(micrometres).vertices, from_swc(to_swc(skeleton)).vertices, rtol=1e-6)
    assert from_swc("1 0 1 2 3 4 -1\n", unit="um").vertices.tolist() == [[3000, 2000, 1000]]


def test_swc_parents_come_first_and_another_reader_agrees() -> None:
    skeleton = forest(1)
    text = to_swc(skeleton)
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert all(int(row[6]) < int(row[0]) == i for i, row in enumerate(rows, start=1))
    oracle = Oracle.from_swc(text)
    np.testing.assert_array_equal(
        np.sort(oracle.vertices[:, ::-1], axis=0), np.sort(skeleton.vertices.astype(np.float32), axis=0)
    )
    assert len(oracle.edges) == len(skeleton.edges)
    assert oracle.cable_length() == pytest.approx(skeleton.cable_length_nm, rel=1e-5)


def test_swc_that_cannot_be_is_refused(tmp_path: Path) -> None:
    ring = Skeleton(np.eye(3), np.array([[0, 1], [1, 2], [2, 0]]), np.ones(3))
    with pytest.raises(InvalidInput, match="cycle"):
        to_swc(ring)
    with pytest.raises(InvalidInput, match="unit"):
        to_swc(forest(), unit="feet")
    with pytest.raises(InvalidVolume, match="line 2: expected id type"):
        from_swc("# hello\n1 0 a b c 1 -1\n")
    with pytest.raises(InvalidVolume, match="got '1 0 1 2'"):
        from_swc("1 0 1 2\n")
    with pytest.raises(InvalidVolume, match="parent 7"):
        from_swc("1 0 0 0 0 1 7\n")
    with pytest.raises(InvalidVolume, match="every id once"):
        from_swc("1 0 0 0 0 1 -1\n1 0 0 0 0 1 -1\n")
    with pytest.raises(NotFound, match=r"none\.swc"):
        read_swc(str(tmp_path / "none.swc"))


def test_empty_skeleton_round_trips() -> None:
    empty = Skeleton(np.empty((0, 3)), np.empty((0, 2)), np.empty(0))
    assert len(from_swc(to_swc(empty)).vertices) == 0
    assert len(decode_precomputed(encode_precomputed(empty)).vertices) == 0
    assert empty.cable_length_nm == 0


def test_swc_file_in_a_new_folder(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "er" / "5.swc")
    write_swc(path, forest())
    assert segments_of(read_swc(path)) == segments_of(forest())


@pytest.mark.parametrize("where", ["path", "file", "memory"])
def test_precomputed_round_trip(where: str, tmp_path: Path) -> None:
    url = {"path": f"{tmp_path}/a/b", "file": f"file://{tmp_path}/a/b", "memory": "memory://bucket/skeletons"}[where]
    store = PrecomputedSkeletons(url).create(shard_bits=2)
    given = {TOP: forest(1), 3: forest(2), 1 << 53: forest(3)}
    ids = np.array(list(given), np.uint64)
    for shard in range(4):
        mine = ids[store.sharding.shards(ids) == shard].tolist()
        written = store.write(shard, [(segment, given[segment]) for segment in mine])
        assert len(written) == bool(mine)
    of_three = int(store.sharding.shards(np.array([3], np.uint64))[0])
    store.write(of_three, [(3, forest(4))])
    assert sorted(store.ids()) == sorted(given)
    assert store.has(TOP)
    assert not store.has(TOP - 1)
    again = PrecomputedSkeletons(url)
    for segment, seed in ((TOP, 1), (3, 4)):
        back, expected = again.read(segment), forest(seed)
        np.testing.assert_array_equal(back.vertices, expected.vertices)
        np.testing.assert_array_equal(back.edges, expected.edges)
        np.testing.assert_array_equal(back.radii, expected.radii)
    with pytest.raises(NotFound, match="/77"):
        again.read(77)
    with pytest.raises(NotFound):
        list(PrecomputedSkeletons(url + "/nowhere").ids())
    with pytest.raises(InvalidInput, match="segment id"):
        store.write(0, [(0, forest())])
    with pytest.raises(InvalidInput, match=f"of shard {3 - of_three}"):
        store.write(3 - of_three, [(3, forest())])
    if where == "memory":
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_bytes_are_xyz_and_an_oracle_reads_them() -> None:
    skeleton = forest(5)
    oracle = Oracle.from_precomputed(
        encode_precomputed(skeleton), vertex_attributes=[{"id": "radius", "data_type": "float32", "num_components": 1}]
    )
    np.testing.assert_array_equal(oracle.vertices, skeleton.vertices[:, ::-1])
    np.testing.assert_array_equal(oracle.edges, skeleton.edges)
    np.testing.assert_array_equal(oracle.radius, skeleton.radii)


_CLOUD_VOLUME = """
import json, sys, numpy as np
from cloudvolume import CloudVolume
volume = CloudVolume(sys.argv[1], progress=False)
skeleton = volume.skeleton.get(int(sys.argv[2]))
print(json.dumps([skeleton.vertices.tolist(), skeleton.edges.tolist(), skeleton.radius.tolist()]))
"""


def test_cloud_volume_reads_the_folder(tmp_path: Path) -> None:
    # In a process of its own: cloud-volume warns about its own dependencies while it is imported.
    skeleton = forest(6)
    PrecomputedSkeletons(f"{tmp_path}/skeletons").create().write(0, [(TOP, skeleton)])
    info = {
        "type": "segmentation",
        "data_type": "uint64",
        "num_channels": 1,
        "skeletons": "skeletons",
        "scales": [
            {
                "key": "0",
                "size": [8, 8, 8],
                "resolution": [10, 10, 10],
                "voxel_offset": [0, 0, 0],
                "chunk_sizes": [[8, 8, 8]],
                "encoding": "raw",
            }
        ],
    }
    (tmp_path / "info").write_text(json.dumps(info))
    command = [sys.executable, "-c", _CLOUD_VOLUME, f"precomputed://file://{tmp_path}", str(TOP)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    vertices, edges, radii = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_array_equal(np.array(vertices, np.float32), skeleton.vertices[:, ::-1])
    np.testing.assert_array_equal(edges, skeleton.edges)
    np.testing.assert_array_equal(np.array(radii, np.float32), skeleton.radii)


def test_damaged_objects_are_refused(tmp_path: Path) -> None:
    data = encode_precomputed(forest(7))
    for bad in (b"", data[:-1], data + b"x", data[:100]):
        with pytest.raises(InvalidVolume, match="there: expected"):
            decode_precomputed(bad, "there")
    wrong_edge = bytearray(data)
    wrong_edge[8 + 12 * 30 : 12 + 12 * 30] = b"\xff\xff\xff\x7f"
    with pytest.raises(InvalidVolume, match="vertices 0 to 29"):
        decode_precomputed(bytes(wrong_edge))
    (tmp_path / "info").write_text('{"@type": "neuroglancer_legacy_mesh"}')
    with pytest.raises(InvalidVolume, match="sharded skeletons"):
        list(PrecomputedSkeletons(str(tmp_path)).ids())


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_denies_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(AccessDenied):
        PrecomputedSkeletons(f"{tmp_path}/skeletons").create()
