"""The gallery's second half: each job for ten rounds, on small files in the real format that the test writes."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import foedus as fd

HERE = Path(__file__).parents[1] / "examples"


def module(path):
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def flights(folder):
    """Two carriers, four flights on each of 60 days: late exactly where the plane was to leave at 18 h."""
    rows = [
        (2013, 1 + d // 28, 1 + d % 28, carrier, "JFK", hour, 1000, 60 if hour == 18 else -5)
        for d in range(60)
        for carrier in ("AA", "UA")
        for hour in (6, 9, 18, 18)
    ]
    frame = pd.DataFrame(rows, columns=["year", "month", "day", "carrier", "origin", "hour", "distance", "arr_delay"])
    frame.loc[0, "arr_delay"] = np.nan  # was cancelled
    frame.to_csv(folder / "flights.csv.zip", index=False)
    weather = [("JFK", 1, 1, 6, 10.0, 0.0, 10.0), ("JFK", 1, 1, 9, 30.0, 0.5, 2.0)]
    names = ["origin", "month", "day", "hour", "wind_speed", "precip", "visib"]
    pd.DataFrame(weather, columns=names).to_csv(folder / "weather.csv", index=False)
    return dict.fromkeys(("AA", "UA"), str(folder))


def learns_flights(job, result):
    assert result.metrics["test_auc"] == 1.0  # the hour says all


def loads(folder):
    """Two profiles of six weeks by the quarter of an hour: 0.8 by day and 0.2 by night, and the other way about."""
    time = pd.date_range("2016-01-01", periods=6 * 7 * 96, freq="15min")
    day = np.where((time.hour >= 8) & (time.hour < 20), 0.8, 0.2)
    names = {"H0-A_qload": 9 + 0 * day, "H0-A_pload": day, "G0-A_pload": 1 - day}
    path = folder / "LoadProfile.csv"
    pd.DataFrame({"time": time.strftime("%d.%m.%Y %H:%M"), **names}).to_csv(path, sep=";", index=False)
    return dict.fromkeys(("H0-A", "G0-A"), str(path))


def learns_loads(job, result):
    assert result.metrics["test_rmse"] < 0.3 / 3  # a constant forecast errs by 0.3


CASES = {
    "transportation/flight_delays": (flights, learns_flights),
    "energy/load_forecast": (loads, learns_loads),
}


@pytest.mark.parametrize("name", CASES)
def test_a_job_of_the_gallery_learns_from_small_files(name, tmp_path):
    write, check = CASES[name]
    made = module(HERE / name / "job.py")
    check(made, made.job(rounds=10).run(write(tmp_path), seed=1, backend="local"))


def test_flights_have_the_weather_of_their_hour_and_no_cancelled_ones(tmp_path):
    made = module(HERE / "transportation/flight_delays/job.py")
    flights(tmp_path)
    table = made.table(str(tmp_path))
    assert len(table) == 479
    x, y, day = made.examples(table)
    # the second flight left on 1 January (a Tuesday) at 9 h from JFK: 30 / 40 knots, 0.5 inches, 2 / 10 miles
    assert set(np.flatnonzero(x[0, :41])) == {4, 19, 19 + 12 + 1, 19 + 12 + 7 + 1}
    assert x[0, 41:].tolist() == [0.2, 0.75, 0.5, 0.2]
    assert (y[0], day[0], y.sum()) == (0, 1, 240)


def test_a_site_that_is_no_carrier_is_told_how_to_name_it(tmp_path):
    made = module(HERE / "transportation/flight_delays/job.py")
    flights(tmp_path)
    with pytest.raises(fd.FoedusError, match=r"XX: .* has no flight of this carrier"):
        made.job(rounds=1).run({"XX": str(tmp_path)}, seed=1, backend="local")


def test_loads_are_means_of_an_hour_beside_those_of_a_day_and_a_week_before():
    made = module(HERE / "energy/load_forecast/job.py")
    x, y = made.examples(pd.Series(np.arange(200.0), index=pd.date_range("2016-01-01", periods=200, freq="h")))
    # the first example is Friday 8 January at 0 h, the 168th hour
    assert (y[0], x[0, :5].tolist()) == (168, [144, 143, 120, 96, 0])
    assert set(np.flatnonzero(x[0, 5:])) == {0, 24 + 4}


def test_an_hour_that_summer_time_skips_is_no_example_and_no_lag():
    made = module(HERE / "energy/load_forecast/job.py")
    series = pd.Series(np.arange(200.0), index=pd.date_range("2016-01-01", periods=200, freq="h"))
    series.iloc[171] = np.nan
    x, y = made.examples(series)
    # hours 168 to 199, but not 171, and not 195 and 196, a day and a day and an hour later
    assert y.tolist() == [h for h in range(168, 200) if h not in (171, 195, 196)]
    assert np.isfinite(x).all()
