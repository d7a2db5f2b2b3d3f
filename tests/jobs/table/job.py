"""The toy job with a data contract: rows.csv has four columns of numbers and the target."""

import numpy as np

import foedus as fd
from foedus.numpy import NumpyLearner


def load(site):
    rows = np.loadtxt(site.data, delimiter=",")
    return fd.Split(train=(rows[:40, :-1], rows[:40, -1]))


def gradient(p, x, y):
    error = x @ p["w"] - y
    return error**2, {"w": 2 * x.T @ error / len(x)}


learner = NumpyLearner({"w": np.zeros(4)}, gradient, lambda p, x: x @ p["w"], lr=0.01)
job = fd.Job(fd.fedavg(), learner, load, rounds=2, datasets=["rows"], schema="rows.toml", privacy="none")
