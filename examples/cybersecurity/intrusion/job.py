"""Four organisations learn together to find intrusions: an autoencoder in numpy, and boosted trees by LightGBM.

`foedus compare` on this file compares the methods below; `foedus run` simulates the first.
"""

from pathlib import Path

import numpy as np
from flows import FEATURES, SITES, load

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


sites = dict.fromkeys(SITES, 0)  # an organisation's name says what its flows are

methods = {"autoencoder": job, "tuned autoencoder": tuned, "boosted trees": trees}

if __name__ == "__main__":
    study = fd.compare(methods, sites=sites, seeds=range(5), references=["alone", "unseen-site"], metric="auc")
    print(study.by_site())
    for name in SITES:
        for method in ("autoencoder", "tuned autoencoder"):
            mean, half = study.difference(method, "alone", of=name)
            print(f"{method} less alone, {name}: {mean:+.3f} ± {half:.3f}")
        own = [trees().run({name: 0}, seed=seed, backend="local").metrics["test_auc"] for seed in range(5)]
        print(f"boosted trees alone, {name}: {np.mean(own):.3f} ({min(own):.3f} to {max(own):.3f})")
    study.plot("auc", path=Path(__file__).with_name("study.svg"))
