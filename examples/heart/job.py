"""Four hospitals predict heart disease together: logistic regression in plain numpy.

`foedus run examples/heart/job.py` simulates it; `python examples/heart/job.py` compares it with what else one could do.
"""

from pathlib import Path

import numpy as np
from data import examples, rows, split, table, tables

import foedus as fd
from foedus.numpy import NumpyLearner

FEATURES = 14


def load(site):
    """The site's own table, split by the seed."""
    path = table(site.data, site.name)
    return split(*examples(rows(path)), fd.key(int(site.key.names[0]), path.stem, "split").numpy())


def gradient(p, x, y):
    """Losses, one an example, and the gradients of their mean with a little L2."""
    z = x @ p["w"] + p["b"]
    error = 1 / (1 + np.exp(-z)) - y
    losses = np.logaddexp(0, z) - y * z
    return losses, {"w": x.T @ error / len(x) + 0.001 * p["w"], "b": error.mean()}


def job(lr=0.5, rounds=100):
    model = {"w": np.zeros(FEATURES), "b": np.float64(0)}
    learner = NumpyLearner(model, gradient, lambda p, x: x @ p["w"] + p["b"], lr=lr, metrics=["accuracy", "auc"])
    return fd.Job(fd.fedavg(), learner, load, rounds=rounds, evaluate=rounds)


def sites():
    """name -> file, where no other sites are given."""
    return tables()


def tuned(rounds=100, tuning=20):
    """The federated model, trained on at home."""
    made = job(rounds=rounds + tuning)
    return made.replace(algorithm=fd.fine_tuned(after=rounds))


methods = {"federated": job, "tuned": tuned}

if __name__ == "__main__":
    study = fd.compare(methods, sites=sites(), seeds=range(5), metric="accuracy")
    print(study.by_site())
    pairs = [("federated", "alone"), ("tuned", "alone"), ("pooled", "federated"), ("unseen-site", "federated")]
    for one, other in pairs:
        for site in (*study.sites, "mean"):
            mean, half = study.difference(one, other, of=site)
            print(f"{one} less {other}, {site}: {mean:+.3f} ± {half:.3f}")
    study.plot("accuracy", path=Path(__file__).with_name("study.svg"))
