"""A small federated linear regression whose loop counts its calls in a file beside the data, and may be slow."""

import time

import numpy as np

import foedus as fd
from foedus.numpy import NumpyLearner


class Table:
    """A site's rows, which know the folder they came from."""

    def __init__(self, folder, rows):
        self.folder, self.rows = folder, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i, :-1], self.rows[i, -1]

    @property
    def x(self):
        return self.rows[:, :-1]

    @property
    def y(self):
        return self.rows[:, -1]


def load(site):
    rows = np.loadtxt(site.data / "rows.csv", delimiter=",")
    return fd.Split(
        train=Table(site.data, rows[:40]), valid=Table(site.data, rows[40:50]), test=Table(site.data, rows[50:])
    )


def fit(params, split, ctx):
    with open(split.train.folder / "calls", "a") as calls:
        calls.write("begin\n")
    (slow,) = [float(line) for line in (split.train.folder / "slow").read_text().split()] or [0.0]
    time.sleep(slow * ctx.generator.random())
    for i in ctx.generator.permutation(len(split.train)):
        x, y = split.train[i]
        error = x @ params["w"] + params["b"] - y
        grads = ctx.correct({"w": 2 * error * x, "b": 2 * error}, params, lr=0.01)
        params["w"] -= 0.01 * grads["w"]
        params["b"] -= 0.01 * grads["b"]
    with open(split.train.folder / "calls", "a") as calls:
        calls.write("end\n")
    return {"loss": float(error**2)}


def gradient(p, x, y):
    error = x @ p["w"] + p["b"] - y
    return error**2, {"w": 2 * x.T @ error / len(x), "b": 2 * error.mean()}


def job(rounds=3, min_sites=1, quorum=0, late="drop"):
    model = {"w": np.zeros(4, np.float32), "b": np.zeros((), np.float32)}
    learner = NumpyLearner(model, gradient, lambda p, x: x @ p["w"] + p["b"], train=fit, metrics=["rmse"])
    return fd.Job(fd.fedprox(0.01), learner, load, rounds=rounds, min_sites=min_sites, quorum=quorum or None, late=late)
