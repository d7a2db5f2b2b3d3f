"""Quantiles, histograms, tables of counts, correlations and tests: as numpy, pandas and scipy have them on all rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from analytics_tables import cohort, pooled, sites
from foedus import analytics
from foedus.errors import JobError

NUMBERS = ["age", "chol", "days", "visits"]


def close(found: Any, expected: Any, rel: float = 1e-8) -> None:
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(expected, float), rtol=rel, atol=1e-14)


def every() -> pd.DataFrame:
    return pd.concat(sites().values())


# quantiles


def test_quantiles_are_those_of_pandas_to_the_bit() -> None:
    q = [0.0, 0.05, 0.25, 0.5, 0.9, 1.0]
    found = analytics.quantiles(sites=sites(), columns=NUMBERS, q=q)
    pd.testing.assert_frame_equal(found.pandas, every()[NUMBERS].quantile(q), check_names=False, rtol=1e-15, atol=0)
    assert found.per_site.loc[("west", "age"), "count"] == 0


@pytest.mark.parametrize("values", [[-1.0, 0.0, 2.5, -7.25], [0.0, -0.0], [5.0], [-1e300, 1e-300, 3.0], [7.0] * 4])
def test_quantiles_of_odd_numbers(values: list[float]) -> None:
    held = {"a": pd.DataFrame({"x": values[:1]}), "b": pd.DataFrame({"x": values[1:]}), "c": pd.DataFrame({"x": []})}
    found = analytics.quantiles("x", sites=held, q=[0.1, 0.5, 1]).pandas["x"]
    close(found, np.quantile(values, [0.1, 0.5, 1]), 1e-15)


def test_quantiles_within_an_error_ask_less_and_tell_nobodys_number() -> None:
    close_by = analytics.quantiles("age", sites=sites(), q=0.5, error=0.01)
    exact = every().age.quantile(0.5)
    assert abs(close_by.pandas.loc[0.5, "age"] / exact - 1) <= 0.01
    assert close_by.pandas.loc[0.5, "age"] not in set(every().age)


def test_without_names_all_columns_of_numbers_are_taken() -> None:
    found = analytics.quantiles(sites=sites(), q=0.5).pandas
    expected = every().select_dtypes("number")
    close(found.loc[0.5], expected.median())
    assert list(analytics.correlation(sites=sites()).pandas) == list(found) == list(expected)


def test_no_values_have_no_quantile() -> None:
    assert analytics.quantiles("x", sites={"a": {"x": [None, math.nan]}}, q=0.5).pandas.isna().all(axis=None)
    few = analytics.quantiles("x", sites={"a": {"x": [1.0, 2.0]}, "b": {"x": [7.0, 8.0, 9.0]}}, q=0.5, least=3)
    assert few.pandas.loc[0.5, "x"] == 8 and few.per_site.loc[("a", "x"), "count"] == 0
    with pytest.raises(JobError, match="each is from 0 to 1"):
        analytics.quantiles.job("x", q=50)


# histograms


@pytest.mark.parametrize("bins", [1, 7, 20])
def test_a_histogram_is_numpys(bins: int) -> None:
    found = analytics.histogram("chol", sites=sites(), bins=bins)
    counts, edges = np.histogram(every().chol, bins)
    assert found.pandas["count"].tolist() == counts.tolist()
    close(found.pandas["low"], edges[:-1], 1e-15)
    assert found.per_site.sum().tolist() == counts.tolist() and found.per_site.loc["west"].sum() == 0


def test_given_edges_hide_counts_of_few_and_no_value_leaves_a_site() -> None:
    """1, 2, 3 and 10: two in [0, 2.5), one in [2.5, 9), one in [9, 10], both ends of which belong to it."""
    held = {"a": pd.DataFrame({"x": [1.0, 10.0]}), "b": pd.DataFrame({"x": [2.0, 3.0]})}
    found = analytics.histogram("x", sites=held, bins=[0, 2.5, 9, 10], least=2)
    assert found.pandas["count"].fillna(-1).tolist() == [2, -1, -1]
    assert found.per_site.loc["a"].fillna(-1).tolist() == [-1, 0, -1]


def test_a_constant_column_and_no_column_have_histograms_as_numpy_says() -> None:
    same = analytics.histogram("x", sites={"a": {"x": [3.0, 3.0]}, "b": {"x": []}}, bins=2).pandas
    assert same["count"].tolist() == [0, 2] and same["low"].tolist() == [2.5, 3.0]
    assert analytics.histogram("x", sites={"a": {"x": []}}, bins=2).pandas["count"].tolist() == [0, 0]
    with pytest.raises(JobError, match="edges in rising order"):
        analytics.histogram.job("x", bins=[1, 0])


# counts


def test_a_contingency_table_is_the_crosstab_with_scipys_test() -> None:
    found = analytics.contingency("sex", "ill", sites=sites())
    expected = pd.crosstab(every().sex, every().ill)
    assert found.pandas.to_numpy().tolist() == expected.to_numpy().tolist()
    assert list(found.pandas.index) == ["f", "m", "x"] and list(found.pandas.columns) == ["0", "1"]
    ref = scipy.stats.chi2_contingency(expected, correction=False)
    close([found.statistic, found.p, found.df], [ref.statistic, ref.pvalue, ref.dof])
    assert found.per_site.loc[("south", "m")].tolist() == [0, 0] and found.n == expected.to_numpy().sum()


def test_small_counts_are_hidden_in_all_and_at_each_site() -> None:
    found = analytics.contingency("sex", "ill", sites=sites(), least=15)
    expected = pd.crosstab(every().sex, every().ill).to_numpy(float)
    assert found.pandas.fillna(-1).to_numpy().tolist() == np.where(expected < 15, -1, expected).tolist()
    shown = found.per_site.to_numpy()
    assert ((shown == 0) | (shown >= 15) | np.isnan(shown)).all() and np.isnan(shown).any()


def test_the_most_frequent_values() -> None:
    held = {"a": {"code": ["x", "y", "y", None]}, "b": {"code": ["z", "z", "y", "w"]}}
    found = analytics.top_k("code", sites=held, k=3)
    assert found.pandas["count"].to_dict() == {"y": 3, "z": 2, "w": 1}  # w and x tie, by name
    assert found.pandas["share"].tolist() == pytest.approx([3 / 7, 2 / 7, 1 / 7])
    assert list(analytics.top_k("code", sites=held, least=2).pandas.index) == ["y", "z"]


@pytest.mark.parametrize("count", [0, 1, 40, 3000, 60_000])
def test_distinct_values_are_counted_once_whatever_site_has_them(count: int) -> None:
    x = np.arange(count) * 7 - 3
    held = {"a": {"id": x[: count // 2 + count // 4]}, "b": {"id": x[count // 2 :].astype(float)}}
    found = analytics.unique("id", sites=held).pandas.loc["id", "unique"]
    assert found == pytest.approx(count, rel=0.025, abs=0.5)


# moments


def test_correlations_are_those_of_pandas_over_the_pairs_that_there_are() -> None:
    held = {s: t.assign(far=1e9 + t.age.fillna(0), k=0.1) for s, t in sites().items()}
    columns = [*NUMBERS, "far", "k"]
    found = analytics.correlation(columns, sites=held)
    exact = pd.concat(held.values())[columns].assign(far=lambda t: t.far - 1e9)  # which rounds nothing
    expected = exact.corr()
    close(found.pandas.drop("k").drop(columns="k"), expected.drop("k").drop(columns="k"))
    assert found.pandas["k"].isna().all() and found.pairs.loc["age", "chol"] == every().age.count()


@pytest.mark.parametrize("equal_var", [False, True])
def test_a_t_test_is_scipys(equal_var: bool) -> None:
    table = pooled("score", "died")
    groups = [table.score[table.died == value] for value in (0, 1)]
    ref = scipy.stats.ttest_ind(*groups, equal_var=equal_var)
    found = analytics.ttest("score", "died", sites=sites(), equal_var=equal_var)
    close([found.statistic, found.p, found.df], [ref.statistic, ref.pvalue, ref.df])
    close(found.pandas["std"], [g.std() for g in groups])


def test_students_sleep_as_published() -> None:
    """Cushny and Peebles 1905, as R's `sleep`: Welch t = -1.8608 on 17.776 degrees of freedom, p = 0.07939."""
    extra = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0, 1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    table = pd.DataFrame({"extra": extra, "drug": [1] * 10 + [2] * 10})
    found = analytics.ttest("extra", "drug", sites={"a": table[::2], "b": table[1::2]})
    assert (round(found.statistic, 4), round(found.df, 3), round(found.p, 5)) == (-1.8608, 17.776, 0.07939)


def test_tests_that_make_no_sense_say_why() -> None:
    with pytest.raises(JobError, match="a t-test needs two groups, and 'sex' has f, m, x"):
        analytics.ttest("age", "sex", sites=sites())
    one = analytics.ttest("x", "g", sites={"a": {"x": [1.0, 2.0, 3.0], "g": [0, 0, 1]}})
    assert math.isnan(one.p) and one.difference == -1.5
    with pytest.raises(JobError, match="'sex' holds text where numbers are needed"):
        analytics.quantiles("sex", sites=sites())
    with pytest.raises(JobError, match="name two columns"):
        analytics.contingency.job("sex", "sex")


def test_the_cohort_has_what_these_tests_need() -> None:
    assert cohort().age.isna().sum() == 3 and (cohort().chol < 0).all()
