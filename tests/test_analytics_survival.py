"""Survival from sums: published figures, and lifelines and statsmodels on the pooled rows."""

from __future__ import annotations

import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.duration.hazard_regression import PHReg

from analytics_tables import FEATURES, design, pooled, sites
from foedus import analytics
from foedus.errors import JobError, SiteError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lifelines import CoxPHFitter, KaplanMeierFitter
    from lifelines.datasets import load_rossi
    from lifelines.statistics import multivariate_logrank_test

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # lifelines' calls of pandas

DAYS: dict[str, Any] = {"time": "days", "event": "died"}
MP6 = [6, 6, 6, 7, 10, 13, 16, 22, 23], [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]  # relapses, censored
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def freireich() -> pd.DataFrame:
    """Freireich et al. 1963: weeks in remission of 42 children with leukaemia."""
    rows = [(t, 1, 0) for t in MP6[0]] + [(t, 0, 0) for t in MP6[1]] + [(t, 1, 1) for t in PLACEBO]
    return pd.DataFrame(rows, columns=["weeks", "relapse", "placebo"])


def parts(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {"a": table[::3], "b": table[1::3], "c": table[2::3]}


WEEKS: dict[str, Any] = {"time": "weeks", "event": "relapse"}


def close(found: Any, expected: Any, rel: float = 1e-8) -> None:
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(expected, float), rtol=rel, atol=1e-14)


# Kaplan-Meier and the log-rank test


def test_remission_on_6_mp_as_published() -> None:
    """Kleinbaum and Klein, Survival Analysis, table 2.3: at risk, relapses and survival of the 21 on 6-MP."""
    found = analytics.kaplan_meier(sites=parts(freireich()), **WEEKS, group="placebo")
    treated = found.pandas.loc["0"]
    treated = treated[treated.events > 0]
    assert treated.index.tolist() == [6, 7, 10, 13, 16, 22, 23]
    assert treated.at_risk.tolist() == [21, 17, 15, 12, 11, 7, 6]
    assert treated.survival.round(4).tolist() == [0.8571, 0.8067, 0.7529, 0.6902, 0.6275, 0.5378, 0.4482]
    assert found.medians["median"].to_dict() == {"0": 23.0, "1": 8.0}
    assert found.per_site.events.sum() == 30 and found.n == 42


def test_the_log_rank_test_of_6_mp_as_published() -> None:
    """Kleinbaum and Klein: 19.25 relapses expected on 6-MP, 10.75 on placebo; statistic 16.793."""
    found = analytics.logrank(sites=parts(freireich()), **WEEKS, group="placebo")
    assert found.pandas["expected"].round(2).tolist() == [19.25, 10.75] and found.pandas["observed"].tolist() == [9, 21]
    assert round(found.statistic, 3) == 16.793 and found.df == 1
    assert found.p == pytest.approx(math.erfc(math.sqrt(found.statistic / 2)))


def test_a_curve_is_that_of_lifelines_on_the_pooled_rows() -> None:
    found, table = analytics.kaplan_meier(sites=sites(), **DAYS).pandas, pooled("days", "died")
    ref = KaplanMeierFitter().fit(table.days, table.died)
    close(found.survival, ref.survival_function_at_times(found.index))
    close(found[["low", "high"]], ref.confidence_interval_.loc[found.index])


@pytest.mark.parametrize("weights", ["logrank", "wilcoxon", "tarone_ware"])
def test_a_test_of_three_groups_is_that_of_lifelines(weights: str) -> None:
    table = pooled("days", "died", "sex")
    theirs = {"logrank": None, "tarone_ware": "tarone-ware"}.get(weights, weights)
    ref = multivariate_logrank_test(table.days, table.sex, table.died, weightings=theirs)
    found = analytics.logrank(sites=sites(), **DAYS, group="sex", weights=weights)
    close([found.statistic, found.p], [ref.test_statistic, ref.p_value])


