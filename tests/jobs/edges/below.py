"""The Job of the federation that an edge stands for: a linear regression."""

import numpy as np

import foedus as fd
from foedus.numpy import NumpyLearner


def gradient(p, x, y):
    error = x @ p["w"] + p["b"] - y
    return error**2, {"w": 2 * x.T @ error / len(x), "b": 2 * error.mean()}


def load(site):
    rows = np.loadtxt(site.data / "rows.csv", delimiter=",")
    x, y = rows[:, :-1], rows[:, -1]
    return fd.Split(train=(x[:40], y[:40]), valid=(x[40:50], y[40:50]), test=(x[50:], y[50:]))


model = {"w": np.zeros(4, np.float32), "b": np.zeros((), np.float32)}
learner = NumpyLearner(model, gradient, lambda p, x: x @ p["w"] + p["b"], lr=0.05, batch_size=8, metrics=["rmse"])
job = fd.Job(fd.fedprox(0.01), learner, load, rounds=1, privacy="none")
