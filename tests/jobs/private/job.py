"""Least squares by DP-SGD; each site notes what every training of each round came to."""

import numpy as np

import foedus as fd
from foedus.numpy import NumpyLearner


def load(site):
    table = np.loadtxt(site.data / "rows.csv", delimiter=",")
    return Noting.at(site.data, fd.Split(train=(table[:, :4], table[:, 4])))


def gradient(p, x, y):
    error = x @ p["w"] - y
    return error**2, {"w": 2 * x.T @ error / len(x)}


class Noting(NumpyLearner):
    place = None

    @classmethod
    def at(cls, place, split):
        cls.place = place
        return split

    def train(self, params, split, key, correct):
        fit = super().train(params, split, key, correct)
        with (self.place / "trained").open("a") as file:
            file.write(f"{key.names[1]} {fd.digest(fit.params)}\n")
        return fit


def job(rounds=3):
    learner = Noting({"w": np.zeros(4)}, gradient, lambda p, x: x @ p["w"], lr=0.05, batch_size=10)
    return fd.Job(fd.fedavg(), learner, load, rounds=int(rounds), evaluate=0, privacy=fd.dp_sgd(1.0, 1.0))
