"""Analyses with noise: what a row adds has a bound, noise is as strong as it says, and without it nothing changes."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm

import foedus as fd
from foedus import analytics, frames
from foedus.analytics.bounded import UNIT
from foedus.analytics.held import held
from foedus.core import SiteContext
from foedus.errors import Incompatible, JobError
from foedus.preview import dry_run
from foedus.privacy.dp_metrics import _added, blocks_of, spends

LEVELS = {"sex": ["f", "m"], "ill": [0, 1]}
BOUNDS = {"age": (20, 80), "bp": (60, 200)}
ANALYSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "counts": (analytics.counts, {"cells": {"age": [0, 40, 60, 90], "sex": ["f", "m"]}}),
    "histogram": (analytics.histogram, {"column": "age", "bins": [20, 40, 60, 80]}),
    "contingency": (analytics.contingency, {"row": "sex", "column": "ill", "categories": LEVELS}),
    "top_k": (analytics.top_k, {"column": "sex", "categories": {"sex": ["f", "m"]}}),
    "describe": (analytics.describe, {"columns": ["age", "bp", "sex"], "bounds": BOUNDS}),
    "quantiles": (analytics.quantiles, {"bounds": BOUNDS, "cells": 60}),
    "correlation": (analytics.correlation, {"bounds": BOUNDS}),
}
BLOCKS = {
    "counts": [(4, 1), (3, 1)],
    "histogram": [(3, 1)],
    "contingency": [(4, 1)],
    "top_k": [(2, 1)],
    "describe": [(2, 1), (1, UNIT), (1, UNIT), (2, 1), (1, UNIT), (1, UNIT), (2, 1)],
    "quantiles": [(60, 1), (60, 1)],
    "correlation": [(1, 1)] + [(1, UNIT)] * 5,  # rows; two sums; two squares and a product
}
NONE = fd.dp_metrics(0.0)  # the sums that would get noise, as they are


def sites(rows: int = 300) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(3)
    found = {}
    for name in ("north", "south", "west"):
        age = rng.normal(55, 14, rows).round()
        found[name] = pd.DataFrame({
            "age": age, "bp": 90 + 0.6 * age + rng.normal(0, 12, rows),
            "sex": rng.choice(["f", "m", "x"], rows), "ill": rng.integers(0, 2, rows),
        })  # fmt: skip
        found[name].loc[:4, "bp"] = np.nan
    return found


def _no(*_: object) -> Any:
    raise AssertionError("an analysis trains and measures nothing")


def told(job: fd.Job, table: pd.DataFrame, secret: Any = None) -> np.ndarray:
    """What a site answers to the one Task of an analysis with noise."""
    split = fd.Split(train=held(table))
    site = SiteContext("n", split, _no, fd.key(0, 0, 0, "n"), _no, _no, secret=secret or fd.key(0, "own"))
    return np.asarray(job.method.works["evaluate"](fd.Params({}), None, site)[1].params["sums"])


CELLS = [math.nan, None, math.inf, -1e9, 19.9, 20, 55, 80, 1e9, "unknown", "61", "2020-05-01", "f", ""]


@pytest.mark.parametrize("name", ANALYSES)
@given(row=st.fixed_dictionaries({c: st.sampled_from(CELLS) for c in ("age", "bp", "sex", "ill")}))
@settings(max_examples=60, deadline=None)
def test_one_row_more_changes_one_sum_of_each_block_by_no_more_than_its_bound(name: str, row: dict[str, Any]) -> None:
    ask, how = ANALYSES[name]
    job = ask.job(**how, privacy=NONE)
    blocks = blocks_of(job.algorithm)
    assert blocks == BLOCKS[name]
    table = sites(20)["north"].astype(object)
    more = pd.concat([table, pd.DataFrame([row], dtype=object)], ignore_index=True)
    change = told(job, more) - told(job, table)
    for part, block in zip(np.split(change, np.cumsum([b.size for b in blocks])[:-1]), blocks, strict=True):
        assert np.count_nonzero(part) <= 1 and np.abs(part).max() <= block.bound


@given(st.integers(-(2**40), 2**40), st.integers(-UNIT, UNIT), st.sampled_from([0.01, 1.0, 100.0, 9999.0]))
@settings(max_examples=50, deadline=None)
def test_rounding_to_steps_moves_no_two_sums_further_apart_than_a_row_does(a: int, apart: int, z: float) -> None:
    from unittest.mock import patch

    with patch("foedus.privacy.dp_metrics.discrete_normals", lambda name, size, sigma: np.zeros(size, np.int64)):
        one, other = (int(_added(fd.key(0), np.array([x]), UNIT, z)[0]) for x in (a, a + apart))
    assert abs(one - other) <= UNIT and abs(one - a) <= UNIT / 2


def test_noise_of_a_sum_is_that_of_its_bound_and_of_a_normal_law() -> None:
    names = [f"x{i}" for i in range(300)]
    table = pd.DataFrame(dict.fromkeys(names, [1.0] * 400))  # at one end of (-3, 1)
    how: dict[str, Any] = {"bounds": dict.fromkeys(names, (-3, 1)), "sites": {n: table for n in ("a", "b", "c", "d")}}
    found = analytics.describe(**how, privacy=fd.dp_metrics(2.5))
    own = found.per_site
    counts = own["count"].to_numpy()
    assert (counts - 400).std() == pytest.approx(2.5, rel=0.06) and own["missing"].std() == pytest.approx(2.5, rel=0.06)
    halves = (own["sum"].to_numpy() + counts) / 2 - 400  # sum = 2 (sum of scaled) - count: noise of 2.5 to one row's 1
    assert halves.std() == pytest.approx(2.5, rel=0.06) and abs(halves.mean()) < 5 * 2.5 / math.sqrt(1200)
    assert kstest(halves / 2.5, norm.cdf).pvalue > 1e-3
    assert np.corrcoef(halves, counts)[0, 1] == pytest.approx(0, abs=0.15)
    # of four sites: the mean's noise is 2 sqrt(2.5² · 4 + 2.5² · 4) / 1600, for all values lie at an end
    assert found.pandas["mean_sd"].iloc[0] == pytest.approx(2 * math.sqrt(50) / 1600, rel=0.02)
    assert found.pandas["count_sd"].iloc[0] == 5.0
    clipped = found.pandas["mean"].to_numpy()
    assert clipped.max() <= 1 and abs(clipped - 1).mean() < 2 * 2 * math.sqrt(50) / 1600


def test_the_budget_of_all_blocks_is_the_epsilon_that_was_asked_for() -> None:
    delta = 1e-5
    for name, (ask, how) in ANALYSES.items():
        job = ask.job(**how, privacy=fd.dp_metrics(epsilon=0.7, delta=delta))
        z, k = ask(**how, sites=sites(30), privacy=fd.dp_metrics(epsilon=0.7, delta=delta)).noise, len(BLOCKS[name])
        # k releases of Gaussian noise z are one of z / sqrt(k); its delta at epsilon by Balle and Wang 2018, theorem 8
        sigma = z / math.sqrt(k)
        beyond = norm.cdf(0.5 / sigma - 0.7 * sigma) - math.exp(0.7) * norm.cdf(-0.5 / sigma - 0.7 * sigma)
        assert delta / 20 < beyond <= delta, name
        assert job.releases == (k, 1)
        step = spends(job.dp_metrics, *job.releases)
        assert step.noise_multiplier == pytest.approx(sigma) and tuple(step)[1:] == (1.0, 1)


@pytest.mark.parametrize("name", ["describe", "quantiles", "correlation"])
def test_without_noise_bounds_change_nothing(name: str) -> None:
    ask, how = ANALYSES[name]
    exact, other = ask(**how, sites=sites()), ask(how.get("columns", list(BOUNDS)), sites=sites())
    pd.testing.assert_frame_equal(exact.pandas, other.pandas, check_exact=True)
    assert exact.digest == other.digest and "noise" not in exact and "sd" not in exact.pandas


def test_noise_of_nothing_gives_the_answer_of_values_within_bounds() -> None:
    tables = sites()
    rows = pd.concat(tables.values())
    within = pd.DataFrame({name: rows[name].clip(*ends) for name, ends in BOUNDS.items()})
    found = analytics.describe(["age", "bp", "sex"], bounds=BOUNDS, sites=tables, privacy=NONE).pandas
    assert found["count"].tolist() == [900, 885, 900] and found["missing"].tolist() == [0, 15, 0]
    for name in BOUNDS:
        assert found.loc[name, "mean"] == pytest.approx(within[name].mean(), rel=1e-6)
        assert found.loc[name, "std"] == pytest.approx(within[name].std(), rel=1e-5)
    assert found.loc["sex"].drop(["count", "missing", "count_sd"]).isna().all() and found["max"].isna().all()
    r = analytics.correlation(bounds=BOUNDS, sites=tables, privacy=NONE)
    assert r.pandas.loc["age", "bp"] == pytest.approx(within.dropna().corr().loc["age", "bp"], abs=1e-6)
    assert r.pandas.loc["age", "age"] == pytest.approx(1) and r.pairs.loc["bp", "bp"] == 885
    q = analytics.quantiles(bounds=BOUNDS, q=[0.1, 0.5, 0.9], cells=60, sites=tables, privacy=NONE).pandas
    for name, (low, high) in BOUNDS.items():
        expected = np.quantile(within[name].dropna(), [0.1, 0.5, 0.9])
        assert np.abs(q[name] - expected).max() <= (high - low) / 60 + 1e-9  # a cell's width
    cut = [20, 40, 60, 80]
    bars = analytics.histogram("age", bins=cut, sites=tables, privacy=NONE).pandas
    assert bars["count"].tolist() == np.histogram(rows["age"], cut)[0].tolist()
    table = analytics.contingency("sex", "ill", categories=LEVELS, sites=tables, privacy=NONE)
    seen = rows[rows.sex != "x"]
    assert table.pandas.to_numpy().tolist() == pd.crosstab(seen.sex, seen.ill).to_numpy().tolist()
    assert math.isnan(table.p) and table.sd.to_numpy().sum() == 0


@pytest.mark.parametrize("name", ANALYSES)
def test_under_a_seal_the_answer_with_noise_is_the_same_and_no_site_is_seen(name: str) -> None:
    ask, how = ANALYSES[name]
    noise = fd.dp_metrics(epsilon=3.0)
    plain, sealed = (ask(**how, sites=sites(60), privacy=p) for p in (noise, [noise, "secagg"]))
    pd.testing.assert_frame_equal(sealed.pandas, plain.pandas, rtol=1e-10)
    assert sealed.per_site.empty and not plain.per_site.empty and sealed.noise == plain.noise > 0
    assert plain.digest == ask(**how, sites=sites(60), privacy=noise).digest


def test_quantiles_with_noise_are_within_the_rank_that_it_says() -> None:
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"x": rng.beta(2, 5, 4000)})
    gaps = []
    for seed in range(40):
        found = analytics.quantiles(
            bounds={"x": (0, 1)}, q=[0.25, 0.5, 0.75], sites={"a": table}, seed=seed, privacy=fd.dp_metrics(8.0)
        )
        ranks = [(table["x"] <= x).mean() for x in found.pandas["x"]]
        gaps.append((np.array(ranks) - [0.25, 0.5, 0.75]) / found.rank_sd["x"])
    assert 0.7 < np.std(gaps) < 1.3 and abs(np.mean(gaps)) < 0.4


@pytest.mark.parametrize(
    ("ask", "how"),
    [
        (analytics.describe, {"columns": "age"}),
        (analytics.quantiles, {"columns": "age"}),
        (analytics.correlation, {"columns": ["age", "bp"]}),
        (analytics.histogram, {"column": "age", "bins": 10}),
        (analytics.contingency, {"row": "sex", "column": "ill", "categories": {"sex": ["f", "m"]}}),
        (analytics.top_k, {"column": "sex"}),
        (analytics.table_one, {}),
        (analytics.unique, {"columns": "sex"}),
        (analytics.glm, {"family": "gaussian", "target": "age", "features": "bp"}),
    ],
)
def test_sums_without_a_bound_are_refused_with_the_remedy(ask: Any, how: dict[str, Any]) -> None:
    with pytest.raises(Incompatible, match=r"noise needs a bound: give describe, quantiles and correlation bounds="):
        ask(**how, sites=sites(), privacy=fd.dp_metrics(epsilon=1.0))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (partial(analytics.describe.make, bounds={"age": (9, 9)}), r"bounds=\{'age': \(9, 9\)\}.*in rising order"),
        (partial(analytics.describe.make, bounds={"age": (0, math.inf)}), "two numbers in rising order"),
        (partial(analytics.describe.make, bounds={"age": 3}), "two numbers in rising order"),
        (partial(analytics.describe.make, "bp", bounds={"age": (0, 9)}), "name its columns"),
        (partial(analytics.describe.make, bounds={"age": (0, 9)}, least=5), "leave least out"),
        (partial(analytics.quantiles.make, ["age", "bp"], bounds={"age": (0, 9)}), "those of every column"),
        (partial(analytics.correlation.make, ["age", "bp"], bounds={"age": (0, 9)}), "those of every column"),
    ],
)
def test_bounds_that_make_no_sense_are_told(make: Any, what: str) -> None:
    with pytest.raises(JobError, match=what):
        make()


def test_a_budget_that_leaves_nothing_is_told() -> None:
    with pytest.raises(JobError, match="spend more epsilon, or name fewer columns"):
        analytics.describe(bounds=BOUNDS, sites=sites(), privacy=fd.dp_metrics(1e5))


def test_a_preview_shows_the_one_answer_with_its_noise(tmp_path: Path) -> None:
    tables = sites(50)
    job = analytics.describe.job(bounds=BOUNDS, privacy=fd.dp_metrics(epsilon=1.0))
    shown = dry_run(job, tables, tmp_path, target="north")
    assert [row["work"] for row in shown["updates"]] == ["evaluate"] and shown["why"] == ""
    (file,) = tmp_path.glob("*.safetensors")
    exact = told(analytics.describe.job(bounds=BOUNDS, privacy=NONE), tables["north"])
    assert np.all(frames.read(file)["sums"] != exact)
