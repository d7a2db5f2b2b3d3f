"""Handwritten digits (scikit-learn's, 8 × 8) at ten sites with unequal shares of each digit.

`foedus compare examples/digits/job.py --tune lr=0.03,0.1,0.3` compares the methods below; this file itself, two skews.
"""

from functools import partial

import numpy as np
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

import foedus as fd
from foedus.torch import TorchLearner


def net():
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def sites(seed=0, alpha=0.1):
    x, y = load_digits(return_X_y=True)
    return fd.partition.dirichlet((x / 16).astype(np.float32), y, sites=10, alpha=alpha, seed=seed)


def job(algorithm, lr=0.1):
    learner = TorchLearner(net, cross_entropy, partial(SGD, lr=lr), epochs=4, batch_size=32, metrics=["accuracy"])
    return fd.Job(algorithm, learner, rounds=20, best="accuracy")


methods = {
    "FedAvg": partial(job, fd.fedavg()),
    "FedProx": partial(job, fd.fedprox(mu=0.01)),
    "FedOpt": partial(job, fd.fedopt(partial(SGD, lr=1.0, momentum=0.6))),
    "SCAFFOLD": partial(job, fd.scaffold()),
}

if __name__ == "__main__":
    for alpha in (0.1, 0.5):
        study = fd.compare(methods, sites=partial(sites, alpha=alpha), tune={"lr": [0.03, 0.1, 0.3]}, save="study",
                           references=["alone", "pooled"])  # fmt: skip
        print(f"Dirichlet {alpha}", study.table(["all", "mean", "difference", "worst_site"]), sep="\n", flush=True)
