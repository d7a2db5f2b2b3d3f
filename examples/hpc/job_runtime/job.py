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


def logits(p, x):
    return read(p, x)[1]


def pair(random):
    """Two such models that begin alike: one is a protocol's own, one is everybody's."""
    return {f"{whose}.{name}": x for name, x in model(random).items() for whose in ("own", "shared")}


def half(p, whose):
    return {name.removeprefix(f"{whose}."): x for name, x in p.items() if name.startswith(f"{whose}.")}


def gradients(p, x, y):
    """Each of the two learns by itself. The losses are their means."""
    losses, found = {}, {}
    for whose in ("own", "shared"):
        losses[whose], grads = gradient(half(p, whose), x, y)
        found |= {f"{whose}.{name}": g for name, g in grads.items()}
    return (losses["own"] + losses["shared"]) / 2, found


def together(p, x):
    """The logarithm of the mean of the two models' probabilities."""
    own, shared = (logits(half(p, whose), x) for whose in ("own", "shared"))
    own, shared = (z - np.logaddexp.reduce(z, axis=1, keepdims=True) for z in (own, shared))
    return np.logaddexp(own, shared) - np.log(2)


def job(algorithm=None, lr=0.5, rounds=60, parts=(model, gradient, logits)):
    """Twenty steps over all jobs of a protocol a round."""
    learner = NumpyLearner(*parts, lr=lr, epochs=20, batch_size=None, metrics=["accuracy"])
    return fd.Job(algorithm or fd.fedavg(), learner, load, rounds=rounds, evaluate=rounds)


def tuned(lr=0.5, rounds=60, tuning=30):
    """The federated model, trained on at home."""
    return job(fd.fine_tuned(after=rounds), lr=lr, rounds=rounds + tuning)


def both(lr=0.5, rounds=60, tuning=40):
    """A model of its own beside the federated one, which is then trained on at home: they answer together."""
    algorithm = fd.fine_tuned(fd.fedper(["own.*"]), after=rounds)
    return job(algorithm, lr=lr, rounds=rounds + tuning, parts=(pair, gradients, together))


def heads(lr=0.5, rounds=60):
    """FedRep: one trunk for all, a head of its own for each protocol."""
    return job(fd.fedrep(["head.*"]), lr=lr, rounds=rounds)


def sites():
    """protocol -> file, where no other sites are given."""
    return dict.fromkeys(PROTOCOLS, str(file()))


methods = {"FedAvg": job, "personalised": both, "fine-tuned": tuned, "own heads": heads}

if __name__ == "__main__":
    references = ["alone", "pooled", "unseen-site"]
    study = fd.compare(methods, sites=sites(), seeds=range(40, 60), references=references, metric="accuracy")
    print(study.by_site())
    for method in methods:
        for site in (*study.sites, "mean"):
            mean, half = study.difference(method, "alone", of=site)
            print(f"{method} less alone, {site}: {mean:+.3f} ± {half:.3f}")
    study.plot("accuracy", path=Path(__file__).with_name("study.svg"))
