"""Four organisations learn together to find intrusions: an autoencoder in numpy, and boosted trees by LightGBM.

`foedus compare` on this file compares the methods below; `foedus run` simulates the first.
"""

from itertools import product
from pathlib import Path

import numpy as np
from flows import FEATURES, SITES, load, seen

import foedus as fd
from foedus.numpy import NumpyLearner


def model(random, hidden=4):
    """The first autoencoder: what is usual has to pass through four numbers."""
    n = len(FEATURES)
    return {
        "in.w": random.normal(size=(n, hidden)) / np.sqrt(n),
        "in.b": np.zeros(hidden),
        "out.w": random.normal(size=(hidden, n)) / np.sqrt(hidden),
        "out.b": np.zeros(n),
    }


def passed(p, x):
    """The four numbers, and what is wrong with that which is made of them."""
    found = np.tanh(x @ p["in.w"] + p["in.b"])
    return found, found @ p["out.w"] + p["out.b"] - x


def gradient(p, x, y):
    """Squared errors, one a flow, and the gradients of their mean over the flows that are no known attack."""
    found, error = passed(p, x)
    kept = (y == 0)[:, None] / max(int((y == 0).sum()), 1)
    slope = 2 * kept * error
    below = (slope @ p["out.w"].T) * (1 - found**2)
    grads = {"in.w": x.T @ below, "in.b": below.sum(axis=0), "out.w": found.T @ slope, "out.b": slope.sum(axis=0)}
    return (error**2).sum(axis=1), grads


def surprise(p, x):
    """How badly a flow is made again: above 0 where it is an alert."""
    return np.log((passed(p, x)[1] ** 2).sum(axis=1) + 1e-12)


def job(lr=0.1, rounds=60):
    """FedAvg of the autoencoder: twenty steps over an organisation's flows a round. Known attacks are left out."""
    learner = NumpyLearner(
        model, gradient, surprise, lr=lr, epochs=20, batch_size=None, metrics=["auc", fd.recall_at(alert_rate=0.05)]
    )
    return fd.Job(fd.fedavg(), learner, load, rounds=rounds, evaluate=rounds)


def tuned(rounds=60, tuning=10):
    """The federated autoencoder, trained on at home."""
    return job(rounds=rounds + tuning).replace(algorithm=fd.fine_tuned(after=rounds))


def trees(rounds=15):
    """Boosted trees on labelled flows: each round every organisation adds two small ones to the booster of all."""
    from foedus.lightgbm import LightGBMLearner

    params = {"objective": "binary", "num_leaves": 6, "learning_rate": 0.2, "min_data_in_leaf": 10}
    learner = LightGBMLearner(
        params, features=FEATURES, classes=[0, 1], trees=2, metrics=["auc", fd.recall_at(alert_rate=0.05)]
    )
    return fd.Job(fd.union(learner), learner, load, rounds=rounds, evaluate=rounds)


def trained(site, names, seed):
    """Test AUC at a site of boosted trees that grew in one place, on the flows of the organisations of these names."""
    theirs = [seen(name, seed)["train"] for name in names]
    train = tuple(np.concatenate(column) for column in zip(*theirs, strict=True))
    data = fd.Split(**{**seen(site, seed), "train": train})
    return trees().replace(data=None).run({site: data}, seed=seed, backend="local").metrics["test_auc"]


sites = dict.fromkeys(SITES, 0)  # an organisation's name says what its flows are

methods = {"autoencoder": job, "tuned autoencoder": tuned, "boosted trees": trees}

if __name__ == "__main__":
    study = fd.compare(methods, sites=sites, seeds=range(5), metric="auc")
    print(study.by_site())
    for method, other in (*product(("autoencoder", "tuned autoencoder"), ("alone", "pooled")), ("pooled", "alone")):
        for site in (*SITES, "mean"):
            mean, half = study.difference(method, other, of=site)
            print(f"{method} less {other}, {site}: {mean:+.3f} ± {half:.3f}")
    for word in ("own", "pooled"):
        whose = [[site] if word == "own" else SITES for site in SITES]
        found = np.array([[trained(*each, seed) for seed in range(5)] for each in zip(SITES, whose, strict=True)])
        for site, row in zip((*SITES, "mean"), (*found, found.mean(axis=0)), strict=True):
            print(f"{word} trees, {site}: {row.mean():.3f} ({row.min():.3f} to {row.max():.3f})")
    study.plot("auc", path=Path(__file__).with_name("study.svg"))
