"""Forty hospitals that have seen 0 to 3 cases of a disease each learn to tell it together: logistic regression.

`foedus compare` on this file compares the methods below; `foedus run` simulates the first.
"""

from functools import partial
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


sites = dict.fromkeys(HOSPITALS, 0)  # a hospital's name says who its patients are

# sealed sums tell nothing of one hospital, so that a comparison by hospital needs them open
methods = {"FedAvg": partial(job, privacy="none")}

if __name__ == "__main__":
    references = ["alone", "pooled", "unseen-site"]
    study = fd.compare(methods, sites=sites, seeds=range(5), references=references, metric="balanced_accuracy")
    print(study.table())
    print("AUC", {name: study.interval(name, metric="auc") for name in study.by_method})
    for cases in range(4):
        rows = np.array([study.values("alone", name) for name in HOSPITALS if CASES[name] == cases])
        gains = [study.difference("FedAvg", "alone", of=name) for name in HOSPITALS if CASES[name] == cases]
        helped = sum(mean > half for mean, half in gains)
        print(f"alone, {cases} cases: {rows.mean():.3f} ({rows.min():.3f} to {rows.max():.3f}); helps {helped}")
    for count in (4, 8, 16, 24, 40):
        few = dict.fromkeys(HOSPITALS[:count], 0)
        found = [job().run(few, seed=seed, backend="local").metrics["test_balanced_accuracy"] for seed in range(5)]
        total = sum(CASES[name] for name in few)
        print(f"{count} hospitals, {total} cases: {np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})")
    study.plot("balanced_accuracy", path=Path(__file__).with_name("study.svg"))
