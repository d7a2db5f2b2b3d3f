"""Exact analyses: against numbers worked out by hand, and against statsmodels and scikit-learn on the pooled rows."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from sklearn.linear_model import Lasso, LogisticRegression, Ridge

import foedus as fd
from analytics_tables import FEATURES, design, pooled, sites
from foedus import analytics
from foedus.analytics.held import held
from foedus.analytics.solving import two_sided
from foedus.errors import FoedusError, Incompatible, JobError, SiteError

TWO = {"north": pd.DataFrame({"x": [1.0, 2.0, 3.0]}), "south": pd.DataFrame({"x": [-6.0, None]})}


def close(found: Any, expected: Any, rel: float = 1e-8) -> None:
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(expected, float), rtol=rel, atol=1e-14)


# describe


def test_a_description_worked_out_by_hand() -> None:
    """1, 2, 3 and -6: mean 0, squares 1 + 4 + 9 + 36 = 50 over n - 1 = 3."""
    found = analytics.describe(sites=TWO)
    expected = {
        "count": 4,
        "missing": 1,
        "sum": 0,
        "mean": 0,
        "var": 50 / 3,
        "std": math.sqrt(50 / 3),
        "min": -6,
        "max": 3,
    }
    assert found.pandas.loc["x"].to_dict() == pytest.approx(expected)
    assert found.per_site.loc[("north", "x")].to_dict() == pytest.approx(
        {"count": 3, "missing": 0, "sum": 6, "mean": 2, "var": 1, "std": 1, "min": 1, "max": 3}
    )
    south = found.per_site.loc[("south", "x")]
    assert south["count"] == 1 and south["min"] == south["max"] == -6 and math.isnan(south["var"])


def test_a_description_is_that_of_the_pooled_rows() -> None:
    found, table = analytics.describe(sites=sites()).pandas, pd.concat(sites().values())
    numeric = table.select_dtypes("number")
    for name, expected in {
        "count": numeric.count(), "sum": numeric.sum(), "mean": numeric.mean(), "std": numeric.std(),
        "var": numeric.var(axis=0), "min": numeric.min(), "max": numeric.max(), "missing": numeric.isna().sum(),
    }.items():  # fmt: skip
        close(found.loc[numeric.columns, name], expected)
    assert found.loc["sex", "count"] == table.sex.count() and math.isnan(found.loc["sex", "mean"])


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e9 + 1, 1e9 + 2, 1e9 + 3], [-5.0], [7.0] * 5])
def test_odd_columns_are_described_as_numpy_does(values: list[float]) -> None:
    table = pd.DataFrame({"x": values})
    found = analytics.describe(sites={"a": table[:1], "b": table[1:]}).pandas.loc["x"]
    close(found[["mean", "min", "max"]], [np.mean(values), min(values), max(values)])
    assert (
        math.isnan(found["var"])
        if len(values) == 1
        else found["var"] == pytest.approx(np.var(values, ddof=1), rel=1e-9)
    )


def test_few_values_are_left_out_of_every_sum_and_extremes_stay_at_the_site() -> None:
    found = analytics.describe(sites=TWO, least=2, extremes=False)
    assert found.pandas.loc["x", ["count", "sum"]].tolist() == [3, 6]
    assert found.per_site.loc[("south", "x"), "count"] == 0 and math.isnan(found.pandas.loc["x", "max"])


def test_text_here_and_numbers_there_are_told_by_site() -> None:
    mixed = {"north": pd.DataFrame({"sex": ["f", "m"]}), "south": pd.DataFrame({"sex": [0, 1]})}
    with pytest.raises(JobError, match="'sex' holds text at north and numbers at south: code it alike"):
        analytics.describe(sites=mixed)
    with pytest.raises(JobError, match="'sex' holds text at north and numbers at south: code it alike"):
        analytics.glm("gaussian", sites={s: t.assign(y=1.0) for s, t in mixed.items()}, target="y", features="sex")


# glm

FAMILIES = {
    "binomial": ("ill", sm.families.Binomial()),
    "gaussian": ("score", sm.families.Gaussian()),
    "poisson": ("visits", sm.families.Poisson()),
    "gamma": ("cost", sm.families.Gamma(sm.families.links.Log())),
}


@pytest.mark.parametrize("mean", [2005.0, 19000.0, 1e6])
@pytest.mark.parametrize("family", ["binomial", "poisson", "gamma", "gaussian"])
def test_a_glm_of_a_column_far_from_zero_is_that_of_the_centred_one(family: str, mean: float) -> None:
    rng = np.random.default_rng(6)
    z, x = rng.normal(size=(2, 600))
    eta = 0.4 * x + 0.3 * z - 0.2
    drawn = {
        "binomial": (rng.random(600) < 1 / (1 + np.exp(-eta))).astype(float),
        "poisson": rng.poisson(np.exp(eta)).astype(float),
        "gamma": rng.gamma(2, np.exp(eta) / 2),
        "gaussian": eta + rng.normal(size=600),
    }
    table = pd.DataFrame({"year": mean + 9 * z, "x": x, "y": drawn[family]})
    found = analytics.glm(
        family, sites={s: table[i::3] for i, s in enumerate("abc")}, target="y", features=["year", "x"]
    )
    links = {"gamma": sm.families.Gamma(sm.families.links.Log()), "binomial": sm.families.Binomial()}
    links |= {"poisson": sm.families.Poisson(), "gaussian": sm.families.Gaussian()}
    centred = np.column_stack([np.ones(600), z, x])
    plain = sm.GLM(table.y, centred, family=links[family]).fit(tol=1e-14, maxiter=100)
    back = np.array([[1, -mean / 9, 0], [0, 1 / 9, 0], [0, 0, 1]])
    np.testing.assert_allclose(found.pandas["coef"], back @ plain.params, rtol=1e-7)
    errors = np.sqrt(np.diag(back @ np.asarray(plain.cov_params()) @ back.T))
    np.testing.assert_allclose(found.pandas["se"], errors, rtol=1e-7)
    assert found.infinite == [] and found.converged


@pytest.mark.parametrize("family", FAMILIES)
def test_a_glm_is_that_of_statsmodels_on_the_pooled_rows(family: str) -> None:
    target, kind = FAMILIES[family]
    found = analytics.glm(family, sites=sites(), target=target, features=FEATURES)
    table = pooled(target, *FEATURES)
    ref = sm.GLM(table[target], design(table), family=kind).fit(tol=1e-15)
    order = list(ref.params.index)
    close(found.pandas.loc[order, "coef"], ref.params)
    close(found.pandas.loc[order, "se"], ref.bse)
    close(found.pandas.loc[order, "p"], ref.pvalues)
    ends = np.abs(found.pandas.loc[order, ["low", "high"]].to_numpy() - ref.conf_int().to_numpy())
    assert (ends.max(1) <= 1e-8 * (ref.params.abs() + 2 * ref.bse)).all()  # of what is added: an end may lie near 0
    close(found.cov.loc[order, order], ref.cov_params())
    close(
        [found.deviance, found.null_deviance, found.pearson_chi2], [ref.deviance, ref.null_deviance, ref.pearson_chi2]
    )
    assert found.n == ref.nobs and found.df_resid == ref.df_resid and found.converged
    if family in ("binomial", "poisson", "gaussian"):
        close([found.loglik, found.aic], [ref.llf, ref.aic])
    assert found.per_site["used"].sum() == found.n and found.per_site.loc["west", "rows"] == 0
    assert found.per_site["deviance"].sum() == pytest.approx(found.deviance)


def test_odds_ratios_of_a_table_of_four_counts() -> None:
    """10 of 30 and 20 of 30: odds 1/2 and 2, ratio 4, variance of its log 1/10 + 1/20 + 1/20 + 1/10 = 0.3."""
    table = pd.DataFrame({"exposed": [0] * 30 + [1] * 30, "ill": [1] * 10 + [0] * 20 + [1] * 20 + [0] * 10})
    found = analytics.glm("binomial", sites={"a": table[:35], "b": table[35:]}, target="ill", features="exposed").pandas
    assert found.loc["exposed", "odds_ratio"] == pytest.approx(4) and found.loc["const", "coef"] == pytest.approx(
        math.log(0.5)
    )
    assert found.loc["exposed", "se"] == pytest.approx(math.sqrt(0.3))
    assert found.loc["exposed", "p"] == pytest.approx(math.erfc(math.log(4) / math.sqrt(0.6)))


def test_spector_and_mazzeo_as_published() -> None:
    """Greene, Econometric Analysis, table 21.1: the logit of the PSI programme."""
    table = sm.datasets.spector.load_pandas().data
    parts = {"a": table[:10], "b": table[10:]}
    found = analytics.glm("binomial", sites=parts, target="GRADE", features=["GPA", "TUCE", "PSI"]).pandas
    assert found["coef"].round(3).tolist() == [-13.021, 2.826, 0.095, 2.379]
    assert found["se"].round(3).tolist() == [4.931, 1.263, 0.142, 1.065]


@pytest.mark.filterwarnings("ignore:The InversePower link")
def test_links_of_gamma() -> None:
    table = pooled("cost", "age").assign(cost=lambda t: t.cost + 1)
    found = analytics.glm(
        "gamma", sites={"a": table[:50], "b": table[50:]}, target="cost", features="age", link="inverse"
    )
    ref = sm.GLM(table.cost, sm.add_constant(table.age), sm.families.Gamma(sm.families.links.InversePower())).fit(
        tol=1e-15
    )
    close(found.pandas["coef"], ref.params)
    with pytest.raises(JobError, match=r"glm\(link='inverse'\): binomial goes with 'logit'"):
        analytics.glm("binomial", sites=1, target="y", features="x", link="inverse")


def test_penalties_are_those_of_scikit_learn() -> None:
    table = pooled("ill", "score", *FEATURES)
    x = design(table).drop(columns="const")
    parts = {"a": table[:40], "b": table[40:]}
    for l2 in (0.5, 30.0):
        found = analytics.glm("binomial", sites=parts, target="ill", features=FEATURES, l2=l2).pandas
        ref = LogisticRegression(C=1 / l2, tol=1e-12, max_iter=10_000, solver="newton-cholesky").fit(x, table.ill)
        close(found.loc[x.columns, "coef"], ref.coef_[0], 1e-7)
        found = analytics.glm("gaussian", sites=parts, target="score", features=FEATURES, l2=l2).pandas
        close(found.loc[x.columns, "coef"], Ridge(l2, tol=1e-14).fit(x, table.score).coef_)
    lasso = Lasso(0.1, tol=1e-14, max_iter=100_000).fit(x, table.score)
    found = analytics.glm("gaussian", sites=parts, target="score", features=FEATURES, l1=0.1 * len(table)).pandas
    close(found.loc[x.columns, "coef"], lasso.coef_)
    assert (lasso.coef_ == 0).any() and found.loc["const", "coef"] == pytest.approx(lasso.intercept_)
    assert found["se"].isna().all()


def test_a_constant_column_and_a_copy_have_no_coefficient_and_leave_the_others_alone() -> None:
    plain = {name: t.assign(k=3.0, twice=2 * t.age) for name, t in sites().items()}
    found = analytics.glm("gaussian", sites=plain, target="score", features=["age", "k", "twice"]).pandas
    ref = analytics.glm("gaussian", sites=plain, target="score", features=["age"]).pandas
    assert found.loc[["k", "twice"]].isna().all(axis=None)
    close(found.loc[["const", "age"]], ref, 1e-9)


def test_a_target_that_features_tell_without_error_is_told() -> None:
    table = pd.DataFrame({"x": np.arange(20.0), "ill": np.arange(20) > 9})
    with pytest.raises(JobError, match=r"tell 'ill' without error.*l2=1.0"):
        analytics.glm("binomial", sites={"a": table[::2], "b": table[1::2]}, target="ill", features="x")
    found = analytics.glm("binomial", sites={"a": table[::2], "b": table[1::2]}, target="ill", features="x", l2=1.0)
    ref = LogisticRegression(C=1.0, tol=1e-12, solver="newton-cholesky").fit(table[["x"]], table.ill)
    close(found.pandas.loc["x", "coef"], ref.coef_[0, 0], 1e-7)


def test_a_coefficient_without_end_is_named_and_the_others_are_right() -> None:
    held = {s: t.assign(never=((t.ill == 0) & (t.age > 60)).astype(int)) for s, t in sites().items()}
    found = analytics.glm("binomial", sites=held, target="ill", features=["chol", "never"])
    assert found.infinite == ["never"] and not found.converged and math.isnan(found.pandas.loc["never", "se"])
    rest = analytics.glm("binomial", sites={s: t[t.never == 0] for s, t in held.items()}, target="ill", features="chol")
    close(found.pandas.loc["chol"], rest.pandas.loc["chol"], 1e-6)


@pytest.mark.parametrize(
    ("family", "target", "needs"), [
    ("binomial", "visits", "0 or 1"), ("poisson", "score", "not negative"), ("gamma", "visits", "above 0"),
])  # fmt: skip
def test_a_target_that_a_family_has_no_room_for_names_site_and_remedy(family: str, target: str, needs: str) -> None:
    with pytest.raises(SiteError, match=rf"site '\w+', score: .*'{target}' must be .*{needs}.*recode it"):
        analytics.glm(family, sites=sites(), target=target, features="age")


def test_a_missing_column_names_site_column_and_remedy() -> None:
    odd = sites() | {"south": sites()["south"].rename(columns={"age": "alter"})}
    with pytest.raises(SiteError, match=r"site 'south', kinds: .*no column 'age'; rename"):
        analytics.glm("binomial", sites=odd, target="ill", features="age")


def test_categories_may_be_declared_and_then_no_site_lists_any() -> None:
    levels = {"sex": ["m", "f", "x"]}
    found = analytics.glm("binomial", sites=sites(), target="ill", features="sex", categories=levels)
    assert list(found.pandas.index) == ["const", "sex_f", "sex_x"]
    counts = pooled("sex", "ill").groupby("sex").ill.mean()
    assert found.pandas.loc["sex_f", "odds_ratio"] == pytest.approx(
        counts["f"] / (1 - counts["f"]) / (counts["m"] / (1 - counts["m"]))
    )
    with pytest.raises(SiteError, match=r"'sex' has 1 levels that are none of m, f: add them to categories"):
        analytics.glm("binomial", sites=sites(), target="ill", features="sex", categories={"sex": ["m", "f"]})
    coded = {name: t.assign(sex=t.sex.map({"f": 0, "m": 1, "x": 2})) for name, t in sites().items()}
    again = analytics.glm("binomial", sites=coded, target="ill", features="sex", categories={"sex": [1, 0, 2]})
    close(again.pandas["coef"], found.pandas["coef"])


def test_a_site_of_few_rows_is_in_no_sum_and_says_so() -> None:
    few = sites() | {"few": sites()["north"][:4]}
    found = analytics.glm("binomial", sites=few, target="ill", features="age", least=5)
    assert found.per_site.loc["few"].tolist() == [4, 0, 0]
    close(found.pandas, analytics.glm("binomial", sites=sites(), target="ill", features="age").pandas, 1e-9)
    with pytest.raises(JobError, match=r"no site holds 500 complete rows of ill, age .*lower least"):
        analytics.glm("binomial", sites=few, target="ill", features="age", least=500)


def test_the_order_of_sites_and_the_backend_change_no_bit() -> None:
    job = analytics.glm.job("binomial", target="ill", features=FEATURES)
    forth, back = sites(), dict(reversed(sites().items()))
    assert job.run(sites=forth, backend="local").digest == job.run(sites=back, backend="processes").digest


def test_a_replay_has_the_same_bits_and_reads_the_same() -> None:
    job = analytics.glm.job("poisson", target="visits", features=FEATURES)
    first = job.run(sites=sites(), seed=1)
    again = job.run(sites=sites(), seed=1, replay=first, backend="local")
    assert again.digest == first.digest
    pd.testing.assert_frame_equal(analytics.read(again).pandas, analytics.read(first.params).pandas)


@pytest.mark.data
def test_four_hospitals_are_their_pooled_rows() -> None:
    names = [
        "age",
        "sex",
        "cp",
        "trestbps",
        "chol",
        "fbs",
        "restecg",
        "thalach",
        "exang",
        "oldpeak",
        "slope",
        "ca",
        "thal",
        "num",
    ]
    folder = Path(os.environ["FOEDUS_DATA"]) / "heart"
    held = {p.stem: pd.read_csv(p, header=None, names=names, na_values="?") for p in sorted(folder.glob("*.csv"))}
    held = {site: t.assign(ill=(t.num > 0).astype(int)) for site, t in held.items()}
    features = ["age", "sex", "trestbps", "chol", "thalach", "oldpeak", "cp"]
    found = analytics.glm("binomial", sites=held, target="ill", features=features, categories={"cp": [1, 2, 3, 4]})
    table = pd.concat(held.values())[["ill", *features]].dropna()
    x = pd.get_dummies(table[features], columns=["cp"], drop_first=True).astype(float)
    ref = sm.GLM(table.ill, sm.add_constant(x), family=sm.families.Binomial()).fit(tol=1e-15)
    close(found.pandas[["coef", "se", "p"]], np.stack([ref.params, ref.bse, ref.pvalues], axis=1))
    assert found.per_site["rows"].to_dict() == {"cleveland": 303, "hungary": 294, "long_beach": 200, "switzerland": 123}


# tables and answers


@pytest.mark.parametrize("ages", [
    pd.Series([1, None, 3], dtype="Int64"), pd.Series([1, None, 3], dtype=object), [1.0, None, 3.0],
    np.array([1, np.nan, 3]),
], ids=["nullable", "objects", "list", "array"])  # fmt: skip
def test_gaps_of_every_kind_are_gaps(ages: Any) -> None:
    found = analytics.describe(sites={"a": {"age": ages}}).pandas.loc["age"]
    assert found[["count", "missing", "sum"]].tolist() == [2, 1, 4]


def test_a_jobs_data_is_a_table_of_what_it_trains_on() -> None:
    frame = pd.DataFrame({"age": [1.0, 2.0, np.nan, 9.0], "dose": [3.0, 4, 5, 6], "ill": [0, 1, 1, 0]})
    split = fd.Split.from_frame(frame, label="ill")
    plain = analytics.describe(sites={"a": frame.rename(columns={"ill": "label"})}).pandas
    ways: list[dict[str, Any]] = [{"sites": {"a": split}}, {"sites": {"a": 0}, "data": lambda site: split}]
    for way in ways:
        pd.testing.assert_frame_equal(analytics.describe(**way).pandas.loc[plain.index], plain)
    with pytest.raises(SiteError, match=r"no names of columns: load them with fd\.Split\.from_frame"):
        analytics.describe(sites={"a": fd.Split(train=(np.ones((4, 2)), np.ones(4)))})


def test_what_is_no_table_is_told() -> None:
    with pytest.raises(FoedusError, match="int is no table"):
        held(3)
    with pytest.raises(FoedusError, match="different lengths"):
        held({"a": [1], "b": [1, 2]})
    with pytest.raises(SiteError, match="'when' holds dates: turn them into numbers"):
        analytics.unique("when", sites={"a": pd.DataFrame({"when": pd.to_datetime(["2020-01-01"])})})
    with pytest.raises(SiteError, match="'x' holds infinite"):
        analytics.describe(sites={"a": {"x": [1.0, math.inf]}})


def test_an_answer_says_what_it_has() -> None:
    found = analytics.describe(sites=TWO)
    assert found.sites == 2 and found["sites"] == 2 and "describe" in repr(found) and len(found) == 3
    with pytest.raises(AttributeError, match="describe has no 'median'; it has pandas, per_site, sites"):
        found.median  # noqa: B018
    with pytest.raises(FoedusError, match="no run of an analysis"):
        analytics.read({"w": np.zeros(1)})


def test_files_a_loader_and_a_run_by_its_name(tmp_path: Path) -> None:
    for name, table in sites().items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    files = {name: tmp_path / f"{name}.csv" for name in sites()}
    found = analytics.glm("gaussian", sites=files, target="score", features=FEATURES)
    close(found.pandas, analytics.glm("gaussian", sites=sites(), target="score", features=FEATURES).pandas)
    loaded = analytics.glm("gaussian", sites=files, data=twice, target="double", features="age")
    close(loaded.pandas.coef, 2 * analytics.glm("gaussian", sites=sites(), target="score", features="age").pandas.coef)
    pd.testing.assert_frame_equal(analytics.read(found.result.run).pandas, found.pandas)
    pd.testing.assert_frame_equal(analytics.read(found.result.save(tmp_path / "glm.safetensors")).pandas, found.pandas)


def twice(site: Any) -> pd.DataFrame:
    return pd.read_csv(site.data).assign(double=lambda t: 2 * t.score)


def test_sites_may_be_absent_where_the_job_says_so() -> None:
    odd = sites() | {"south": sites()["south"].drop(columns="age")}
    settings: dict[str, Any] = {"target": "score", "features": ["age", "chol"]}
    with pytest.raises(SiteError, match="site 'south'"):
        analytics.glm("gaussian", sites=odd, **settings)
    found = analytics.glm("gaussian", sites=odd, **settings, min_sites=2)
    rest = {name: t for name, t in sites().items() if name != "south"}
    close(found.pandas, analytics.glm("gaussian", sites=rest, **settings).pandas, 1e-10)
    assert list(found.per_site.index) == ["east", "north", "west"]


def test_what_would_make_sums_inexact_is_refused() -> None:
    with pytest.raises(Incompatible, match=r"an exact model .* and compress, cohort, .*leave them out"):
        analytics.describe.job(compress=fd.int8())
    with pytest.raises(TypeError, match="unexpected keyword argument 'colums'"):
        analytics.describe.job(colums="age")


def test_two_sided_far_into_the_tail() -> None:
    assert two_sided([0.0, 1.959963984540054, 30.0]) == pytest.approx([1, 0.05, 9.813428854191054e-198], rel=1e-9)
