"""Metrics: numbers by hand, published intervals, scikit-learn as a reference, and sums that add in any order."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from foedus import metrics
from foedus.errors import FoedusError, JobError
from foedus.metrics import BINS, BUILT, EDGES, Metric, add, measure, metric, scores, values


@pytest.fixture
def random():
    """Numbers that do not depend on which tests ran before."""
    return np.random.Generator(np.random.Philox(5))


Z = 1.959963984540054


def value(name, outputs, targets, reads="logits"):
    m = metric(name, reads)
    return m.value(m.sums(np.asarray(outputs), np.asarray(targets)))


def interval(name, sums):
    return metric(name).interval(np.asarray(sums))


# how outputs are read


def test_one_column_of_logits_goes_through_the_sigmoid():
    expected = [0.5, 0.75, 0.25]  # log 3 are odds of three to one
    assert scores(np.array([0, math.log(3), -math.log(3)])) == pytest.approx(expected)
    assert scores(np.array([[0], [math.log(3)], [-math.log(3)]])) == pytest.approx(expected)


def test_two_columns_of_logits_give_the_softmax_of_the_second():
    assert scores(np.array([[1.0, 1.0], [5.0, 5 + math.log(3)]])) == pytest.approx([0.5, 0.75])


def test_more_columns_of_logits_give_the_softmax_of_each():
    shares = np.array([[1.0, 2, 5], [3, 3, 2]])
    assert scores(np.log(shares)) == pytest.approx(shares / 8)


def test_probabilities_are_taken_as_they_are_and_never_guessed():
    p = np.array([0.25, 1.0])
    assert scores(p, "probabilities").tolist() == [0.25, 1.0]
    assert scores(np.stack([1 - p, p], 1), "probabilities").tolist() == [0.25, 1.0]
    assert scores(p) == pytest.approx(1 / (1 + np.exp(-p)))


def test_extreme_logits_give_scores_without_overflow():
    assert scores(np.array([-1e30, -800, 800, 1e30])).tolist() == [0, 0, 1, 1]
    assert scores(np.float32([[1e30, -1e30], [0, 1e30]])).tolist() == [0, 1]


@pytest.mark.parametrize(("reads", "outputs"), [("logits", [0.1, -0.1, 0.0, 2]), ("probabilities", [0.6, 0.4, 0.5, 1])])
def test_accuracy_of_one_column_counts_a_tie_as_class_0(reads, outputs):
    m = metric("accuracy", reads)
    assert m.sums(np.array(outputs), np.array([1, 0, 0, 0])).tolist() == [3, 4]
    assert m.sums(np.array(outputs)[:, None], np.array([1, 0, 1, 0])[:, None]).tolist() == [2, 4]


def test_accuracy_of_columns_is_that_of_the_largest():
    outputs = np.array([[1.0, 2, 3], [3, 2, 1], [0, 5, 0]])
    assert metric("accuracy").sums(outputs, np.array([2, 0, 0])).tolist() == [2, 3]


def test_accuracy_of_images_counts_pixels():
    outputs = np.zeros((2, 3, 2, 2))
    outputs[:, 2] = 1
    truth = np.array([[[2, 2], [2, 0]], [[2, 1], [0, 0]]])
    assert metric("accuracy").sums(outputs, truth).tolist() == [4, 8]
    assert metric("accuracy").sums(outputs[:, 2:], (truth == 2)[:, None]).tolist() == [4, 8]


def test_targets_may_be_whole_floats_and_booleans():
    assert value("accuracy", [1.0, -1.0], [1.0, 0.0]) == 1
    assert value("accuracy", [1.0, -1.0], [False, True]) == 0


@pytest.mark.parametrize("targets", [[0, 2], [0, -1], [0.5, 1], [math.nan, 1], [0, 1, 1], [[0, 1], [1, 0]], ["a", "b"]])
@pytest.mark.parametrize("name", ["accuracy", "auc", "brier", "dice"])
def test_targets_that_are_no_class_numbers_are_refused(name, targets):
    with pytest.raises(FoedusError, match="targets"):
        value(name, [0.3, 0.4], targets)


def test_one_hot_targets_are_refused():
    with pytest.raises(FoedusError, match=r"give classes \(2,\)"):
        value("accuracy", np.eye(2), np.eye(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["accuracy", "auc", "brier"])
def test_a_model_that_gives_nan_or_inf_is_refused(name, bad):
    with pytest.raises(FoedusError, match=r"hold NaN or Inf.*learning rate"):
        value(name, [0.0, bad], [0, 1])


@pytest.mark.parametrize(("outputs", "what"), [([-1.0, 0.5], "from -1 to 0.5"), ([0.5, 3.0], "from 0.5 to 3")])
def test_logits_given_as_probabilities_are_refused(outputs, what):
    with pytest.raises(FoedusError, match=f"{what} are no probabilities.*logits"):
        value("auc", outputs, [0, 1], "probabilities")


# values by hand and beside scikit-learn


def test_values_by_hand():
    outputs, targets = [2.0, 1.0, -1.0, -2.0, 3.0], [1, 0, 1, 0, 1]  # tp 2, fp 1, fn 1, tn 1
    assert metric("f1").sums(np.array(outputs), np.array(targets)).tolist() == [[1, 1], [1, 2]]
    assert value("precision", outputs, targets) == pytest.approx(2 / 3)
    assert value("recall", outputs, targets) == pytest.approx(2 / 3)
    assert value("f1", outputs, targets) == pytest.approx(2 / 3)
    assert value("accuracy", outputs, targets) == pytest.approx(3 / 5)
    assert value("balanced_accuracy", outputs, targets) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert value("auc", outputs, targets) == pytest.approx(5 / 6)  # of 3 x 2 pairs, (-1 < 1) is wrong
    assert value("brier", [0.5, 1.0, 0.2], [1, 1, 1], "probabilities") == pytest.approx((0.25 + 0 + 0.64) / 3)
    assert value("mae", [1.0, 2, 5], [1, 4, 4]) == 1
    assert value("rmse", [1.0, 2, 5], [1, 4, 4]) == pytest.approx(math.sqrt(5 / 3))


@pytest.mark.parametrize("columns", [1, 2])
def test_binary_metrics_agree_with_scikit_learn(columns, random):
    logits, y = random.normal(size=(300, columns)), random.integers(0, 2, 300)
    p = scores(logits)
    hard = p > 0.5
    assert value("precision", logits, y) == pytest.approx(reference.precision_score(y, hard))
    assert value("recall", logits, y) == pytest.approx(reference.recall_score(y, hard))
    assert value("f1", logits, y) == pytest.approx(reference.f1_score(y, hard))
    assert value("balanced_accuracy", logits, y) == pytest.approx(reference.balanced_accuracy_score(y, hard))
    assert value("brier", logits, y) == pytest.approx(reference.brier_score_loss(y, p))


def test_multiclass_metrics_agree_with_scikit_learn(random):
    logits, y = random.normal(size=(300, 4)), random.integers(0, 4, 300)
    m, p = metric("auc"), scores(logits)
    sums = m.sums(logits, y)
    assert sums.shape == (4, 2, BINS)
    assert abs(m.value(sums) - reference.roc_auc_score(y, p, multi_class="ovr")) <= m.bound(sums)
    assert value("brier", logits, y) == pytest.approx(reference.brier_score_loss(y, p))
    recall = reference.balanced_accuracy_score(y, logits.argmax(1))
    assert value("balanced_accuracy", logits, y) == pytest.approx(recall)


def test_balanced_accuracy_leaves_out_classes_that_nobody_has():
    assert value("balanced_accuracy", np.eye(3)[[0, 0, 1]], [0, 0, 0]) == pytest.approx(2 / 3)


def test_precision_of_three_classes_is_refused_with_a_remedy():
    with pytest.raises(JobError, match="balanced_accuracy"):
        value("precision", np.eye(3), [0, 1, 2])


def test_regression_never_broadcasts():
    assert value("mae", np.array([[1.0], [2.0]]), np.array([1.0, 2.0])) == 0
    assert value("rmse", np.array([1.0, 2.0]), np.array([[2.0], [1.0]])) == 1
    with pytest.raises(FoedusError, match="equal shapes"):
        value("mae", np.ones((3, 2)), np.ones(3))


def test_dice_is_the_mean_over_cases_of_the_foregrounds_dice():
    found = np.array([[1, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    truth = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    logits = np.moveaxis(np.eye(3)[found], -1, 1).reshape(4, 3, 2, 2)
    sums = metric("dice").sums(logits, truth.reshape(4, 2, 2))
    assert sums == pytest.approx(np.array([2 / 3 + 1 + 1 + 0, 4, 4 / 9 + 1 + 1]))
    assert metric("dice").sums(logits[:, :1] < 0.5, truth.reshape(4, 1, 2, 2).clip(0, 1)) == pytest.approx(sums)


@pytest.mark.parametrize("name", sorted(set(BUILT) - {"loss"}))
def test_a_metric_of_nothing_is_undefined(name):
    m = metric(name)
    sums = m.sums(np.empty(0), np.empty(0, np.int64))
    assert math.isnan(m.value(sums))
    assert m.interval is None or all(map(math.isnan, m.interval(sums)))


@pytest.mark.parametrize("name", sorted(set(BUILT) - {"loss"}))
def test_sums_over_batches_are_the_sums_over_all(name, random):
    x, y = random.normal(size=90), random.integers(0, 2, 90)
    m = metric(name)
    batches = [{name: m.sums(x[i : i + 17], y[i : i + 17])} for i in range(0, 90, 17)]
    whole = m.sums(x, y)
    assert add(batches)[name] == pytest.approx(whole, rel=1e-12)
    assert add(batches)[name].dtype == whole.dtype
    assert m.value(add(batches)[name]) == pytest.approx(m.value(whole), rel=1e-12)


def test_better_says_which_way_is_up():
    down = {name for name, m in BUILT.items() if m.better == "min"}
    assert down == {"loss", "brier", "ece", "mae", "rmse"}


# the area under the curve from bins


def exact_auc(p, y):
    """Over all pairs, by definition."""
    wins = (p[y == 1][:, None] > p[y == 0]).mean() + (p[y == 1][:, None] == p[y == 0]).mean() / 2
    return float(wins)


def test_the_bins_are_fixed_and_cover_all_scores():
    assert len(EDGES) == BINS - 1 == 4095
    assert (np.diff(EDGES) > 0).all()
    assert EDGES[BINS // 2 - 1] == 0  # a logit: probability one half
    sums = metric("auc", "probabilities").sums(np.array([0.0, 1.0, 0.5]), np.array([0, 1, 1]))
    assert sums.dtype == np.int64
    (_, lowest), *others = np.argwhere(sums).tolist()
    assert lowest < 3  # the first edges are too small for a float64 probability
    assert others == [[1, BINS // 2], [1, BINS - 1]]


probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@pytest.mark.properties
@given(probabilities, probabilities)
def test_the_binned_auc_is_within_its_bound(negatives, positives):
    p, y = np.array(negatives + positives), np.repeat([0, 1], [len(negatives), len(positives)])
    m = metric("auc", "probabilities")
    sums = m.sums(p, y)
    assert abs(m.value(sums) - exact_auc(p, y)) <= m.bound(sums) + 1e-12


@pytest.mark.parametrize(("scale", "most"), [(0.001, 0.1), (1, 0.001), (5, 0.001), (30, 0.002), (200, 0.01)])
@pytest.mark.parametrize("share", [0.5, 0.01])
def test_the_binned_auc_is_close_for_vague_sure_and_rare_scores(scale, most, share, random):
    y = (random.random(20_000) < share).astype(int)
    logits = scale * (random.normal(size=20_000) + y)
    m = metric("auc")
    sums = m.sums(logits, y)
    error = abs(m.value(sums) - reference.roc_auc_score(y, logits))
    assert error <= m.bound(sums) + 1e-12
    assert m.bound(sums) < most


def test_the_bound_is_half_the_pairs_that_share_a_bin():
    sums = np.zeros((2, BINS), np.int64)
    sums[:, 7], sums[0, 3], sums[1, 9] = (2, 3), 1, 1  # negatives 3, positives 4
    assert metric("auc").bound(sums) == pytest.approx(0.5 * 6 / 12)
    assert metric("auc").value(sums) == pytest.approx((3 * 1 + 3 + 3 * 1) / 12)


def test_equal_scores_count_one_half():
    assert value("auc", [0.3, 0.3], [0, 1]) == 0.5
    assert value("auc", [-1.0, 0.3, 0.3, 2.0], [0, 0, 1, 1]) == pytest.approx(3.5 / 4)


def test_the_auc_of_one_class_is_undefined():
    assert math.isnan(value("auc", [0.1, 0.2], [1, 1]))
    assert math.isnan(metric("auc").bound(metric("auc").sums(np.array([0.1]), np.array([0]))))


def test_sites_pool_their_auc_exactly(random):
    logits, y = random.normal(size=500), random.integers(0, 2, 500)
    m = metric("auc")
    parts = [{"auc": m.sums(logits[a:b], y[a:b])} for a, b in itertools.pairwise([0, 3, 200, 500])]
    assert (add(parts)["auc"] == m.sums(logits, y)).all()


# adding


numbers = st.floats(allow_nan=False, allow_infinity=False)


def nearest(exact):
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


@pytest.mark.properties
@given(st.lists(numbers, min_size=1, max_size=6), st.randoms())
def test_sums_are_correctly_rounded_in_any_order(column, shuffler):
    expected = nearest(sum(map(Fraction, column)))
    shuffler.shuffle(column)
    assert add({"m": [[x]]} for x in column)["m"].tolist() == [[expected]]


@pytest.mark.properties
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6), st.randoms())
def test_counts_are_exact_or_refused_in_any_order(column, shuffler):
    exact = sum(column)
    shuffler.shuffle(column)
    if -(2**63) <= exact < 2**63:
        assert add({"m": [x, 1]} for x in column)["m"].tolist() == [exact, len(column)]
    else:
        with pytest.raises(FoedusError, match="64 bits"):
            add({"m": [x, 1]} for x in column)


def test_the_largest_and_smallest_counts_are_kept():
    assert add([{"m": 2**63 - 2}, {"m": 1}])["m"] == 2**63 - 1
    assert add([{"m": -(2**63)}])["m"] == -(2**63)
    assert add([{"m": 2**62}, {"m": 2**62}, {"m": -(2**62)}])["m"] == 2**62


def test_ten_tenths_are_one():
    assert add([{"m": 0.1}] * 10)["m"] == 1.0


def test_sums_that_are_not_finite_stay_so_in_any_order():
    assert math.isnan(add([{"m": math.inf}, {"m": -math.inf}])["m"])
    assert math.isnan(add([{"m": 1.0}, {"m": math.nan}])["m"])
    assert add([{"m": 1e308}, {"m": 1e308}, {"m": -math.inf}])["m"] == -math.inf


def test_names_are_added_over_the_sites_that_have_them():
    total = add([{"b": 1.0, "a": 2}, {"b": 0.5}, {}])
    assert list(total) == ["a", "b"]
    assert (total["a"], total["a"].dtype, total["b"]) == (2, np.int64, 1.5)
    assert add([]) == {}


def test_small_types_are_widened_before_they_are_added():
    assert add([{"m": np.uint8([200])}] * 2)["m"].tolist() == [400]
    assert add([{"m": np.float32(2**24)}, {"m": np.float32(1)}])["m"] == 2**24 + 1
    assert add([{"m": 1}, {"m": 0.5}])["m"] == 1.5


def test_shapes_that_differ_are_refused():
    with pytest.raises(FoedusError, match=r"'m' has shape \(\) here, \(2,\) there"):
        add([{"m": [1, 2]}, {"m": 1}])


@pytest.mark.parametrize("bad", ["text", 1j, None, np.uint64(1), [1, "a"]])
def test_sums_that_are_no_numbers_are_refused_by_name(bad):
    with pytest.raises(FoedusError, match=r"metric 'm' is .*: return a float"):
        add([{"m": bad}])


# intervals


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_proportion_is_the_published_one(hits, n, low, high):
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    assert interval("accuracy", [hits, n]) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_a_mean_is_the_normal_one():
    sums = metric("mae").sums(np.array([1.0, 2, 3, 4]), np.zeros(4))
    half = Z * math.sqrt(5 / 3) / 2  # the variance of 1, 2, 3, 4 is 5/3
    assert interval("mae", sums) == pytest.approx((2.5 - half, 2.5 + half))
    squares = metric("rmse").sums(np.sqrt([1.0, 2, 3, 4]), np.zeros(4))
    assert interval("rmse", squares) == pytest.approx((math.sqrt(2.5 - half), math.sqrt(2.5 + half)))


def test_a_loss_without_its_squares_has_no_interval():
    assert all(map(math.isnan, interval("loss", [3.0, 4])))
    assert metric("loss").value(np.array([3.0, 4])) == 0.75


def test_the_interval_of_f1_follows_from_that_of_the_jaccard_index():
    low, high = interval("accuracy", [10, 20])
    assert interval("f1", [[99, 5], [5, 10]]) == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))


def test_precision_and_recall_have_wilson_intervals():
    confusion = [[50, 3], [7, 40]]
    assert interval("precision", confusion) == interval("accuracy", [40, 43])
    assert interval("recall", confusion) == interval("accuracy", [40, 47])


def test_the_interval_of_one_class_alone_is_that_of_its_recall():
    assert interval("balanced_accuracy", [[9, 0], [10, 0]]) == pytest.approx(interval("accuracy", [9, 10]))


def auc_sums(negatives, positives, area):
    """Two bins' counts with this area: some positives above all negatives, the others in one bin with them."""
    sums = np.zeros((2, BINS), np.int64)
    above = round((2 * area - 1) * positives)
    sums[0, 5], sums[1, 5], sums[1, 9] = negatives, positives - above, above
    return sums


