"""Maps of ids applied to labels, and union-find over ids."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InvalidInput, InvalidVolume
from models.segmentation.relabel import indices_of, relabelled
from models.segmentation.union_find import union_find

ids = st.integers(1, 2**64 - 1) | st.integers(1, 12)


def uint64(values):
    return np.array(list(values), np.uint64)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(ids, ids, max_size=20), st.lists(ids, max_size=30))
def test_relabelled_equals_a_dictionary(mapping, labels):
    keys = uint64(sorted(mapping))
    values = uint64(mapping[key] for key in sorted(mapping))
    known = [*labels, 0, *mapping]
    result = relabelled(uint64(known), keys, values, missing="keep")
    assert result.tolist() == [mapping.get(label, label) for label in known]
    missing = [label for label in known if label and label not in mapping]
    if missing:
        with pytest.raises(InvalidInput, match=f"id {missing[0]} "):
            relabelled(uint64(known), keys, values)
    else:
        np.testing.assert_array_equal(relabelled(uint64(known), keys, values), result)


def test_relabelled_keeps_shape_background_and_neighbouring_large_ids():
    big = 2**53
    labels = np.asfortranarray(np.array([[0, big], [big + 1, big + 2], [big, 0]], np.uint64))
    result = relabelled(labels, uint64([big, big + 1, big + 2]), uint64([1, 2, 3]))
    np.testing.assert_array_equal(result, [[0, 1], [2, 3], [1, 0]])
    assert relabelled(uint64([0]), uint64([0]), uint64([9])).tolist() == [9]


def test_the_missing_id_is_named_with_its_place():
    with pytest.raises(InvalidInput, match=r"id 7 at \(1, 0\)"):
        relabelled(np.array([[1, 1], [7, 1]], np.uint64), uint64([1]), uint64([2]))
    with pytest.raises(InvalidInput, match="7 is not"):
        indices_of(uint64([1, 7]), uint64([1, 2]))


@pytest.mark.parametrize(
    ("labels", "keys", "values"),
    [
        (np.zeros(2, np.int64), uint64([1]), uint64([1])),
        (uint64([1]), uint64([2, 1]), uint64([1, 1])),
        (uint64([1]), uint64([1, 1]), uint64([1, 1])),
        (uint64([1]), uint64([1, 2]), uint64([1])),
        (uint64([1]), np.array([1]), uint64([1])),
    ],
)
def test_broken_maps_are_refused(labels, keys, values):
    with pytest.raises(InvalidVolume, match="expected"):
        relabelled(labels, keys, values)


def reference_components(pairs):
    groups = []
    for pair in pairs:
        touched = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if not group & set(pair)] + [set(pair).union(*touched)]
    return {member: min(group) for group in groups for member in group}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(ids, ids), max_size=30))
def test_union_find_equals_merging_sets(pairs):
    keys, roots = union_find(uint64(a for a, _ in pairs), uint64(b for _, b in pairs))
    expected = reference_components(pairs)
    assert keys.tolist() == sorted(expected)
    assert roots.tolist() == [expected[key] for key in keys.tolist()]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(ids, ids), max_size=30), st.integers(0, 30))
def test_forests_of_parts_make_the_forest_of_all(pairs, cut):
    whole = union_find(uint64(a for a, _ in pairs), uint64(b for _, b in pairs))
    parts = [union_find(uint64(a for a, _ in part), uint64(b for _, b in part)) for part in (pairs[:cut], pairs[cut:])]
    again = union_find(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    np.testing.assert_array_equal(again, whole)


def test_long_chains_and_wrong_input():
    chain = np.arange(1, 10001, dtype=np.uint64)
    keys, roots = union_find(chain[:-1][::-1].copy(), chain[1:][::-1].copy())
    assert keys.size == 10000
    assert set(roots.tolist()) == {1}
    with pytest.raises(InvalidVolume, match="one length"):
        union_find(chain, chain[1:])
    with pytest.raises(InvalidVolume, match="uint64"):
        union_find(chain.astype(np.int64), chain)
