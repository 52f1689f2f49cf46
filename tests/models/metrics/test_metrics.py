import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.metrics import adapted_rand_error
from skimage.metrics import variation_of_information as skimage_voi

from models.errors import InvalidInput, InvalidVolume
from models.geometry import Box, ChunkGrid
from models.metrics.contingency import ContingencyTable, contingency_table, merge_tables
from models.metrics.rand import adapted_rand
from models.metrics.voi import variation_of_information


def pairs(table: ContingencyTable) -> dict[tuple[int, int], int]:
    return {(int(p), int(t)): int(n) for p, t, n in zip(table.pred, table.truth, table.counts, strict=True)}


def random_labels(rng: np.random.Generator, shape: tuple[int, ...], ids: int) -> np.ndarray:
    return rng.integers(0, ids, shape, dtype=np.uint64)


def test_table_by_hand() -> None:
    pred = np.array([[1, 1, 2], [2, 0, 5]], dtype=np.uint16)
    truth = np.array([[7, 7, 7], [0, 9, 9]], dtype=np.int64)
    table = contingency_table(pred, truth)
    assert pairs(table) == {(1, 7): 2, (2, 7): 1, (0, 9): 1, (5, 9): 1}
    assert (table.voxels, table.ignored, table.unlabelled) == (5, 1, 1)
    assert table.counts.dtype == np.int64
    assert table.pred.dtype == table.truth.dtype == np.uint64
    assert pairs(contingency_table(pred, truth, ignore_truth=()))[2, 0] == 1
    assert pairs(contingency_table(pred, truth, ignore_truth=(9, 7))) == {(2, 0): 1}


def test_ids_up_to_the_last_uint64_stay_apart() -> None:
    top = (1 << 64) - 1
    pred = np.array([top, top - 1, 1 << 53, (1 << 53) + 1, top], dtype=np.uint64)
    truth = np.array([top, top, top - 1, top - 1, top], dtype=np.uint64)
    assert pairs(contingency_table(pred, truth)) == {
        (top, top): 2,
        (top - 1, top): 1,
        (1 << 53, top - 1): 1,
        ((1 << 53) + 1, top - 1): 1,
    }
    assert contingency_table(pred, truth, ignore_truth=(top,)).ignored == 3


def test_more_pairs_than_the_first_hash_table_holds() -> None:
    rng = np.random.default_rng(0)
    pred = rng.integers(0, 1 << 63, 40_000, dtype=np.uint64)
    truth = np.arange(1, 40_001, dtype=np.uint64)
    table = contingency_table(pred, truth)
    np.testing.assert_array_equal(table.truth, truth)
    np.testing.assert_array_equal(table.pred, pred)
    assert (table.counts == 1).all()


def test_fortran_order_and_strides_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    pred, truth = random_labels(rng, (7, 8, 9), 4), random_labels(rng, (7, 8, 9), 3)
    wide = np.zeros((7, 8, 18), dtype=np.uint64)
    wide[:, :, ::2] = pred
    expected = pairs(contingency_table(pred, truth))
    assert pairs(contingency_table(np.asfortranarray(pred), truth)) == expected
    assert pairs(contingency_table(wide[:, :, ::2], truth)) == expected


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=hnp.array_shapes(min_dims=3, max_dims=3, max_side=9),
    chunk=st.tuples(*[st.integers(1, 9)] * 3),
    order=st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=50)
def test_tables_of_chunks_add_up_to_the_whole(seed, shape, chunk, order) -> None:
    rng = np.random.default_rng(seed)
    pred, truth = random_labels(rng, shape, 5), random_labels(rng, shape, 4)
    boxes = [c.box for c in ChunkGrid(Box.from_shape(shape), chunk)]
    order.shuffle(boxes)
    merged = merge_tables(contingency_table(pred[b.slices()], truth[b.slices()]) for b in boxes)
    whole = contingency_table(pred, truth)
    assert pairs(merged) == pairs(whole)
    np.testing.assert_array_equal(merged.truth, whole.truth)
    assert merged.ignored == whole.ignored
    slow = {(int(p), int(t)) for p, t in zip(pred.ravel(), truth.ravel(), strict=True) if t}
    assert set(pairs(whole)) == slow
    assert all(((pred == p) & (truth == t)).sum() == n for (p, t), n in pairs(whole).items())


def test_merging_with_a_small_buffer_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    tables = [contingency_table(random_labels(rng, (500,), 9), random_labels(rng, (500,), 9)) for _ in range(20)]
    expected = merge_tables(tables)
    monkeypatch.setattr("models.metrics.contingency._PENDING_PAIRS", 10)
    assert pairs(merge_tables(tables)) == pairs(expected)
    assert merge_tables([]).voxels == 0