def test_a_grid_is_the_analysis_of_times_rounded_up() -> None:
    grid = list(range(10, 130, 10))
    table = pooled("days", "died", *FEATURES)
    up = np.ceil(table.days / 10) * 10
    late = up > 120
    rounded = table.assign(days=np.where(late, 121, up), died=np.where(late, 0, table.died))
    found = analytics.kaplan_meier(sites=sites(), **DAYS, grid=grid)
    plain = pooled("days", "died")
    plain = plain.assign(up=np.minimum(np.ceil(plain.days / 10) * 10, 121))
    ref = KaplanMeierFitter().fit(plain.up, plain.died * (plain.up < 121))
    close(found.pandas.survival, ref.survival_function_at_times(grid))
    for ties in ("efron", "breslow"):
        model = analytics.cox(sites=sites(), **DAYS, features=FEATURES, grid=grid, ties=ties)
        there = PHReg(rounded.days, design(table).drop(columns="const"), status=rounded.died, ties=ties).fit()
        close(model.pandas.coef.reindex(there.model.exog_names), there.params)


# Cox


def test_cox_on_6_mp_as_published() -> None:
    """Kleinbaum and Klein (Stata, Breslow): 1.509, se 0.410; Efron as R's survival gives it: 1.572, se 0.412."""
    for ties, expected in {"breslow": [1.509, 0.410], "efron": [1.572, 0.412]}.items():
        found = analytics.cox(sites=parts(freireich()), **WEEKS, features="placebo", ties=ties).pandas
        assert found.loc["placebo", ["coef", "se"]].round(3).tolist() == expected


def test_rossi_as_published() -> None:
    """Allison 1995 and Fox 2002: arrests in the year after release, 432 men."""
    table = load_rossi()
    features = ["fin", "age", "race", "wexp", "mar", "paro", "prio"]
    found = analytics.cox(sites=parts(table), time="week", event="arrest", features=features)
    assert found.pandas.coef.round(3).tolist() == [-0.379, -0.057, 0.314, -0.150, -0.434, -0.085, 0.091]
    assert found.pandas.se.round(3).tolist() == [0.191, 0.022, 0.308, 0.212, 0.382, 0.196, 0.029]
    assert round(found.lr, 2) == 33.27 and found.df == 7 and found.events == 114


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_cox_is_that_of_statsmodels_on_the_pooled_rows(ties: Any) -> None:
    table = pooled("days", "died", *FEATURES)
    x = design(table).drop(columns="const")
    ref = PHReg(table.days, x, status=table.died, ties=ties).fit()
    found = analytics.cox(sites=sites(), **DAYS, features=FEATURES, ties=ties)
    order = list(x.columns)
    close(found.pandas.loc[order, "coef"], ref.params)
    close(found.pandas.loc[order, "se"], ref.bse)
    close(found.pandas.loc[order, "p"], ref.pvalues)
    close(found.loglik, ref.llf)
    assert found.converged and found.n == len(table) and found.per_site.events.sum() == table.died.sum()


def test_cox_and_its_baseline_are_those_of_lifelines() -> None:
    table = pooled("days", "died", *FEATURES)
    x = design(table).drop(columns="const")
    ref = CoxPHFitter()
    ref.fit(x.assign(d=table.days, e=table.died), "d", "e", fit_options={"precision": 1e-13})
    found = analytics.cox(sites=sites(), **DAYS, features=FEATURES)
    close(found.pandas.coef.reindex(x.columns), ref.params_)
    close(found.baseline.cumulative, ref.baseline_cumulative_hazard_.loc[found.baseline.index].iloc[:, 0])
    close([found.lr, found.lr_p], [(test := ref.log_likelihood_ratio_test()).test_statistic, test.p_value])


def test_strata_by_site_are_those_of_lifelines_and_no_time_leaves_a_site() -> None:
    held = pd.concat([t.assign(site=s) for s, t in sites().items()]).dropna()
    x = design(held).drop(columns="const")
    ref = CoxPHFitter()
    frame = x.assign(d=held.days, e=held.died, site=held.site)
    ref.fit(frame, "d", "e", strata=["site"], fit_options={"precision": 1e-13})
    found = analytics.cox(sites=sites(), **DAYS, features=FEATURES, strata="site")
    close(found.pandas.coef.reindex(x.columns), ref.params_)
    close(found.pandas.se.reindex(x.columns), ref.standard_errors_)
    assert "baseline" not in found


