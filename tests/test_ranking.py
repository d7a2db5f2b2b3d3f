"""Metrics of a ranking, as banks and screening programmes use them, against scikit-learn, scipy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ks_2samp
from sklearn.metrics import average_precision_score

import foedus as fd
from foedus import metrics
from foedus.errors import JobError
from foedus.metrics import BINS, measure

NAMES = ["pr_auc", "ks", "ece", "auc"]


def drawn(seed: int, n: int = 3000, share: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.uniform(size=n) < share).astype(np.int64)
    return rng.normal(size=n) + 1.5 * y - 3, y


def counts(*rows: tuple[int, int]) -> np.ndarray:
    """(negatives, positives) by bin, ascending."""
    made = np.zeros((2, BINS), np.int64)
    made[:, : len(rows)] = np.array(rows).T
    return made


@pytest.mark.parametrize("seed", range(5))
def test_they_are_within_their_bounds_of_what_the_scores_themselves_give(seed: int) -> None:
    x, y = drawn(seed)
    sums = measure(NAMES, x, y)
    found, bounds = metrics.values(sums, NAMES), metrics.bounds(sums, NAMES)
    assert abs(found["pr_auc"] - average_precision_score(y, x)) <= bounds["pr_auc"] < 0.05
    assert abs(found["ks"] - ks_2samp(x[y == 1], x[y == 0]).statistic) <= bounds["ks"] < 0.05
    low, high = metrics.intervals(sums, NAMES)["pr_auc"]
    assert low < found["pr_auc"] < high


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5])
def test_recall_at_an_alert_rate_is_that_of_the_highest_scores(rate: float) -> None:
    x, y = drawn(7)
    m = fd.recall_at(alert_rate=rate)
    sums = measure([m], x, y)[m.name]
    top = np.argsort(-x, kind="stable")[: round(rate * len(x))]
    assert m.name == f"recall_at_{rate:g}" and abs(m.value(sums) - y[top].sum() / y.sum()) <= m.bound(sums) < 0.05
    assert m.interval(sums)[0] < m.value(sums) < m.interval(sums)[1]


def test_sums_of_sites_give_what_all_their_examples_give() -> None:
    parts = [drawn(seed, 400, 0.2) for seed in range(3)]
    whole = measure(NAMES, *(np.concatenate(z) for z in zip(*parts, strict=True)))
    summed = metrics.add([measure(NAMES, *part) for part in parts])
    assert metrics.values(summed, NAMES) == pytest.approx(metrics.values(whole, NAMES), rel=1e-12)


def test_counts_worked_out_by_hand() -> None:
    """From the top: a positive; a bin of one each; two negatives; a positive. AP = 1/3 (1 + 2/3 + 3/6)."""
    by_hand = counts((0, 1), (2, 0), (1, 1), (0, 1))
    value = {m.name: m for m in map(metrics.metric, NAMES)}
    assert value["pr_auc"].value(by_hand) == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)
    assert value["pr_auc"].bound(by_hand) == pytest.approx((1 - 2 / 3) / 3)  # the tie: 2/2 at best, 2/3 at worst
    assert value["ks"].value(by_hand) == pytest.approx(1 / 3)  # 0 and 1/3, then 2/3 and 1/3, then 1 and 2/3
    half = fd.recall_at(0.5)  # three of six: the top one, and the two that tie
    assert (half.value(by_hand), half.bound(by_hand)) == (pytest.approx(2 / 3), 0)
    third = fd.recall_at(1 / 3)  # the top one, and one of the two that tie: half a positive, none or one
    assert (third.value(by_hand), third.bound(by_hand)) == (pytest.approx(0.5), pytest.approx(0.5 / 3))


def test_the_calibration_error_is_a_mean_distance() -> None:
    """Twenty at 0.1, of whom 4 are positive, and twenty at 0.9, all positive: (20 |0.1 - 0.2| + 20 |0.9 - 1|) / 40."""
    p, y = np.repeat([0.1, 0.9], 20), np.repeat([1, 0, 1], [4, 16, 20])
    sums = measure(["ece"], p, y, reads="probabilities")
    assert metrics.values(sums, ["ece"])["ece"] == pytest.approx(0.1)


def test_without_positives_there_is_no_value_and_of_more_classes_an_error() -> None:
    sums = measure(["pr_auc", "ks", fd.recall_at(0.1)], np.zeros(5), np.zeros(5, int))
    assert all(map(math.isnan, metrics.values(sums, ["pr_auc", "ks", fd.recall_at(0.1)]).values()))
    with pytest.raises(JobError, match="two classes"):
        measure(["ks"], np.zeros((4, 3)), np.zeros(4, int))
    with pytest.raises(JobError, match="a share of the examples"):
        fd.recall_at(5)