@pytest.mark.parametrize(
    ("negatives", "positives", "area"), [(40, 60, 0.8), (9, 300, 0.95), (7, 7, 1.0), (30, 30, 0.5)]
)
def test_the_interval_of_the_auc_ends_where_its_score_test_rejects(negatives, positives, area):
    """Hanley and McNeil's variance (1982) with n - 1 and p - 1 both replaced by their mean: Newcombe 2006."""
    sums = auc_sums(negatives, positives, area)
    area = metric("auc").value(sums)
    for end in interval("auc", sums):
        q1, q2, mean = end / (2 - end), 2 * end**2 / (1 + end), (negatives + positives) / 2 - 1
        variance = (end * (1 - end) + mean * (q1 - end**2) + mean * (q2 - end**2)) / (negatives * positives)
        assert abs(end - area) == pytest.approx(Z * math.sqrt(max(0, variance)), abs=1e-9)
    low, high = interval("auc", sums)
    assert low < area <= high and (high == 1) == (area == 1)


@pytest.mark.parametrize("name", ["accuracy", "auc", "balanced_accuracy", "f1", "brier", "mae", "rmse"])
def test_about_95_percent_of_the_intervals_hold_the_truth(name, random):
    m = metric(name)
    y = (random.random(200_000) < 0.4).astype(int)
    logits = random.normal(size=200_000) + 1.5 * y - 0.75
    truth = m.value(m.sums(logits, y))
    draws = [m.interval(m.sums(logits[i : i + 100], y[i : i + 100])) for i in range(0, 200_000, 100)]
    assert 0.92 < np.mean([low <= truth <= high for low, high in draws]) < 0.975