def test_scores_by_hand() -> None:
    # truth 1 is split in halves; truth 2 and 3 are merged: 4 + 4 + 4 voxels.
    truth = np.repeat([1, 2, 3], 4)
    pred = np.array([1, 1, 2, 2] + [3] * 8)
    table = contingency_table(pred, truth)
    voi = variation_of_information(table)
    assert voi.split == pytest.approx(4 / 12 * 1.0)  # one bit for a third of the voxels
    assert voi.merge == pytest.approx(8 / 12 * 1.0)
    assert voi.total == pytest.approx(1.0)
    rand = adapted_rand(table)
    both, in_pred, in_truth = 2 + 2 + 12 + 12, 2 + 2 + 56, 3 * 12
    assert rand.precision == pytest.approx(both / in_pred)
    assert rand.recall == pytest.approx(both / in_truth)
    assert rand.error == pytest.approx(1 - 2 * both / (in_pred + in_truth))


def test_predicted_background_by_hand() -> None:
    truth = np.repeat([1, 2], 4)
    pred = np.array([1, 1, 0, 0, 2, 2, 0, 0])
    table = contingency_table(pred, truth)
    assert adapted_rand(table, pred_background="segment").precision == pytest.approx(8 / 16)
    assert adapted_rand(table, pred_background="singletons").precision == 1
    assert adapted_rand(table, pred_background="singletons").recall == pytest.approx(4 / 24)
    ignoring = adapted_rand(table, pred_background="ignore")
    assert (ignoring.error, ignoring.precision, ignoring.recall) == (0, 1, 1)
    one = variation_of_information(table, pred_background="segment")
    assert (one.split, one.merge) == (pytest.approx(1.0), pytest.approx(0.5))
    single = variation_of_information(table, pred_background="singletons")
    assert (single.split, single.merge) == (pytest.approx(0.5 * 1 + 0.5 * 2), 0)
    relabelled = contingency_table(np.array([1, 1, 10, 11, 2, 2, 12, 13]), truth)
    assert single == variation_of_information(relabelled)
    assert adapted_rand(table, pred_background="singletons") == adapted_rand(relabelled)
    assert variation_of_information(table, pred_background="ignore").total == 0


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 400), a=st.integers(2, 12), b=st.integers(2, 12))
@settings(deadline=None, max_examples=60)
def test_scores_are_those_of_scikit_image(seed: int, n: int, a: int, b: int) -> None:
    rng = np.random.default_rng(seed)
    pred, truth = rng.integers(0, a, n), rng.integers(0, b, n)
    truth[:2], pred[:2] = 1, 1  # at least one pair on each side: scikit-image divides by their number
    table = contingency_table(pred, truth)
    rand = adapted_rand(table)
    # scikit-image divides by the pairs of its first argument for "precision", so the two names are exchanged there.
    error, recall, precision = adapted_rand_error(truth, pred)
    assert (rand.error, rand.precision, rand.recall) == pytest.approx((error, precision, recall), abs=1e-12)
    kept = truth > 0
    voi = variation_of_information(table)
    split, merge = skimage_voi(truth[kept], pred[kept])
    assert (voi.split, voi.merge) == (pytest.approx(split, abs=1e-9), pytest.approx(merge, abs=1e-9))


def test_identical_segmentations_and_renamed_ids_score_perfectly() -> None:
    truth = random_labels(np.random.default_rng(3), (6, 7, 8), 9)
    table = contingency_table(truth * np.uint64(1 << 60), truth)
    assert variation_of_information(table).total == 0
    assert adapted_rand(table).error == 0


def test_degenerate_pairs() -> None:
    lonely = contingency_table(np.arange(5), np.arange(1, 6))
    assert adapted_rand(lonely).error == 0
    shattered = contingency_table(np.arange(5), np.ones(5, dtype=int))
    result = adapted_rand(shattered)
    assert (result.error, result.precision, result.recall) == (1, 1, 0)
    assert variation_of_information(shattered).split == pytest.approx(math.log2(5))


def test_counts_of_a_petavoxel_do_not_overflow() -> None:
    big = 10**15
    ids = np.array([1, 2], dtype=np.uint64)
    table = ContingencyTable(ids, np.ones(2, np.uint64), np.array([big, big], dtype=np.int64))
    assert adapted_rand(table).recall == pytest.approx(0.5)
    assert variation_of_information(table).split == pytest.approx(1.0)


def test_bad_input_is_refused() -> None:
    ones = np.ones((2, 3, 4), dtype=np.uint64)
    with pytest.raises(InvalidVolume, match=r"one shape, got \(2, 3, 4\) and \(4, 3, 2\)"):
        contingency_table(ones, ones.T)
    with pytest.raises(InvalidVolume, match="integer labels, got dtype float32"):
        contingency_table(ones.astype(np.float32), ones)
    with pytest.raises(InvalidVolume, match="at least 0, got -3"):
        contingency_table(ones, np.full(ones.shape, -3))
    with pytest.raises(InvalidInput, match="ignore_truth"):
        contingency_table(ones, ones, ignore_truth=(-1,))
    with pytest.raises(InvalidInput, match="at least one voxel to score"):
        adapted_rand(contingency_table(ones, np.zeros_like(ones)))
    with pytest.raises(InvalidInput, match="24 unlabelled"):
        variation_of_information(contingency_table(ones * np.uint64(0), ones), pred_background="ignore")
    with pytest.raises(InvalidInput, match="pred_background"):
        adapted_rand(contingency_table(ones, ones), pred_background="maybe")  # type: ignore[arg-type]
