"""Sites with models of their own, over the rows of the toy job: half the squared distance of w to each row."""

import numpy as np

import foedus as fd
from foedus.numpy import NumpyLearner


def gradient(p, x, y):
    dw, db = p["w"] - x, p["b"] - y
    return (np.square(dw).sum(1) + np.square(db)) / 2, {"w": dw.mean(0), "b": db.mean(0)}


def load(site):
    rows = np.loadtxt(site.data / "rows.csv", delimiter=",", dtype=np.float32)
    return fd.Split(train=(rows[:40, :-1], rows[:40, -1]), valid=(rows[40:50, :-1], rows[40:50, -1]),
                    test=(rows[50:, :-1], rows[50:, -1]))  # fmt: skip


def job(method="fedper", evaluate=1, cohort=0):
    algorithm = fd.fedper(personal=["b"]) if method == "fedper" else getattr(fd, method)()
    model = {"w": np.zeros(4, np.float32), "b": np.float32(0)}
    learner = NumpyLearner(model, gradient, lr=0.25)
    rules = {"rounds": 3, "evaluate": int(evaluate), "cohort": int(cohort) or None, "privacy": "none"}
    return fd.Job(algorithm, learner, load, **rules)
