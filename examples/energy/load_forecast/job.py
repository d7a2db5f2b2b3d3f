"""Feeders and customers of a grid learn together to forecast their load a day ahead: linear models in numpy.

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

SITES = ("lv_rural1", "lv_rural2", "lv_rural3", "lv_semiurb4", "lv_semiurb5", "lv_urban6")  # feeders
SITES += ("H0-A", "H0-B", "H0-C", "G0-A", "G1-A", "G3-A", "G4-A", "L0-A", "L1-A", "L2-A")  # homes, trades, farms
LAGS = (24, 25, 48, 72, 168)  # hours
FEATURES = len(LAGS) + 24 + 7


def file():
    """LoadProfile.csv: in FOEDUS_DATA, or in the package simbench, which is not imported."""
    found = [Path(os.environ.get("FOEDUS_DATA", "")) / "simbench" / "LoadProfile.csv"]
    spec = importlib.util.find_spec("simbench")
    for place in (spec.submodule_search_locations or []) if spec else []:
        found += [Path(place) / "networks" / "1-complete_data-mixed-all-0-sw" / "LoadProfile.csv"]
    for path in found:
        if path.is_file():
            return path
    raise fd.FoedusError("LoadProfile.csv is nowhere: pip install simbench, or have it in FOEDUS_DATA/simbench")


@functools.lru_cache(maxsize=1)
def table(path):
    """Mean active load of each hour, a column a profile, as shares of the profile's highest quarter of an hour."""
    frame = pd.read_csv(path, sep=";", usecols=lambda name: name == "time" or name.endswith("_pload"))
    frame.index = pd.to_datetime(frame.pop("time"), format="%d.%m.%Y %H:%M")
    return frame.rename(columns=lambda name: name.removesuffix("_pload")).resample("h").mean()


def examples(load):
    """(x, y) of a series by the hour: loads of a day and more before, the hour and the weekday as dummies; no gaps."""
    lags = [load.shift(lag) for lag in LAGS]
    hours = [load.index.hour == hour for hour in range(24)]
    days = [load.index.day_of_week == day for day in range(7)]
    x = np.stack([*lags, *hours, *days], axis=1).astype(np.float64)
    y = load.to_numpy()
    whole = ~np.isnan(x).any(axis=1) & ~np.isnan(y)  # the hour that summer time skips has no load
    return x[whole], y[whole]


def load(site):
    """The site's own year: each fifth week is for testing, the week before it for choosing."""
    loads = table(str(site.data))
    if site.name not in loads:
        raise fd.FoedusError(f"{site.name}: {site.data} has no such profile; name a site by its profile, as in H0-A")
    x, y = examples(loads[site.name])
    week = (np.arange(len(y)) // 168 + int(site.key.names[0])) % 5
    parts = {"train": week < 3, "valid": week == 3, "test": week == 4}
    return fd.Split(**{name: (x[rows], y[rows]) for name, rows in parts.items()})


def gradient(p, x, y, l2=1e-4):
    """Squared errors, one an hour, and the gradients of their mean with a little L2."""
    error = x @ p["w"] + p["b"] - y
    return error**2, {"w": 2 * x.T @ error / len(x) + l2 * p["w"], "b": 2 * error.mean()}


def job(algorithm=None, lr=0.1, rounds=60):
    """Five steps over all hours of a site a round."""
    model = {"w": np.zeros(FEATURES), "b": np.float64(0.2)}
    learner = NumpyLearner(
        model, gradient, lambda p, x: x @ p["w"] + p["b"], lr=lr, epochs=5, batch_size=None, metrics=["rmse"]
    )
    return fd.Job(algorithm or fd.fedavg(), learner, load, rounds=rounds, evaluate=rounds)


def clustered(rounds=60):
    """Three models; each site takes the one that fits it best."""
    return job(fd.ifca(clusters=3), rounds=rounds)


def tuned(rounds=60, tuning=10):
    """The federated model, trained on at home."""
    return job(fd.fine_tuned(after=rounds), rounds=rounds + tuning)


def sites():
    """profile -> file, where no other sites are given."""
    return dict.fromkeys(SITES, str(file()))


methods = {"FedAvg": job, "clustered": clustered, "personalised": tuned}

if __name__ == "__main__":
    study = fd.compare(
        methods, sites=sites(), seeds=range(5), references=["alone", "pooled", "unseen-site"], metric="rmse"
    )
    print(study.table())
    print(study.by_site())
    study.plot("rmse", path=Path(__file__).with_name("study.svg"))
