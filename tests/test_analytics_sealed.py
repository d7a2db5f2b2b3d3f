"""Exact models under secagg: the answers of open sums, from sums alone, and nothing of a single site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import foedus as fd
from analytics_tables import sites
from foedus import analytics
from foedus.errors import Incompatible, JobError
from foedus.privacy.wide import FINE, WHOLE, limbs, means
from foedus.trees import histogram_boosting

LEVELS = {"sex": ["f", "m", "x"]}
MODEL: dict[str, Any] = {"features": ["age", "chol", "sex"], "categories": LEVELS}
TIMES: dict[str, Any] = {"time": "days", "event": "died", "grid": range(5, 300, 5)}
COLUMNS = ["age", "chol", "visits"]
ANALYSES = {
    "describe": (analytics.describe, {"columns": COLUMNS}),
    "quantiles": (analytics.quantiles, {"columns": ["age", "chol"], "q": [0.1, 0.5]}),
    "histogram": (analytics.histogram, {"column": "chol", "bins": 7}),
    "correlation": (analytics.correlation, {"columns": COLUMNS}),
    "contingency": (analytics.contingency, {"row": "sex", "column": "ill", "categories": {**LEVELS, "ill": [0, 1]}}),
    "top_k": (analytics.top_k, {"column": "sex", "k": 2, "categories": LEVELS}),
    "unique": (analytics.unique, {"columns": ["visits"]}),
    "ttest": (analytics.ttest, {"value": "score", "group": "died", "categories": {"died": [0, 1]}}),
    "binomial": (analytics.glm, {"family": "binomial", "target": "ill", **MODEL}),
    "lasso": (analytics.glm, {"family": "gaussian", "target": "score", "l1": 10.0, **MODEL}),
    "gamma": (analytics.glm, {"family": "gamma", "target": "cost", **MODEL}),
    "cox efron": (analytics.cox, {"ties": "efron", **TIMES, **MODEL}),
    "cox breslow": (analytics.cox, {"ties": "breslow", **TIMES, **MODEL}),
    "kaplan meier": (analytics.kaplan_meier, {**TIMES, "group": "sex", "categories": LEVELS}),
    "logrank": (analytics.logrank, {**TIMES, "group": "sex", "categories": LEVELS}),
    "kmeans": (analytics.kmeans, {"features": ["age", "chol"], "k": 3}),
    "pca": (analytics.pca, {"features": ["age", "chol", "score"]}),
    "mixed": (analytics.mixed, {"target": "score", **MODEL}),
    "meta": (analytics.meta, {"family": "gaussian", "target": "score", **MODEL}),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_says_the_same_under_a_seal_and_nothing_of_a_site(name: str) -> None:
    ask, how = ANALYSES[name]
    plain, sealed = (ask(**how, sites=sites(), privacy=privacy) for privacy in ("none", "secagg"))
    pd.testing.assert_frame_equal(sealed.pandas, plain.pandas, rtol=1e-10, atol=1e-12)
    assert sealed.per_site.empty and not plain.per_site.empty
    open_ = ask(**how, sites=sites(), privacy=fd.secagg(masks=False))
    assert sealed.result.digest == open_.result.digest


def test_what_only_a_list_can_say_is_refused_with_what_to_say_instead() -> None:
    with pytest.raises(JobError, match=r"under secagg no site lists its levels: give categories=\{column: levels\}"):
        analytics.glm("binomial", target="ill", features="sex", sites=sites(), privacy="secagg")
    with pytest.raises(JobError, match=r"no site lists its times: give grid="):
        analytics.cox(time="days", event="died", features="age", sites=sites(), privacy="secagg")
    with pytest.raises(JobError, match=r"no site lists its names: name the columns"):
        analytics.describe(sites=sites(), privacy="secagg")
    mixed = {**sites(), "west": pd.DataFrame({"age": ["old"]})}
    with pytest.raises(JobError, match=r"column 'age' holds text at some sites and numbers at some sites"):
        analytics.describe("age", sites=mixed, privacy="secagg")


@given(st.lists(st.floats(-1e15, 1e15, allow_subnormal=False), min_size=1, max_size=9))
def test_limbs_hold_a_number_to_the_last_bit(numbers: list[float]) -> None:
    x = np.array([n if abs(n) > 1e-12 else 0.0 for n in numbers])
    assert means(limbs(x, FINE), FINE, 1).tolist() == x.tolist()
    assert means(3 * limbs(x, FINE), FINE, 3).tolist() == x.tolist()
    whole = np.rint(x)
    assert means(limbs(whole, WHOLE), WHOLE, 1).tolist() == whole.tolist()


def test_limbs_worked_out_by_hand_and_what_has_no_room() -> None:
    assert limbs(np.array([65536.0 * 3 + 5]), WHOLE).tolist() == [[5, 3, 0, 0]]
    assert limbs(np.array([-1.5]), FINE)[0].tolist() == [0, 0, 0, 0, 0, -32768, -1, 0, 0, 0]  # units of 2**-96
    assert means(np.array([[131072.0, -1, 0, 0]]), WHOLE, 2).tolist() == [32768]  # (2 * 65536 - 65536) / 2
    with pytest.raises(JobError, match=r"a sum beyond 1\.84e\+19 has no room under secagg: scale the columns"):
        limbs(np.array([1e20]), FINE)


RNG = np.random.default_rng(0)
X = RNG.integers(0, 40, (900, 5)).astype(float)
X[RNG.random((900, 5)) < 0.05] = np.nan
CLASS = (np.nan_to_num(X, nan=20)[:, 0] + RNG.normal(size=900) * 9 > 20).astype(int)
TREES = histogram_boosting({"objective": "binary:logistic", "max_depth": 3}, bins=32)


def held(names: bool = False) -> dict[str, fd.Split]:
    parts = np.array_split(np.arange(900), 4)
    return {f"s{i}": fd.Split(train=(X[at], CLASS[at]), valid=(X[at], CLASS[at])) for i, at in enumerate(parts)}


def test_sealed_trees_are_those_of_open_sums_to_the_bit_and_measured() -> None:
    plain = fd.Job(TREES, rounds=3, metrics=["auc", "pr_auc"], best="auc").run(sites=held())
    sealed = fd.Job(TREES, rounds=3, metrics=["auc", "pr_auc"], best="auc", privacy="secagg").run(sites=held())
    assert sealed.digest == plain.digest
    assert sealed.metrics["auc"] == plain.metrics["auc"] and sealed.best is not None


def test_under_a_seal_other_columns_at_one_site_are_told_without_a_name() -> None:
    odd = {**held(), "s2": fd.Split(train=(X[:50, [0, 1, 2, 3]], CLASS[:50]))}
    with pytest.raises(JobError, match="not all sites have the same columns, and under secagg nobody sees which"):
        fd.Job(TREES, rounds=1, privacy="secagg").run(sites=odd)
    with pytest.raises(Incompatible, match="an exact model"):
        fd.Job(TREES, rounds=1, privacy="secagg", cohort=3)


FILE = """
import pandas as pd
import foedus as fd
from foedus import analytics

levels = {"sex": ["f", "m", "x"]}
job = analytics.glm.job("binomial", target="ill", features=["age", "chol", "sex"], categories=levels, privacy="secagg")
"""


@pytest.mark.long
@pytest.mark.processes
def test_real_sites_seal_an_analysis(tmp_path: Path) -> None:
    from federations import finished, joined
    from foedus import jobfile, launch

    places = {}
    for name, table in sites().items():
        places[name] = tmp_path / "data" / f"{name}.csv"
        places[name].parent.mkdir(exist_ok=True)
        table.to_csv(places[name], index=False)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.py").write_text(FILE)
    with joined(tmp_path / "home", places) as made:
        real = finished(made.remote().submit(tmp_path / "job" / "job.py"))
    job = jobfile.load(tmp_path / "job" / "job.py").job
    simulated = launch.run(job, dict(places), folder=tmp_path / "simulated")
    assert real.digest == simulated.digest
    found = analytics.read(real)
    assert found.per_site.empty and found.pandas.loc["age", "p"] < 0.05
