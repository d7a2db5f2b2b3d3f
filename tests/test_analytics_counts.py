"""Counts of cells named beforehand: by hand, under noise as strong as it says, under a seal, and in a site's ledger."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import foedus as fd
from federations import finished, foedus, joined
from foedus import analytics
from foedus.analytics.held import held
from foedus.core import SiteContext
from foedus.errors import JobError
from foedus.privacy import accounting


def _no(*_: object) -> Any:
    raise AssertionError("counts train and measure nothing")


CELLS = {"age": [0, 50, 65, 100], "sex": ["f", "m"], "stage": [1, 2, 4]}
SITES = {
    "north": pd.DataFrame({
        "age": [49.9, 50, 64.9, 65, 100, 101, np.nan], "sex": ["f", "m", "f", "x", None, "f", "f"],
        "stage": [1, 2, 3, 4, 0, 4, 1],
    }),
    "south": pd.DataFrame({"age": [-1.0, 0, 12], "sex": ["m", "m", ""], "stage": [2, 2, 9]}),
    "west": pd.DataFrame({"age": [70.0], "sex": ["f"], "stage": [1]}),
}  # fmt: skip
# age: 0 to 50 | 50 to 65 | 65 to 100, both ends | other; sex; stage: 1 to 2 | 2 to 4, both ends | other
NORTH = [1, 2, 2, 2, 4, 1, 2, 2, 4, 1]
SOUTH = [2, 0, 0, 1, 0, 2, 1, 0, 2, 1]
WEST = [0, 0, 1, 0, 1, 0, 0, 1, 0, 0]


def test_counts_by_hand() -> None:
    found = analytics.counts(CELLS, sites=SITES)
    assert found.pandas["count"].tolist() == np.sum([NORTH, SOUTH, WEST], axis=0).tolist()
    assert found.per_site.loc["north"].tolist() == NORTH and found.per_site.loc["south"].tolist() == SOUTH
    assert found.pandas.loc[("age", "50 to 65"), "count"] == 2 and found.pandas.loc[("sex", "(other)"), "count"] == 3
    assert found.noise == 0 and found.pandas["sd"].eq(0).all()


def test_noise_has_the_deviation_that_epsilon_asks_for_and_is_no_other_for_the_same_run() -> None:
    cells = {"x": [float(i) for i in range(401)], "y": [float(i) for i in range(401)]}
    sites = {name: pd.DataFrame({"x": [0.5], "y": [0.5]}) for name in ("a", "b", "c", "d")}
    how = fd.dp_metrics(epsilon=0.5, delta=1e-6)
    found = analytics.counts(cells, sites=sites, privacy=how)
    expected = accounting.noise_multiplier(0.5, 1.0, 2, 1e-6, "rdp")  # of two counts, one a column
    assert found.noise == pytest.approx(expected) and found.pandas["sd"].iloc[0] == pytest.approx(2 * expected)
    drawn = found.per_site.to_numpy().ravel()  # 3,208 of them, all but eight of noise alone
    assert np.array_equal(drawn, np.rint(drawn)) and abs(drawn.mean()) < 5 * expected / math.sqrt(len(drawn))
    assert drawn.std() == pytest.approx(expected, rel=0.07)
    assert found.pandas["count"].tolist() == found.per_site.sum().tolist()
    assert analytics.counts(cells, sites=sites, privacy=how).digest == found.digest
    assert analytics.counts(cells, sites=sites, privacy=how, seed=1).digest != found.digest


def test_a_run_that_asks_again_hears_the_same_noise_and_other_rows_have_noise_of_their_own() -> None:
    job = analytics.counts.job(CELLS, privacy=fd.dp_metrics(1000.0))
    work, secret = job.method.works["evaluate"], fd.key(0, "a site's own")

    def told(table: pd.DataFrame, round: int) -> list[float]:
        site = SiteContext("n", fd.Split(train=held(table)), _no, fd.key(0, round, 0, "n"), _no, _no, secret=secret)
        return list(work(fd.Params({"note": np.float64(round)}), None, site)[1].params["sums"])

    whole = SITES["north"]
    assert told(whole, 0) == told(whole, 7)
    gap = np.subtract(told(whole, 0), told(whole.iloc[1:], 0))
    assert np.abs(gap).max() > 2  # which one row cannot change: the noise is another


def test_one_row_more_changes_one_cell_of_each_column_by_one() -> None:
    base = analytics.counts(CELLS, sites=SITES).pandas["count"]
    for age, sex, stage in [(3, "f", 1), (math.nan, None, 7), (100, "z", 4)]:
        row = pd.DataFrame({"age": [age], "sex": [sex], "stage": [stage]})
        more = {**SITES, "west": pd.concat([SITES["west"], row], ignore_index=True)}
        change = analytics.counts(CELLS, sites=more).pandas["count"] - base
        assert change.groupby(level="column").sum().tolist() == [1, 1, 1] and set(change) == {0, 1}


def test_under_a_seal_the_sums_are_the_same_and_no_site_is_seen() -> None:
    how = fd.dp_metrics(epsilon=1.0)
    plain, sealed = (analytics.counts(CELLS, sites=SITES, privacy=p) for p in (how, [how, "secagg"]))
    assert sealed.per_site.empty and not plain.per_site.empty
    open_, under = (analytics.counts(CELLS, sites=SITES, privacy=p).pandas["count"] for p in ("none", "secagg"))
    assert open_.tolist() == under.tolist() == np.sum([NORTH, SOUTH, WEST], axis=0).tolist()
    assert sealed.noise == plain.noise > 0


@pytest.mark.parametrize(
    "cells", [{}, {"age": []}, {"age": [1]}, {"age": [2, 1]}, {"age": [0, math.inf]}, {"sex": ["f", "f"]}, {"sex": "f"}]
)
def test_cells_that_are_none_are_refused(cells: object) -> None:
    with pytest.raises(JobError, match=r"counts"):
        analytics.counts(cells, sites=SITES)


@pytest.mark.long
@pytest.mark.processes
def test_a_sites_ledger_counts_what_analyses_spent_together(tmp_path: Path) -> None:
    paths = {}
    for name, table in SITES.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        paths[name] = tmp_path / f"{name}.csv"
    how = "privacy=fd.dp_metrics(epsilon=1.0)"
    jobs = {"counts": f"{CELLS!r}", "describe": "bounds={'age': (0, 100)}"}
    spent = {}
    with joined(tmp_path / "home", paths) as made:
        for name, asked in jobs.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "job.py").write_text(
                f"import foedus as fd\nfrom foedus import analytics\njob = analytics.{name}.job({asked}, {how})\n"
            )
            result = finished(made.remote().submit(tmp_path / name / "job.py"))
            _, told = foedus(made.site_home("north"), "site", "privacy")
            spent[name] = told["datasets"]["data"]
    simulated = analytics.describe(bounds={"age": (0, 100)}, sites=paths, privacy=fd.dp_metrics(epsilon=1.0))
    assert analytics.read(result).noise == simulated.noise
    assert 0.3 < spent["counts"]["epsilon"] <= 1.0 and spent["counts"]["trainings"] == 1
    # three releases each, of the same noise: those of both are as those of one with noise less by the root of two
    noise = accounting.noise_multiplier(1.0, 1.0, 3, 1e-5, "rdp") / math.sqrt(6)
    both = accounting.analytic_gaussian_epsilon(noise, 1e-5)
    assert spent["describe"]["epsilon"] == pytest.approx(both, rel=0.02) and spent["describe"]["trainings"] == 2
    assert spent["describe"]["unbounded"] == 0
