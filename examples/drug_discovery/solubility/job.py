"""Six laboratories, three that measure solubility and three hydration, learn one trunk and keep their heads: numpy.

`foedus compare` on this file compares the methods below; `foedus run` simulates the first.
"""

from pathlib import Path

import numpy as np
from molecules import PRINTS, SCALES, folder, measured

import foedus as fd
from foedus.numpy import NumpyLearner
from foedus.study.student import interval

EACH = 3  # laboratories, of which each has a third of the property's molecules
LABORATORIES = tuple(f"{what}{i + 1}" for what in SCALES for i in range(EACH))


def load(site):
    """The laboratory's own molecules, drawn by key; a third of these to test with. Nothing is chosen on valid."""
    if site.name not in LABORATORIES:
        raise fd.FoedusError(f"{site.name} is none of the laboratories: take {', '.join(LABORATORIES)}")
    what, number = site.name[:-1], int(site.name[-1]) - 1
    x, y = measured(str(site.data), what)
    own = fd.key(int(site.key.names[0]), what, "molecules").numpy().permutation(len(x))[number::EACH]
    test, train = own[::3], np.setdiff1d(own, own[::3])
    return fd.Split(train=(x[train], y[train]), valid=(x[train], y[train]), test=(x[test], y[test]))


def model(random, hidden=16):
    """The model all begin with."""
    trunk = random.normal(size=(PRINTS, hidden)) / np.sqrt(PRINTS)
    head = random.normal(size=hidden) / np.sqrt(hidden)
    return {"trunk.w": trunk, "trunk.b": np.zeros(hidden), "head.w": head, "head.b": np.float64(0)}


def read(p, x):
    """What the trunk makes of fingerprints, and its head's answer."""
    found = np.tanh(x @ p["trunk.w"] + p["trunk.b"])
    return found, found @ p["head.w"] + p["head.b"]


def gradient(p, x, y, l2=0.003):
    """Squared errors, one a molecule, and the gradients of half their mean with a little L2."""
    found, answer = read(p, x)
    error = (answer - y) / len(y)
    below = np.outer(error, p["head.w"]) * (1 - found**2)
    grads = {"trunk.w": x.T @ below + l2 * p["trunk.w"], "trunk.b": below.sum(axis=0)}
    return (answer - y) ** 2, grads | {"head.w": found.T @ error + l2 * p["head.w"], "head.b": error.sum()}


def job(personal=("head.*",), lr=0.1, rounds=60):
    """FedPer: the trunk is everybody's, the head the laboratory's own. Ten steps over all its molecules a round."""
    learner = NumpyLearner(
        model, gradient, lambda p, x: read(p, x)[1], lr=lr, epochs=10, batch_size=None, metrics=["rmse"]
    )
    algorithm = fd.fedper(list(personal)) if personal else fd.fedavg()
    return fd.Job(algorithm, learner, load, rounds=rounds, evaluate=rounds)


def rep(lr=0.1, rounds=60):
    """FedRep: the head is trained first, then the trunk."""
    return job(lr=lr, rounds=rounds).replace(algorithm=fd.fedrep(["head.*"]))


def one(lr=0.1, rounds=60):
    """FedAvg: one head for both properties."""
    return job((), lr=lr, rounds=rounds)


def sites():
    """laboratory -> folder, where no other sites are given."""
    return dict.fromkeys(LABORATORIES, str(folder()))


methods = {"shared trunk": job, "FedRep": rep, "FedAvg": one}


def taken_home(site, seed, data):
    """Test RMSE of a laboratory that took no part, and trains on at home from the trunk of the others."""
    others = job().run({name: x for name, x in data.items() if name != site}, seed=seed, backend="local")
    own = job().replace(algorithm=fd.fine_tuned(), start=others.params)
    return own.run({site: data[site]}, seed=seed, backend="local").metrics["personal_test_rmse"]


if __name__ == "__main__":
    study = fd.compare(methods, sites=sites(), seeds=range(10), references=["alone", "pooled"], metric="rmse")
    print(study.by_site())
    for method in methods:
        for site in (*study.sites, "mean"):
            mean, half = study.difference(method, "alone", of=site)
            print(f"{method} less alone, {site}: {mean:+.3f} ± {half:.3f}")
    taken = np.array([[taken_home(site, seed, sites()) for seed in range(10)] for site in study.sites])
    for word, less in (
        ("took no part", 0),
        *((f"took no part less {name}", name) for name in ("alone", "shared trunk")),
    ):
        found = taken - np.array([study.values(less, site) if less else [0] * 10 for site in study.sites])
        for site, row in zip((*study.sites, "mean"), (*found, found.mean(axis=0)), strict=True):
            print(f"{word}, {site}: {'{:+.3f} ± {:.3f}'.format(*interval(row.tolist()))}")
    study.plot("rmse", path=Path(__file__).with_name("study.svg"))
