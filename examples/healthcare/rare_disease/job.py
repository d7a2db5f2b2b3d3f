"""Forty hospitals that have seen 0 to 3 cases of a disease each learn to tell it together: logistic regression.

`foedus compare` on this file compares the methods below; `foedus run` simulates the first.
"""

from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from registry import CASES, HOSPITALS, MIDDLES, load

import foedus as fd
from foedus.numpy import NumpyLearner


def gradient(p, x, y, l2=0.01):
    """Losses, one a patient, and the gradients of their mean with a little L2."""
    z = x @ p["w"] + p["b"]
    error = 1 / (1 + np.exp(-z)) - y
    return np.logaddexp(0, z) - y * z, {"w": x.T @ error / len(x) + l2 * p["w"], "b": error.mean()}


def job(lr=0.3, rounds=100, privacy="secagg"):
    """One step over all patients of a hospital a round, under secure aggregation: an update may tell of one patient."""
    model = {"w": np.zeros(len(MIDDLES)), "b": np.float64(-1.4)}  # about one patient in five
    learner = NumpyLearner(
        model, gradient, lambda p, x: x @ p["w"] + p["b"], lr=lr, batch_size=None, metrics=["balanced_accuracy", "auc"]
    )
    return fd.Job(fd.fedavg(), learner, load, rounds=rounds, evaluate=rounds, privacy=privacy)


def tuned(rounds=100, tuning=10, privacy="secagg"):
    """The federated model, trained on at home."""
    return job(rounds=rounds + tuning, privacy=privacy).replace(algorithm=fd.fine_tuned(after=rounds))


sites = dict.fromkeys(HOSPITALS, 0)  # a hospital's name says who its patients are

# sealed sums tell nothing of one hospital, so that a comparison by hospital needs them open
methods = {"FedAvg": partial(job, privacy="none"), "personalised": partial(tuned, privacy="none")}

SIGNS = {"helps": 1, "harms": -1}

if __name__ == "__main__":
    study = fd.compare(methods, sites=sites, seeds=range(5), metric="balanced_accuracy")
    print(study.table())
    print("AUC", {name: study.interval(name, metric="auc") for name in study.by_method})
    for method, other in (*product(methods, ("alone", "pooled", "unseen-site")), ("personalised", "FedAvg")):
        print(f"{method} less {other}, mean: {'{:+.3f} ± {:.3f}'.format(*study.difference(method, other))}")
    for cases, method in product(range(4), study.by_method):
        some = [name for name in HOSPITALS if CASES[name] == cases]
        found = np.array([study.values(method, name) for name in some])
        gains = {name: study.difference(method, "alone", of=name) for name in some}
        means = [mean for mean, _ in gains.values()]
        told = {word: [name for name in some if sign * gains[name][0] > gains[name][1]] for word, sign in SIGNS.items()}
        print(f"{cases} cases, {method}: {found.mean():.3f} ({found.min():.3f} to {found.max():.3f})", end=", ")
        print(f"less alone {min(means):+.3f} to {max(means):+.3f}, {told}")
    for count in (4, 8, 16, 24, 40):
        few = dict.fromkeys(HOSPITALS[:count], 0)
        found = [job().run(few, seed=seed, backend="local").metrics["test_balanced_accuracy"] for seed in range(5)]
        total = sum(CASES[name] for name in few)
        print(f"{count} hospitals, {total} cases: {np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})")
    study.plot("balanced_accuracy", path=Path(__file__).with_name("study.svg"))
