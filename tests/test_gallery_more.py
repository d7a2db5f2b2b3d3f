"""The gallery's second half: each job for a few rounds, on small files in the real format that the test writes."""

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


CASES = {"transportation/flight_delays": (flights, learns_flights)}


@pytest.mark.parametrize("name", CASES)
def test_a_job_of_the_gallery_learns_from_small_files(name, tmp_path):
    write, check = CASES[name]
    made = module(HERE / name / "job.py")
    check(made, made.job(rounds=2).run(write(tmp_path), seed=1, backend="local"))


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
