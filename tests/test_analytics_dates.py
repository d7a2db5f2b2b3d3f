"""Tables with dates: each counts as its year, no day and no first or last person's year leaves a site."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from foedus import analytics
from foedus import schema as schemas
from foedus.analytics.held import column, held
from foedus.errors import JobError, SiteError
from foedus.report.answers import page

BORN = [1921, *range(1950, 1960), 2019]  # twelve: the fifth of them is 1953, the fifth from the end 1956
DAYS = pd.to_datetime([f"{year}-07-15 08:30" for year in BORN])


def table(born: object = DAYS) -> pd.DataFrame:
    days = pd.to_timedelta(np.arange(12) + 0.5, unit="D")
    return pd.DataFrame({"age": np.arange(12.0), "born": born, "stay": days, "sex": ["f", "m"] * 6})


def sites() -> dict[str, pd.DataFrame]:
    later = table(DAYS + pd.DateOffset(years=10))
    later.loc[3, "born"] = pd.NaT
    return {"north": table(), "south": later}


@pytest.mark.parametrize(
    "born",
    [
        DAYS,
        DAYS.tz_localize("America/New_York"),
        DAYS.values,
        [day.date() for day in DAYS],
        np.array(DAYS.values, "datetime64[D]"),
    ],
)
def test_a_date_is_read_as_its_year_whatever_holds_it(born: object) -> None:
    found = column(held(table(born)), "born")
    assert found.kind == "date" and found.values.tolist() == BORN
    plain = column(held({"born": np.array(["2020-12-31", "NaT"], "datetime64[s]")}), "born")
    assert plain.values[0] == 2020 and np.isnan(plain.values[1])


def test_a_year_is_the_one_of_the_sites_own_time_zone_and_a_column_of_gaps_is_empty() -> None:
    night = pd.Series(pd.to_datetime(["2019-12-31 23:00"])).dt.tz_localize("America/New_York")
    assert column(held({"t": night}), "t").values.tolist() == [2019]
    assert column(held({"t": pd.Series([pd.NaT, pd.NaT])}), "t").kind == "empty"


def test_description_of_dates_tells_years_that_enough_people_have() -> None:
    found = analytics.describe(sites=sites())
    born = found.pandas.loc["born"]
    assert (born["count"], born["missing"]) == (23, 1)
    years = [*BORN, *(year + 10 for year in BORN if year != 1952)]
    assert born["mean"] == pytest.approx(np.mean(years)) and born["std"] == pytest.approx(np.std(years, ddof=1))
    south = sorted(year + 10 for year in BORN if year != 1952)
    assert (born["min"], born["max"]) == (1953, south[-5])  # neither 1921 nor 2029, which are somebody's
    assert found.per_site.loc[("south", "born"), "min"] == south[4]
    assert found.pandas.loc["stay", "mean"] == 6.0  # durations are days
    few = analytics.describe(sites={"a": table()[:8]}).pandas.loc["born"]
    assert few["count"] == 8 and np.isnan(few["min"]) and np.isnan(few["max"])
    assert np.isnan(analytics.describe(extremes=False, sites=sites()).pandas.loc["born", "max"])
    sealed = analytics.describe(["born"], sites={**sites(), "west": table()}, privacy="secagg").pandas.loc["born"]
    assert (sealed["count"], sealed["min"], sealed["max"]) == (35, 1953, south[-5])


def test_every_overview_takes_a_table_with_dates(tmp_path: Path) -> None:
    people, apart = analytics.table_one(sites=sites()), analytics.drift(sites=sites())
    assert people.pandas.loc[("born", "mean (sd)"), "north"].startswith(f"{np.mean(BORN):.4g} (")
    assert people.pandas.loc[("born", "missing"), "all"] == "1 (4.2 %)"
    assert apart.pandas.loc[("born", "south"), "difference"] > 0.3
    found = analytics.quantiles(sites=sites(), q=0.5)
    assert found.pandas.loc[0.5, "born"] == np.median([*BORN, *(year + 10 for year in BORN if year != 1952)])
    assert found.left_out == {"sex": "text"}
    assert "born" in page([people, apart, found])


def test_correlation_leaves_dates_out_and_says_so() -> None:
    found = analytics.correlation(sites=sites())
    assert list(found.pandas) == ["age", "stay"] and found.left_out == {"born": "dates", "sex": "text"}
    with pytest.raises(JobError, match="'born' holds dates where numbers are needed"):
        analytics.correlation(["age", "born"], sites=sites())


def test_a_proposed_schema_has_dates_as_texts_and_the_table_passes_it() -> None:
    found = analytics.schema(sites=sites())
    assert 'born = { type = "text", missing = 0.1 }' in found.toml
    rules = schemas.read(tomllib.loads(found.toml))
    assert not [found for name, made in sites().items() for found in schemas.check(rules, "data", made, name).findings]


def test_dates_here_and_texts_there_are_told_and_models_refuse_them() -> None:
    with pytest.raises(JobError, match="'born' holds text at south and dates at north: code it alike"):
        analytics.describe(sites={"north": table(), "south": table([str(day) for day in DAYS])})
    with pytest.raises(SiteError, match="'born' holds dates: turn them into numbers"):
        analytics.glm("gaussian", target="age", features="born", sites=sites())
    assert column(held({"t": [datetime.date(2020, 2, 3), "soon"]}), "t").kind == "text"
