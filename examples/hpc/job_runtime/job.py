"""Teams that share a cluster, one for each protocol, learn how long a job will run: a small network in numpy.

`foedus compare` on this file compares the methods below; `foedus run` simulates the first.
"""

from pathlib import Path

import numpy as np
from cluster import CLASSES, FEATURES, PROTOCOLS, examples, file, table

import foedus as fd
from foedus.numpy import NumpyLearner


def load(site):
    """The protocol's own jobs: a third of each class to test with. Nothing is chosen on valid."""
    frame = table(str(site.data))
    frame = frame[frame["protocol"] == site.name]
    if frame.empty:
        raise fd.FoedusError(f"{site.name}: {site.data} has no job of this protocol; name a site by it, as in A")
    x, y = examples(frame)
    random = fd.key(int(site.key.names[0]), site.name, "split").numpy()
    order = random.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    test = np.zeros(len(y), bool)
    test[order[int(random.integers(3)) :: 3]] = True
    return fd.Split(train=(x[~test], y[~test]), valid=(x[~test], y[~test]), test=(x[test], y[test]))


def model(random, hidden=24):
    """The model all begin with: a trunk, and a head that reads it beside the features themselves."""
    return {
        "trunk.w": 0.3 * random.normal(size=(FEATURES, hidden)),
        "trunk.b": np.zeros(hidden),
        "head.w": np.zeros((hidden + FEATURES, len(CLASSES))),
        "head.b": np.zeros(len(CLASSES)),
    }


def read(p, x):
    """What the head reads, and its logits."""
    found = np.concatenate([np.tanh(x @ p["trunk.w"] + p["trunk.b"]), x], axis=1)
    return found, found @ p["head.w"] + p["head.b"]


def gradient(p, x, y, l2=0.003):
    """Losses, one a job, and the gradients of their mean with a little L2."""
    found, z = read(p, x)
    z -= z.max(axis=1, keepdims=True)
    logs = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    error = (np.exp(logs) - np.eye(len(CLASSES))[y]) / len(y)
    hidden = found[:, : len(p["trunk.b"])]
    below = (error @ p["head.w"].T)[:, : len(p["trunk.b"])] * (1 - hidden**2)
    grads = {"trunk.w": x.T @ below + l2 * p["trunk.w"], "trunk.b": below.sum(axis=0)}
    grads |= {"head.w": found.T @ error + l2 * p["head.w"], "head.b": error.sum(axis=0)}
    return -logs[np.arange(len(y)), y], grads


def job(algorithm=None, lr=0.5, rounds=60):
    """Twenty steps over all jobs of a protocol a round."""
    learner = NumpyLearner(
        model, gradient, lambda p, x: read(p, x)[1], lr=lr, epochs=20, batch_size=None, metrics=["accuracy"]
    )
    return fd.Job(algorithm or fd.fedavg(), learner, load, rounds=rounds, evaluate=rounds)


def tuned(lr=0.5, rounds=60, tuning=30):
    """The federated model, trained on at home."""
    return job(fd.fine_tuned(after=rounds), lr=lr, rounds=rounds + tuning)


def heads(lr=0.5, rounds=60):
    """FedRep: one trunk for all, a head of its own for each protocol."""
    return job(fd.fedrep(["head.*"]), lr=lr, rounds=rounds)


def sites():
    """protocol -> file, where no other sites are given."""
    return dict.fromkeys(PROTOCOLS, str(file()))


methods = {"FedAvg": job, "personalised": tuned, "own heads": heads}

if __name__ == "__main__":
    references = ["alone", "pooled", "unseen-site"]
    study = fd.compare(methods, sites=sites(), seeds=range(5, 15), references=references, metric="accuracy")
    print(study.by_site())
    for method in methods:
        for site in (*study.sites, "mean"):
            mean, half = study.difference(method, "alone", of=site)
            print(f"{method} less alone, {site}: {mean:+.3f} ± {half:.3f}")
    study.plot("accuracy", path=Path(__file__).with_name("study.svg"))
