"""Who is in the federation, where sites differ, and the schema that their data have; the page and the verb of them."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from analytics_tables import pooled, sites
from foedus import analytics
from foedus import schema as schemas
from foedus.analytics import asking
from foedus.errors import FoedusError, JobError
from test_cli_run import foedus

ANN = {
    "a": pd.DataFrame({"age": [50, 60, 70, 80], "sex": ["f", "f", "m", None]}),
    "b": pd.DataFrame({"age": [40, 40, np.nan, 50], "sex": ["f", "m", "m", "m"]}),
}


def test_a_table_one_worked_out_by_hand() -> None:
    found = analytics.table_one(sites=ANN, least=2)
    table = found.pandas
    assert list(table.columns) == ["all", "a", "b"] and found.n == 8
    assert table.loc[("rows", ""), :].tolist() == ["8", "4", "4"]
    # 390 / 7; squares about it: sums of (x - 55.714)²; and 65 with sd 12.91, 43.33 with 5.774
    sd = np.std([50, 60, 70, 80, 40, 40, 50], ddof=1)
    assert table.loc[("age", "mean (sd)"), :].tolist() == [f"55.71 ({sd:.3g})", "65 (12.9)", "43.33 (5.77)"]
    assert table.loc[("age", "missing"), :].tolist() == ["1 (12.5 %)", "0 (0.0 %)", "1 (25.0 %)"]
    assert table.loc[("sex", "f"), :].tolist() == ["3 (42.9 %)", "few", "few"]  # with m, which would tell it
    assert table.loc[("sex", "m"), :].tolist() == ["4 (57.1 %)", "few", "few"]


def quartiles(x: pd.Series, least: int) -> list[float]:
    """Each the mean of the `least` values nearest in rank, and of those that are as near as the last of them."""
    held, found = np.sort(x.dropna()), []
    for q in (0.5, 0.25, 0.75):
        apart = np.abs(np.arange(len(held)) - q * (len(held) - 1))
        found.append(held[apart <= np.sort(apart)[least - 1]].mean())
    return found


def test_quartiles_are_means_of_as_many_values_as_may_be_shown() -> None:
    # of all 40 40 50 50 60 70 80: nearest to the median (rank 3) is itself, then 2 and 4; to p25 (1.5) 1 and 2
    found = analytics.table_one("age", sites=ANN, least=2).pandas.loc[("age", "median (p25, p75)")]
    assert found["all"] == f"{160 / 3:.4g} (45, 65)"  # (50 + 50 + 60) / 3, (40 + 50) / 2, (60 + 70) / 2
    assert found["a"] == "65 (55, 75)" and found["b"] == f"{130 / 3:.4g} (40, 45)"  # 40 40 50: ranks 1, 0.5, 1.5
    exact = analytics.table_one("age", sites=ANN, least=1).pandas.loc[("age", "median (p25, p75)")]
    assert exact["all"] == "50 (45, 65)" and exact["a"] == "65 (60, 70)"
    for least in (1, 5, 8):
        table = analytics.table_one(["age", "chol", "score"], sites=sites(), least=least).pandas["all"]
        for name in ("age", "chol", "score"):
            held = [one[name] for one in sites().values() if name in one and one[name].count() >= least]
            median, low, high = quartiles(pd.concat(held), least)
            assert table[name, "median (p25, p75)"] == f"{median:.4g} ({low:.4g}, {high:.4g})"
    few = {"a": pd.DataFrame({"x": [1.0, 2, 3, 4, None]}), "b": pd.DataFrame({"x": range(9)})}
    found = analytics.table_one(sites=few, least=5).pandas.loc[("x", "median (p25, p75)")]
    assert found["a"] == "–" and found["all"] == found["b"] == "4 (2, 6)"


def test_columns_of_0_and_1_are_counted_and_few_of_them_hidden_with_the_others() -> None:
    rng = np.random.default_rng(0)
    held = {site: pd.DataFrame({"ill": [1] * n + [0] * (60 - n), "visits": rng.integers(0, 3, 60), "on": [True] * 60})
            for site, n in (("a", 20), ("b", 3))}  # fmt: skip
    held["b"].loc[59, "ill"] = None
    found = analytics.table_one(sites=held).pandas
    assert found.loc[("ill", "1")].tolist() == ["23 (19.3 %)", "20 (33.3 %)", "few"]
    assert found.loc[("ill", "0"), "all"] == "96 (80.7 %)" and found.loc[("ill", "0"), "b"] == "few"
    assert found.loc[("ill", "missing"), "all"] == "1 (0.8 %)" and ("ill", "mean (sd)") not in found.index
    assert found.loc[("on", "1"), "all"] == "120 (100.0 %)" and ("visits", "mean (sd)") in found.index
    sealed = analytics.table_one(["ill", "visits"], sites={**held, "c": held["a"]}, privacy="secagg").pandas
    open_ = analytics.table_one(["ill", "visits"], sites={**held, "c": held["a"]}).pandas
    assert sealed["all"].to_dict() == open_["all"].to_dict() and list(sealed) == ["all"]


def test_a_column_that_one_site_lacks_is_told_of_the_others() -> None:
    lacking = {**sites(), "south": sites()["south"].drop(columns="chol")}
    every = analytics.table_one(sites=lacking).pandas
    assert every.loc[("chol", "median (p25, p75)"), "south"] == "–"
    rest = pd.concat([table["chol"] for site, table in lacking.items() if "chol" in table and len(table) >= 5])
    median, low, high = quartiles(rest, 5)
    assert every.loc[("chol", "median (p25, p75)"), "all"] == f"{median:.4g} ({low:.4g}, {high:.4g})"
    assert np.isnan(analytics.drift(sites=lacking).pandas.loc[("chol", "south"), "psi"])


def test_few_rows_are_in_no_mean_and_a_level_that_tells_another_is_hidden_with_it() -> None:
    counts = pd.DataFrame({"c": ["x"] * 3 + ["y"] * 9 + ["z"] * 20, "n": [1.0] * 2 + [np.nan] * 30})
    found = analytics.table_one(sites={"a": counts, "b": counts}, least=5).pandas["a"]
    assert [found["c", level] for level in ("(others)", "y", "z")] == ["few", "few", "20 (62.5 %)"]
    assert ("c", "x") not in found  # which is not named: three people have it
    assert found["n", "mean (sd)"] == "–"


def test_a_site_of_too_few_rows_is_no_gap_and_not_told_by_one() -> None:
    rows = pd.DataFrame({"age": np.arange(50.0), "sex": ["f", "m"] * 25})
    found = analytics.table_one(sites={"a": rows, "b": rows[:2]}, least=5).pandas
    alone = analytics.table_one(sites={"a": rows}, least=5).pandas
    assert found["all"].to_dict() == alone["a"].to_dict()


def people() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(1)
    return {
        site: pd.DataFrame({
            "patient": [f"{site}{i:04}" for i in range(40)], "age": rng.integers(30, 80, 40),
            "ward": ["A"] * 20 + ["B"] * 18 + ["secret"] * 2, "note": rng.choice(["fine", "worse"], 40),
        })
        for site in ("north", "south")
    }  # fmt: skip


@pytest.mark.parametrize("analysis", ["table_one", "drift", "schema"])
def test_no_name_of_a_patient_or_of_few_leaves_a_site(analysis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held, sent, listed = people(), [], asking._listed

    def noted(*args: Any) -> Any:
        made = listed(*args)
        sent.append(made.shown["list"].tobytes())
        return made

    monkeypatch.setattr(asking, "_listed", noted)
    found = getattr(analytics, analysis)(sites=held)
    assert any(b"fine" in text for text in sent) and not any(b"north00" in x or b"secret" in x for x in sent)
    if analysis == "schema":
        assert 'patient = { type = "text" }' in found.toml and 'ward = { type = "text" }' in found.toml
        assert 'note = { type = "code", codes = ["fine", "worse"] }' in found.toml
    else:
        assert found.free_text == ["patient"]


def test_a_model_by_a_column_that_names_people_is_refused_by_the_site() -> None:
    with pytest.raises(FoedusError, match=r"'patient' has 40 levels in 40 rows, so they may name people"):
        analytics.glm("gaussian", target="age", features=["patient"], sites=people())
    with pytest.raises(JobError, match=r"give categories=\{column: levels\} for ward"):
        analytics.table_one(["age", "ward"], sites={**people(), "west": people()["north"]}, privacy="secagg")


def test_drift_is_the_difference_from_all_other_sites() -> None:
    found = analytics.drift(sites=sites()).pandas
    held = {name: table for name, table in sites().items() if len(table)}
    for name in ("chol", "score"):
        for site, table in held.items():
            others = pd.concat([other for key, other in held.items() if key != site])[name].dropna()
            mine, every = table[name].dropna(), pooled(name)[name]
            gap = (mean := mine.mean()) - others.mean()
            assert found.loc[(name, site), "difference"] == pytest.approx(gap / every.std(ddof=0), rel=1e-9), mean
            cells = pd.cut(every, [-math.inf, *np.quantile(every, np.arange(1, 10) / 10), math.inf], labels=False)
            ours = np.array([((cells.index.isin(mine.index)) & (cells == i)).sum() for i in range(10)])
            theirs = np.bincount(cells, minlength=10) - ours
            p, q = ((x + 0.5) / (x + 0.5).sum() for x in (ours, theirs))
            assert found.loc[(name, site), "psi"] == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=1e-9)
            exact = ks_2samp(mine, others).statistic
            assert exact - 0.1 <= found.loc[(name, site), "ks"] <= exact + 1e-12
    assert found.loc[("sex", "south"), "psi"] > 0.25  # which has no "m"
    assert found.loc[("age", "west")].isna().all()
    with pytest.raises(JobError, match="which secagg hides"):
        analytics.drift("chol", sites=sites(), privacy="secagg")


def test_a_site_with_other_values_stands_out_and_an_equal_one_does_not() -> None:
    rng = np.random.default_rng(0)
    held = {f"s{i}": pd.DataFrame({"x": rng.normal(3 * (i == 2), 1, 4000)}) for i in range(3)}
    found = analytics.drift(sites=held).pandas["psi"]
    assert found["x", "s2"] > 2 and found["x", "s0"] > 0.1
    assert analytics.drift(sites={**held, "s2": held["s0"]}).pandas["psi"].max() < 0.01


def test_the_schema_proposed_is_one_that_all_sites_pass(tmp_path: Path) -> None:
    found = analytics.schema(sites=sites(), dataset="cohort")
    (tmp_path / "schema.toml").write_text(found.toml)
    rules = schemas.read(tmp_path / "schema.toml")
    columns = rules.datasets["cohort"].columns
    assert columns["sex"].codes == ("f", "m", "x") and columns["ill"].codes == (0, 1)
    assert (columns["age"].type, columns["age"].min, columns["age"].max) == ("number", 34, 83)
    assert columns["days"].type == "integer" and columns["age"].missing == 0.05
    assert rules.datasets["cohort"].least_rows == 60
    for site, table in sites().items():
        if len(table):
            assert not schemas.check(rules, "cohort", table, site=site).findings
    odd = {**sites(), "south": sites()["south"].drop(columns="cost")}
    assert analytics.schema(sites=odd).lacking == ["cost"]
    sealed = analytics.schema(["age", "sex"], categories={"sex": ["f", "m", "x"]}, sites=sites(), privacy="secagg")
    assert 'codes = ["f", "m", "x"]' in sealed.toml and "min = 34" in sealed.toml
    with pytest.raises(JobError, match="give a name of letters"):
        analytics.schema(dataset="a b", sites=sites())


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.said = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.said += data


def test_the_page_has_every_table_escapes_names_and_draws(tmp_path: Path) -> None:
    held = {("<b>north</b>" if name == "north" else name): table for name, table in sites().items()}
    people, apart = analytics.table_one(sites=held), analytics.drift(sites=held)
    bars = analytics.histogram("chol", sites=held)
    curves = analytics.kaplan_meier(time="days", event="died", group="sex", sites=held)
    page = Page()
    page.feed(people.html(tmp_path / "page.html", apart, bars, curves, title="Who & where").read_text())
    assert page.tags.count("section") == 4 and page.tags.count("svg") == 2 and page.tags.count("rect") == 10
    assert "<b>north</b>" in page.said and "Who & where" in page.said and "much" in page.said
    assert people.digest == analytics.table_one(sites=held).digest
    with pytest.raises(FoedusError, match="read from arrays alone"):
        analytics.read(people.result.params).digest  # noqa: B018


@pytest.mark.processes
def test_the_verb_proposes_a_schema_of_files_and_a_run_of_an_analysis_prints_its_table(tmp_path: Path) -> None:
    for name, table in sites().items():
        if len(table):
            table.to_csv(tmp_path / f"{name}.csv", index=False)
    files = [str(tmp_path / f"{name}.csv") for name in ("north", "east", "south")]
    page, file = tmp_path / "page.html", tmp_path / "schema.toml"
    said = foedus(tmp_path, "data", "describe", *files, "--html", page, "--schema", file, "--least", "3")
    assert said.code == 0 and "mean (sd)" in said.out and "distributed otherwise at south" in said.err
    assert schemas.read(file).datasets["data"].columns["sex"].codes == ("f", "m", "x") and page.exists()
    told = json.loads(foedus(tmp_path, "data", "describe", files[0], "--json").out)
    assert told["rows"] == 60 and told["sites"] == ["north"] and "[data.columns]" in told["schema"]
    assert foedus(tmp_path, "data", "describe").code == 2
    (tmp_path / "job.py").write_text(
        "from foedus import analytics\njob = analytics.glm.job('gaussian', target='score', features='age')\n"
    )
    bound = [word for path in files for word in ("--site", f"{Path(path).stem}={path}")]
    ran = foedus(tmp_path, "run", tmp_path / "job.py", *bound)
    assert ran.code == 0 and "const" in ran.out and "digest: " in ran.err


CELLS = {"age": [63, 55, 71], "crp": ["1.5", "", "12.25"], "sex": ["f", "m", "f"]}


@pytest.mark.parametrize(("delimiter", "decimal"), [(",", "."), (";", "."), (";", ","), ("\t", "."), ("\t", ",")])
def test_a_csv_is_read_whatever_its_delimiter_and_decimal_sign(tmp_path: Path, delimiter: str, decimal: str) -> None:
    rows = [delimiter.join(CELLS), *(delimiter.join(map(str, row)) for row in zip(*CELLS.values(), strict=True))]
    (tmp_path / "a.csv").write_text("\n".join(rows).replace(".", decimal) + "\n", encoding="utf-8-sig")
    found = analytics.describe(sites={"a": str(tmp_path / "a.csv")}, least=1).pandas
    assert sorted(found.index) == ["age", "crp", "sex"] and found.loc["crp", "mean"] == 6.875


def test_a_csv_whose_rows_are_longer_than_its_head_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,sex\n63,1,f\n55,2,m\n")
    with pytest.raises(FoedusError, match="more cells than its first line"):
        analytics.describe(sites={"a": str(tmp_path / "a.csv")})
