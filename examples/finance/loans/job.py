"""Lenders of eight states learn together which loans go bad: logistic regression in plain numpy, and boosted trees.

`foedus compare examples/finance/loans/job.py` compares them; `foedus run` on the same file simulates the first.
"""

import numpy as np
from tables import NAMES, examples, tables

import foedus as fd
from foedus.numpy import NumpyLearner


def load(site):
    """The state's own loans: two thirds of the good and of the bad to train with. Nothing is chosen on valid."""
    x, y = examples(site.data, site.name)
    random = fd.key(int(site.key.names[0]), site.name, "split").numpy()
    train, test = [], []
    for label in (0, 1):
        order = random.permutation(np.flatnonzero(y == label))
        cut = round(2 * len(order) / 3)
        train, test = [*train, *order[:cut]], [*test, *order[cut:]]
    return fd.Split(train=(x[train], y[train]), valid=(x[train], y[train]), test=(x[test], y[test]))


def gradient(p, x, y, l2=0.01):
    """Losses, one a loan, and the gradients of their mean with a little L2."""
    z = x @ p["w"] + p["b"]
    error = 1 / (1 + np.exp(-z)) - y
    return np.logaddexp(0, z) - y * z, {"w": x.T @ error / len(x) + l2 * p["w"], "b": error.mean()}


def job(lr=1.0, rounds=150):
    """One step over all loans of a state a round, so that the mean of the states' models is pooled gradient descent."""
    model = {"w": np.zeros(len(NAMES)), "b": np.float64(-2.8)}  # about one bad loan in twenty
    learner = NumpyLearner(
        model, gradient, lambda p, x: x @ p["w"] + p["b"], lr=lr, batch_size=None, metrics=["auc", "pr_auc", "ks"]
    )
    return fd.Job(fd.fedavg(), learner, load, rounds=rounds, evaluate=rounds)


def tuned(rounds=150, tuning=10):
    """The federated model, trained on at home."""
    return job(rounds=rounds + tuning).replace(algorithm=fd.fine_tuned(after=rounds))


def trees(rounds=15):
    """Boosted trees: each round every state adds two small ones to the booster that all have."""
    from foedus.lightgbm import LightGBMLearner

    params = {"objective": "binary", "num_leaves": 4, "learning_rate": 0.1, "min_data_in_leaf": 20}
    learner = LightGBMLearner(params, features=NAMES, classes=[0, 1], trees=2, metrics=["auc", "pr_auc", "ks"])
    return fd.Job(fd.union(learner), learner, load, rounds=rounds, evaluate=rounds)


def sites():
    """state -> file, where no other sites are given."""
    return tables()


methods = {"FedAvg": job, "personalised": tuned, "boosted trees": trees}
