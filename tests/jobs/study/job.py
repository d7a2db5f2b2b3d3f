"""A model of one number, w, that each round of training raises by `lr`: all that a study says of it is known by hand.
With `noise` each seed is a little different; `slow` (or $SLOW) is a time that a test needs to strike."""

import os
import time

import numpy as np

import foedus as fd
from foedus.numpy import NumpyLearner


def split(train, valid, test):
    """A site whose targets are these numbers."""
    return fd.Split(*((np.zeros((1, 1)), np.array([float(target)])) for target in (train, valid, test)))


def sites(tested=10):
    return {"north": split(0, 3, tested), "south": split(0, 5, tested)}


def fit(lr, noise, slow, params, split, ctx):
    time.sleep(slow or float(os.environ.get("SLOW", "0")))
    params["w"] += lr * (1 + noise * ctx.generator.standard_normal())


def job(algorithm=None, lr=1.0, rounds=4, noise=0.0, slow=0.0, best="rmse"):
    def train(params, split, ctx):
        fit(lr, noise, slow, params, split, ctx)

    learner = NumpyLearner(
        {"w": np.zeros(1)}, train=train, predict=lambda p, x: x @ np.zeros(1) + p["w"], metrics=["rmse"]
    )
    return fd.Job(algorithm or fd.fedavg(), learner, rounds=rounds, best=best or None, privacy="none")


def half(lr=1.0, noise=0.0, slow=0.0):
    return job(fd.fedavg(rate=0.5), lr, noise=noise, slow=slow)


methods = {"whole": job, "half": half}
