"""Laboratories with an assay each learn one trunk from compounds' fingerprints, and keep the heads: numpy.

`foedus compare` on this file compares the methods below; `foedus run` simulates the first.
"""

from pathlib import Path

import numpy as np
from compounds import PRINTS, TASKS, examples, file, table

import foedus as fd
from foedus.numpy import NumpyLearner


def load(site):
    """The laboratory's half of all compounds, drawn by key; a third of these, of each class, to test with."""
    if site.name not in TASKS:
        raise fd.FoedusError(f"{site.name} is none of the assays: name a site by its assay, as in {TASKS[1]}")
    seed = int(site.key.names[0])
    frame = table(str(site.data))
    own = fd.key(seed, site.name, "compounds").numpy().permutation(len(frame))[: len(frame) // 2]
    x, y = examples(frame.iloc[own], site.name)
    test = np.zeros(len(y), bool)
    for label in (0, 1):
        test[np.flatnonzero(y == label)[::3]] = True  # the order is drawn already
    return fd.Split(train=(x[~test], y[~test]), valid=(x[~test], y[~test]), test=(x[test], y[test]))


def model(random, hidden=16):
    """The model all begin with."""
    trunk = random.normal(size=(len(PRINTS), hidden)) / np.sqrt(len(PRINTS))
    head = random.normal(size=hidden) / np.sqrt(hidden)
    return {"trunk.w": trunk, "trunk.b": np.zeros(hidden), "head.w": head, "head.b": np.float64(0)}


def read(p, x):
    """What the trunk makes of fingerprints, and its head's logits."""
    found = np.tanh(x @ p["trunk.w"] + p["trunk.b"])
    return found, found @ p["head.w"] + p["head.b"]


def gradient(p, x, y, l2=0.003):
    """Losses, one a compound, and the gradients of their mean with a little L2."""
    found, z = read(p, x)
    error = (1 / (1 + np.exp(-z)) - y) / len(y)
    below = np.outer(error, p["head.w"]) * (1 - found**2)
    grads = {"trunk.w": x.T @ below + l2 * p["trunk.w"], "trunk.b": below.sum(axis=0)}
    return np.logaddexp(0, z) - y * z, grads | {"head.w": found.T @ error + l2 * p["head.w"], "head.b": error.sum()}


def job(personal=("head.*",), lr=0.3, rounds=60):
    """FedPer: the trunk is everybody's, the head the laboratory's own. Ten steps over all its compounds a round."""
    learner = NumpyLearner(
        model, gradient, lambda p, x: read(p, x)[1], lr=lr, epochs=10, batch_size=None, metrics=["auc"]
    )
    algorithm = fd.fedper(list(personal)) if personal else fd.fedavg()
    return fd.Job(algorithm, learner, load, rounds=rounds, evaluate=rounds)


def rep(lr=0.3, rounds=60):
    """FedRep: the head is trained first, then the trunk."""
    return job(lr=lr, rounds=rounds).replace(algorithm=fd.fedrep(["head.*"]))


def one(lr=0.3, rounds=60):
    """FedAvg: one head for all assays."""
    return job((), lr=lr, rounds=rounds)


def sites():
    """assay -> file, where no other sites are given."""
    return dict.fromkeys(TASKS, str(file()))


def taken_home(site, seed, data):
    """Test AUC of a laboratory that took no part, and trains on at home from the trunk of the others."""
    others = job().run({name: x for name, x in data.items() if name != site}, seed=seed, backend="local")
    own = job().replace(algorithm=fd.fine_tuned(), start=others.params)
    return own.run({site: data[site]}, seed=seed, backend="local").metrics["personal_test_auc"]


methods = {"shared trunk": job, "FedRep": rep, "FedAvg": one}

if __name__ == "__main__":
    study = fd.compare(methods, sites=sites(), seeds=range(10), references=["alone", "pooled"], metric="auc")
    print(study.by_site())
    for method in methods:
        for site in (*study.sites, "mean"):
            mean, half = study.difference(method, "alone", of=site)
            print(f"{method} less alone, {site}: {mean:+.3f} ± {half:.3f}")
    taken = {site: [taken_home(site, seed, sites()) for seed in range(10)] for site in study.sites}
    gains = np.array([np.subtract(taken[site], study.values("alone", site)) for site in study.sites])
    for site, found, gain in zip(study.sites, taken.values(), gains, strict=True):
        print(f"{site}: took no part {np.mean(found):.3f}, less alone {gain.mean():+.3f}")
    print(f"mean: took no part {np.mean([*taken.values()]):.3f}, less alone by division {gains.mean(axis=0).round(3)}")
    study.plot("auc", path=Path(__file__).with_name("study.svg"))
