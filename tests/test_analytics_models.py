"""Clusters, components, mixed effects and meta-analysis: scikit-learn, statsmodels and plain references on all rows."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.optimize import minimize_scalar
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from statsmodels.stats.meta_analysis import combine_effects

from analytics_tables import FEATURES, design, pooled, sites
from foedus import analytics
from foedus.errors import JobError

TWO = ["age", "chol"]


def close(found: Any, expected: Any, rel: float = 1e-8) -> None:
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(expected, float), rtol=rel, atol=1e-12)


# k-means


def test_clusters_are_those_of_scikit_learn_from_the_same_centres() -> None:
    table = pooled(*TWO)
    first = table.to_numpy()[[0, 50, 100]]
    ref = KMeans(3, init=first, n_init=1, tol=0, max_iter=1000).fit(table.to_numpy())
    found = analytics.kmeans(TWO, sites=sites(), k=3, centres=first)
    close(found.pandas[TWO], ref.cluster_centers_)
    close(found.inertia, ref.inertia_)
    assert found.pandas["size"].tolist() == np.bincount(ref.labels_).tolist() and found.converged
    assert found.per_site[[f"cluster {i}" for i in range(3)]].sum().tolist() == found.pandas["size"].tolist()


def test_the_best_of_several_starts_finds_clusters_that_are_there() -> None:
    rng = np.random.default_rng(0)
    at = np.array([[0, 0], [10, 10], [-10, 10]])
    table = pd.DataFrame(at[np.arange(90) % 3] + 0.1 * rng.normal(size=(90, 2)), columns=["x", "y"])
    held = {"a": table[:20], "b": table[20:]}
    found = analytics.kmeans(["x", "y"], sites=held, k=3, scale=True)
    assert sorted(found.pandas["size"]) == [30, 30, 30]
    assert np.abs(np.sort(found.pandas["x"]) - [-10, 0, 10]).max() < 0.1
    again = analytics.kmeans(["x", "y"], sites=held, k=3, scale=True)
    pd.testing.assert_frame_equal(found.pandas, again.pandas)
    with pytest.raises(JobError, match="has k rows"):
        analytics.kmeans.job(["x"], k=2, centres=[[0.0]])


# principal components


@pytest.mark.parametrize("scale", [False, True])
def test_components_are_those_of_scikit_learn(scale: bool) -> None:
    columns = [*TWO, "days"]
    x = pooled(*columns)
    ref = PCA().fit((x - x.mean()) / (x.std() if scale else 1))
    found = analytics.pca(columns, sites=sites(), scale=scale)
    close(found.pandas[columns], ref.components_)
    close(found.variance["variance"], ref.explained_variance_)
    close(found.variance["ratio"], ref.explained_variance_ratio_)
    close(found.mean["centre"], x.mean())
    assert len(analytics.pca(columns, sites=sites(), components=1).pandas) == 1


def test_a_constant_column_has_no_part_in_a_component() -> None:
    held = {s: t.assign(k=4.0) for s, t in sites().items()}
    found = analytics.pca([*TWO, "k"], sites=held)
    close(found.pandas.loc[["pc1", "pc2"], "k"], [0, 0])
    assert found.variance.loc["pc3", "variance"] == pytest.approx(0, abs=1e-12)
    with pytest.raises(JobError, match="ask for fewer"):
        analytics.pca(TWO, sites=sites(), components=3)


# mixed effects


def grouped() -> dict[str, pd.DataFrame]:
    """The cohort with a shift of each site, and another site."""
    shifts = {"north": 2.0, "east": -1.0, "south": 0.0, "west": 0.0}
    held = {name: t.assign(score=t.score + shifts[name]) for name, t in sites().items()}
    return held | {"far": sites()["east"][:7].assign(score=lambda t: 2 * t.score + 4)}


def dense(table: pd.DataFrame, x: Any, y: Any, reml: bool) -> tuple[Any, Any, float, float]:
    """Coefficients, their errors, the variance of sites and of residuals, from V itself: slow and plain."""
    same = np.equal.outer(table.site.to_numpy(), table.site.to_numpy()).astype(float)
    n, p = x.shape
    df = n - p if reml else n

    def at(ratio: float) -> tuple[Any, Any, float, float]:
        v = np.linalg.inv(np.eye(n) + ratio * same)
        a = x.T @ v @ x
        b = np.linalg.solve(a, x.T @ v @ y)
        rss = (y - x @ b) @ v @ (y - x @ b)
        log = df * math.log(rss) - np.linalg.slogdet(v)[1] + (np.linalg.slogdet(a)[1] if reml else 0)
        return b, a, rss / df, log

    low = minimize_scalar(lambda t: at(math.exp(t))[3], bounds=(-8, 8), method="bounded", options={"xatol": 1e-12})
    b, a, residual, _ = at(math.exp(low.x))
    return b, np.sqrt(np.diag(np.linalg.inv(a)) * residual), math.exp(low.x) * residual, residual


@pytest.mark.parametrize("reml", [True, False])
def test_mixed_effects_are_those_of_the_dense_equations(reml: bool) -> None:
    table = pd.concat([t.assign(site=s) for s, t in grouped().items()]).dropna()
    x = design(table)
    b, se, between, within = dense(table, x.to_numpy(), table.score.to_numpy(), reml)
    found = analytics.mixed(sites=grouped(), target="score", features=FEATURES, reml=reml)
    close(found.pandas.loc[x.columns, "coef"], b, 1e-6)  # a minimum is known to the root of the precision
    close(found.pandas.loc[x.columns, "se"], se, 1e-6)
    close([found.site_variance, found.residual_variance], [between, within], 1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ref = sm.MixedLM(table.score, x, groups=table.site).fit(reml=reml, gtol=1e-10)
    close(found.pandas.loc[x.columns, "coef"], ref.fe_params, 1e-5)
    assert found.loglik == pytest.approx(ref.llf, rel=1e-8)
    own = {site: float(effect.iloc[0]) for site, effect in ref.random_effects.items()}
    close(found.per_site.loc[sorted(own), "intercept"], [own[s] for s in sorted(own)], 1e-4)
    assert found.per_site.loc["west", "intercept"] == 0


def test_the_estimate_is_where_the_likelihood_is_flat_to_eight_digits() -> None:
    """With equal sites REML is the analysis of variance: between = (MS_sites - MS_residual) / n."""
    rng = np.random.default_rng(3)
    y = rng.normal(size=(5, 8)) + 3 * rng.normal(size=(5, 1))
    held = {f"s{i}": pd.DataFrame({"y": row, "x": np.tile([-1.0, 1.0], 4)}) for i, row in enumerate(y)}
    x = np.tile([-1.0, 1.0], 4)
    slope = (y @ x).sum() / (5 * 8)
    residual = y - y.mean(axis=1, keepdims=True) - slope * x
    within = (residual**2).sum() / (5 * 7 - 1)
    between = (8 * y.mean(axis=1).var(ddof=1) - within) / 8
    found = analytics.mixed(sites=held, target="y", features="x")
    close([found.site_variance, found.residual_variance], [between, within], 1e-8)
    close(found.pandas["coef"], [y.mean(), slope])
    close(found.pandas["se"], [math.sqrt((between + within / 8) / 5), math.sqrt(within / 40)])
    close(found.icc, between / (between + within))


def test_sites_that_do_not_differ_have_no_variance_and_the_fit_is_the_linear_one() -> None:
    held = {name: pd.DataFrame({"y": [1.0, 2.0, 4.0, 5.5], "x": [0.0, 1.0, 2.0, 3.0]}) for name in ("a", "b", "c")}
    found = analytics.mixed(sites=held, target="y", features="x")
    plain = analytics.glm("gaussian", sites=held, target="y", features="x")
    assert found.site_variance == 0
    close(found.pandas[["coef", "se"]], plain.pandas[["coef", "se"]])
    with pytest.raises(JobError, match="needs two sites"):
        analytics.mixed(sites={"a": held["a"]}, target="y", features="x")


# meta-analysis


def test_meta_analysis_is_that_of_statsmodels_on_each_sites_own_fit() -> None:
    held = {name: t.assign(sex=t.sex.replace({"x": "f"})) for name, t in grouped().items() if name != "far"}
    found = analytics.meta("binomial", sites=held, target="ill", features=[*TWO, "sex"])
    fixed = analytics.meta("binomial", sites=held, target="ill", features=[*TWO, "sex"], effects="fixed")
    own = {}
    for name in ("north", "east", "south"):
        table = held[name][["ill", *TWO]].loc[held[name][["ill", *FEATURES]].dropna().index]
        x = sm.add_constant(table[TWO])
        if name != "south":  # which has no "m"
            x = x.assign(sex_m=(held[name].loc[x.index, "sex"] == "m").astype(float))
        own[name] = sm.GLM(table.ill, x, family=sm.families.Binomial()).fit(tol=1e-14)
    for term in ("const", "age", "chol", "sex_m"):
        fits = [fit for fit in own.values() if term in fit.params]
        ref = combine_effects(*np.array([(f.params[term], f.bse[term] ** 2) for f in fits]).T, method_re="dl")
        frame = ref.summary_frame()
        row = found.pandas.loc[term]
        between = "random effect" if ref.tau2 > 0 else "fixed effect"  # it lets a variance be negative
        close(row[["coef", "se"]], frame.loc[between, ["eff", "sd_eff"]], 1e-7)
        close(fixed.pandas.loc[term, ["coef", "se"]], frame.loc["fixed effect", ["eff", "sd_eff"]], 1e-7)
        close([row["q"], row["tau2"]], [ref.q, max(0, ref.tau2)], 1e-6)
        assert row["sites"] == len(fits)
    assert found.per_site.loc[("south", "sex_m")].isna().all() and found.per_site.loc["west"].isna().all(axis=None)
    close(found.per_site.loc["north", "coef"].loc[own["north"].params.index], own["north"].params)


def test_a_meta_analysis_of_two_slopes_worked_out_by_hand() -> None:
    """Two sites of slopes 1 and 3 with the same error e: the mean is 2, Q = 2 / e², tau² = (Q - 1) e²."""
    noise = np.array([1.0, -1.0, -1.0, 1.0])
    x = np.array([0.0, 1.0, 2.0, 3.0])
    held = {"a": pd.DataFrame({"x": x, "y": x + noise / 10}), "b": pd.DataFrame({"x": x, "y": 3 * x + noise / 10})}
    found = analytics.meta("gaussian", sites=held, target="y", features="x")
    se = found.per_site.loc[("a", "x"), "se"]
    row = found.pandas.loc["x"]
    assert row["coef"] == pytest.approx(2) and row["q"] == pytest.approx(2 / se**2)
    assert row["tau2"] == pytest.approx((row["q"] - 1) * se**2) and row["q_p"] == pytest.approx(math.erfc(1 / se))
