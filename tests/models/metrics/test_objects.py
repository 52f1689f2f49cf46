import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InvalidInput
from models.metrics.bootstrap import bootstrap
from models.metrics.contingency import contingency_table, merged_predictions, without_truth
from models.metrics.cremi import cremi_score
from models.metrics.objects import object_terms, score_intervals
from models.metrics.rand import AdaptedRand, adapted_rand
from models.metrics.voi import VOI, variation_of_information

BACKGROUNDS = ("segment", "singletons", "ignore")


def test_cremi_score_by_hand() -> None:
    assert cremi_score(VOI(0.5, 1.5), AdaptedRand(0.08, 0.9, 0.9)) == pytest.approx(0.4)
    assert cremi_score(VOI(0, 0), AdaptedRand(0, 1, 1)) == 0


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(5, 300), background=st.sampled_from(BACKGROUNDS))
@settings(max_examples=60)
def test_terms_of_objects_add_up_to_the_scores(seed: int, n: int, background) -> None:
    rng = np.random.default_rng(seed)
    pred, truth = rng.integers(0, 6, n), rng.integers(0, 5, n)
    pred[:2], truth[:2] = 3, 2
    table = contingency_table(pred, truth)
    terms = object_terms(table, pred_background=background)
    voi, rand = (score(table, pred_background=background) for score in (variation_of_information, adapted_rand))
    voxels = terms.voxels.sum()
    assert terms.split.sum() / voxels == pytest.approx(voi.split, abs=1e-12)
    assert terms.merge.sum() / voxels == pytest.approx(voi.merge, abs=1e-12)
    assert terms.voi_cost.sum() == pytest.approx(voi.total, abs=1e-12)
    error = 1 - 2 * terms.both.sum() / (terms.in_pred.sum() + terms.in_truth.sum())
    assert error == pytest.approx(rand.error, abs=1e-12)


def test_the_worst_object_is_the_one_that_was_merged_and_split() -> None:
    truth = np.repeat([7, 8, 9], 8)
    pred = np.repeat([1, 2, 2, 3, 4, 4], 4)  # 7 split in halves, 8 split and merged with 7, 9 whole
    terms = object_terms(contingency_table(pred, truth))
    np.testing.assert_array_equal(terms.truth, [7, 8, 9])
    np.testing.assert_allclose(terms.voi_cost, [12 / 24, 12 / 24, 0])
    np.testing.assert_allclose(terms.split, [8, 8, 0])
    np.testing.assert_allclose(terms.merge, [4, 4, 0])


def test_intervals_hold_the_score_and_shrink_with_objects() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for objects in (20, 400):
        truth = np.repeat(np.arange(1, objects + 1), 50)
        pred = np.where(rng.random(truth.size) < 0.3, truth + 1000, truth)
        pred[truth % 5 == 0] = 5000
        table = contingency_table(pred, truth)
        intervals = score_intervals(object_terms(table), rng=np.random.default_rng(1), samples=300)
        voi, rand = variation_of_information(table), adapted_rand(table)
        for name, score in (
            ("voi_split", voi.split),
            ("voi_merge", voi.merge),
            ("voi_sum", voi.total),
            ("adapted_rand_error", rand.error),
            ("cremi_score", cremi_score(voi, rand)),
        ):
            assert intervals[name].low < score < intervals[name].high, name
        assert intervals["voi_sum"].objects == objects
        widths.append(intervals["voi_split"].high - intervals["voi_split"].low)
    assert widths[1] < widths[0] / 2
    again = score_intervals(object_terms(table), rng=np.random.default_rng(1), samples=300)
    assert again == intervals


def test_bootstrap_of_a_mean_is_that_of_theory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=500)
    terms = np.stack([values, np.ones(500)], axis=1)
    statistic = {"mean": lambda sums: sums[:, 0] / sums[:, 1]}
    found = bootstrap(terms, statistic, rng=np.random.default_rng(3), samples=4000)["mean"]
    error = 1.96 * values.std() / 500**0.5
    assert (found.low, found.high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.15 * error)
    monkeypatch.setattr("models.metrics.bootstrap._BLOCK", 1000)  # two draws at a time: the same draws
    again = bootstrap(terms, statistic, rng=np.random.default_rng(3), samples=4000)["mean"]
    assert (again.low, again.high) == pytest.approx((found.low, found.high), rel=1e-12)
    with pytest.raises(InvalidInput, match="two objects"):
        bootstrap(terms[:1], statistic, rng=np.random.default_rng(0))
    with pytest.raises(InvalidInput, match="confidence"):
        bootstrap(terms, statistic, rng=np.random.default_rng(0), confidence=1)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_tables_are_renamed_and_filtered_as_the_voxels_would_be(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pred = rng.integers(0, 9, 200).astype(np.uint64) << np.uint64(40)
    truth = rng.integers(0, 5, 200)
    keys = np.unique(rng.choice(pred, 4))
    values = rng.choice(pred, keys.size)
    renamed = pred.copy()
    for key, value in zip(keys, values, strict=True):
        renamed[pred == key] = value
    everything = contingency_table(pred, truth, ignore_truth=())
    expected = contingency_table(renamed, truth)
    found = without_truth(merged_predictions(everything, keys, values))
    for name in ("pred", "truth", "counts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.ignored == expected.ignored