def test_many_times_are_asked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = analytics.cox(sites=sites(), **DAYS, features=FEATURES)
    monkeypatch.setattr(sys.modules["foedus.analytics.cox"], "AT_ONCE", 300)  # 10 times at once
    found = analytics.cox(sites=sites(), **DAYS, features=FEATURES)
    close(found.pandas, whole.pandas, 1e-10)


def test_a_constant_feature_has_no_hazard_ratio() -> None:
    held = {name: t.assign(k=1.0) for name, t in sites().items()}
    found = analytics.cox(sites=held, **DAYS, features=["age", "k"]).pandas
    assert found.loc["k"].isna().all()
    close(found.loc["age"], analytics.cox(sites=held, **DAYS, features="age").pandas.loc["age"], 1e-9)


def test_a_coefficient_without_end_is_named_and_the_others_are_right() -> None:
    """Nobody of `never` died: its hazard ratio is 0, and the others' are those of the rows without it."""
    held = {s: t.assign(never=((t.died == 0) & (t.age > 65)).astype(int)) for s, t in sites().items()}
    found = analytics.cox(sites=held, **DAYS, features=["chol", "never"])
    assert found.infinite == ["never"] and not found.converged and found.pandas.loc["never", "hazard_ratio"] < 1e-6
    rest = {s: t[t.never == 0] for s, t in held.items()}
    close(found.pandas.loc["chol"], analytics.cox(sites=rest, **DAYS, features="chol").pandas.loc["chol"], 1e-6)


def test_a_penalty_is_where_the_score_equals_it() -> None:
    table = pooled("days", "died", "age", "chol")
    found = analytics.cox(sites=sites(), **DAYS, features=["age", "chol"], l2=20.0).pandas
    pull = PHReg(table.days, table[["age", "chol"]], status=table.died, ties="efron").score(found.coef.to_numpy())
    close(pull, 20.0 * found.coef, 1e-6)
    assert found.se.isna().all()


@pytest.mark.parametrize(("change", "why"), [
    ({"died": lambda t: t.died + 1}, "'died' holds more than 0 and 1: code the event as 1"),
    ({"days": lambda t: -t.days}, "'days' holds negative times"),
])  # fmt: skip
def test_odd_times_and_events_name_site_and_remedy(change: dict[str, Any], why: str) -> None:
    odd = sites() | {"east": sites()["east"].assign(**change)}
    with pytest.raises(SiteError, match=rf"site 'east', .*{why}"):
        analytics.cox(sites=odd, **DAYS, features="age")


def test_what_cannot_be_estimated_says_why() -> None:
    none = {name: t.assign(died=0) for name, t in sites().items()}
    with pytest.raises(JobError, match="no site has an event in 'died'"):
        analytics.cox(sites=none, **DAYS, features="age")
    with pytest.raises(JobError, match="a test needs two"):
        analytics.logrank(sites={n: t.assign(sex="f") for n, t in sites().items()}, **DAYS, group="sex")
    with pytest.raises(JobError, match="give times in rising order"):
        analytics.kaplan_meier.job(**DAYS, grid=[3, 2])


@pytest.mark.data
def test_six_regions_of_tcga_are_their_pooled_rows() -> None:
    folder = Path(os.environ["FOEDUS_DATA"]) / "tcga_brca"
    table = pd.read_csv(folder / "brca.csv").merge(pd.read_csv(folder / "train_test_split.csv"), on="pid")
    regions = pd.read_csv(folder / "centers.csv", keep_default_na=False).set_index("TSS Code").Region
    regional = {str(name): part for name, part in table.groupby(table.pid.str[5:7].map(regions))}
    features = ["age_at_index", *[c for c in table.columns[2:40] if "_pathologic_t_" in c and table[c].sum() > 100]]
    found = analytics.cox(sites=regional, time="T", event="E", features=features)
    ref = PHReg(table["T"], table[features], status=table.E, ties="efron").fit()
    assert len(regional) == 6 and found.n == len(table) == 1088 and len(features) == 4
    close(found.pandas.coef, ref.params)
    close(found.pandas.se, ref.bse)