# names


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(JobError, match=r"no metric 'acuracy': did you mean 'accuracy'\?"):
        metric("acuracy")
    with pytest.raises(JobError, match=r"choose from loss, accuracy"):
        metric(3)


def test_values_are_read_under_prefixed_names():
    sums = {"loss": [3.0, 4], "test_accuracy": [1, 4], "personal_test_accuracy": [3, 4], "accuracy": [0, 0]}
    found = values({**sums, "other": 1.0}, ["loss", metric("accuracy")])
    assert math.isnan(found.pop("accuracy"))
    assert found == {"loss": 0.75, "test_accuracy": 0.25, "personal_test_accuracy": 0.75}
    assert set(metrics.intervals(sums, ["accuracy"])) == {"test_accuracy", "personal_test_accuracy", "accuracy"}
    assert metrics.bounds({"test_auc": auc_sums(4, 4, 1.0)}, ["auc", "accuracy"]) == {"test_auc": 0.0}


def test_measure_takes_the_loss_from_the_learner():
    found = measure(["loss", "accuracy"], [1.0, -1.0], [1, 1], losses=[0.25, 0.5])
    assert {name: sums.tolist() for name, sums in found.items()} == {"loss": [0.75, 2, 0.3125], "accuracy": [1, 2]}
    with pytest.raises(JobError, match="'loss' needs"):
        measure(["loss"], [1.0], [1])
    with pytest.raises(JobError, match="comes from the learner"):
        metric("loss").sums(np.ones(1), np.ones(1))


