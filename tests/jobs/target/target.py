"""What a study of four methods looks like to its author; tests run it, in a short form and as it stands."""

from functools import partial

from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

import foedus as fd
from foedus.torch import TorchLearner


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


sites = fd.partition.dirichlet(*load_digits(return_X_y=True), sites=20, alpha=0.1, valid=0.1, test=0.2, seed=1)
sites.plot()


def job(algorithm, lr=0.05):
    return fd.Job(algorithm, TorchLearner(model=Net, loss=cross_entropy, optimizer=partial(SGD, lr=lr), metrics=["accuracy"]),  # noqa: E501
                  rounds=50, cohort=0.5, best="accuracy")  # fmt: skip


methods = {"FedAvg": fd.fedavg(), "FedProx": fd.fedprox(mu=0.01), "SCAFFOLD": fd.scaffold(), "Ditto": fd.ditto(lam=0.1)}
study = fd.compare({name: partial(job, method) for name, method in methods.items()}, sites=sites, seeds=range(5),
                   references=("alone", "pooled"), tune={"lr": [0.01, 0.05, 0.1]}, save="study/")  # fmt: skip
study.plot("accuracy"); study.table(by=["mean", "worst_site", "bytes", "seconds"])  # noqa: E702
