"""Teams that share a cluster, one for each protocol, learn how long a job will run: a small network in numpy.

`foedus compare` on this file compares the methods below; `foedus run` simulates the first.
"""

import itertools
from pathlib import Path

import numpy as np
from cluster import CLASSES, FEATURES, PROTOCOLS, examples, file, table

import foedus as fd
from foedus.numpy import NumpyLearner

FOLDS = 3  # in which a protocol's jobs choose who answers


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


def pairs(random):
    """A network of the protocol's own and one of everybody's: of all jobs, and of those outside each third of them."""
    start = model(random)
    networks = itertools.product(("own", "shared"), range(FOLDS + 1), start)
    return {"own.gain": np.zeros(1)} | {f"{whose}.{fold}.{name}": start[name] for whose, fold, name in networks}


def network(p, whose, fold=FOLDS):
    """One of the networks: the one that no job in that fold teaches, or the one of all jobs."""
    prefix = f"{whose}.{fold}."
    return {name.removeprefix(prefix): x for name, x in p.items() if name.startswith(prefix)}


def gradients(p, x, y):
    """Every network learns by itself. What both together gain on jobs that taught neither is followed in `own.gain`."""
    fold, losses, gains, found = np.arange(len(y)) % FOLDS, {}, np.zeros(len(y)), {}
    for whose, left in itertools.product(("own", "shared"), range(FOLDS + 1)):
        taught = fold != left
        losses[whose], grads = gradient(network(p, whose, left), x[taught], y[taught])
        found |= {f"{whose}.{left}.{name}": g for name, g in grads.items()}
    for left in range(FOLDS):
        rows = np.flatnonzero(fold == left)
        own, both = answers(p, x[rows], left)
        gains[rows] = (both - own)[np.arange(len(rows)), y[rows]]
    found["own.gain"] = p["own.gain"] - gains.mean()  # a step goes towards the gain of now
    return (losses["own"] + losses["shared"]) / 2, found


def answers(p, x, fold=FOLDS):
    """Logarithms of the own network's probabilities, and of the mean of both networks'."""
    own, shared = (logits(network(p, whose, fold), x) for whose in ("own", "shared"))
    own, shared = (z - np.logaddexp.reduce(z, axis=1, keepdims=True) for z in (own, shared))
    return own, np.logaddexp(own, shared) - np.log(2)


def better(p, x):
    """The own network's answer, or that of both where they gained by it at home."""
    own, both = answers(p, x)
    return both if p["own.gain"][0] > 0 else own


def job(algorithm=None, lr=0.5, rounds=100, parts=(model, gradient, logits)):
    """Twenty steps over all jobs of a protocol a round."""
    learner = NumpyLearner(*parts, lr=lr, epochs=20, batch_size=None, metrics=["accuracy"])
    return fd.Job(algorithm or fd.fedavg(), learner, load, rounds=rounds, evaluate=rounds)


def tuned(lr=0.5, rounds=60, tuning=40):
    """The federated model, trained on at home."""
    return job(fd.fine_tuned(after=rounds), lr=lr, rounds=rounds + tuning)


def chosen(lr=0.5, rounds=60, tuning=40):
    """A network of its own beside the federated one, which is trained on at home: both answer where that is better."""
    algorithm = fd.fine_tuned(fd.fedper(["own.*"]), after=rounds)
    return job(algorithm, lr=lr, rounds=rounds + tuning, parts=(pairs, gradients, better))


def heads(lr=0.5, rounds=100):
    """FedRep: one trunk for all, a head of its own for each protocol."""
    return job(fd.fedrep(["head.*"]), lr=lr, rounds=rounds)


def sites():
    """protocol -> file, where no other sites are given."""
    return dict.fromkeys(PROTOCOLS, str(file()))


methods = {"FedAvg": job, "personalised": chosen, "fine-tuned": tuned, "own heads": heads}

if __name__ == "__main__":
    references = ["alone", "pooled", "unseen-site"]
    study = fd.compare(methods, sites=sites(), seeds=range(60, 80), references=references, metric="accuracy")
    print(study.by_site())
    for method in methods:
        for site in (*study.sites, "mean"):
            mean, half = study.difference(method, "alone", of=site)
            print(f"{method} less alone, {site}: {mean:+.3f} ± {half:.3f}")
    study.plot("accuracy", path=Path(__file__).with_name("study.svg"))