def test_a_metric_of_ones_own_is_used_as_it_is():
    own = Metric("within", lambda x, y: np.array([(abs(x - y) < 1).sum(), len(y)]), lambda s: s[0] / s[1], "max")
    assert metric(own, "probabilities") is own
    total = add([measure([own], [1.0, 9.0], [1.5, 1.0]), measure([own], [2.0], [2.0])])
    assert values({"test_within": total["within"]}, [own]) == {"test_within": pytest.approx(2 / 3)}


def test_a_built_in_metric_can_be_told_that_outputs_are_probabilities():
    told = metric(metric("accuracy"), "probabilities")
    assert told.sums(np.array([0.4, 0.6]), np.array([0, 1])).tolist() == [2, 2]
    assert measure(["accuracy"], [0.4, 0.6], [0, 1], reads="probabilities")["accuracy"].tolist() == [2, 2]
    assert isinstance(told.sums, partial)


@pytest.mark.properties
@settings(max_examples=30)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=st.floats(-50, 50, width=32)))
def test_every_sum_has_one_shape_whatever_the_batch(outputs):
    targets = np.zeros(len(outputs), np.int64)
    for name in ("accuracy", "auc", "balanced_accuracy", "brier", "dice"):
        few, all_ = (metric(name).sums(outputs[:n], targets[:n]) for n in (1, len(outputs)))
        assert few.shape == all_.shape
        assert few.dtype in (np.int64, np.float64)
