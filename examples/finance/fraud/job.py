"""Two banks and a telecom find fraud together: each knows other things of a payment, and nobody sends them to anybody.

`foedus compare` on this file compares the methods below; `foedus run` simulates the first.
"""

from functools import partial
from pathlib import Path

from payments import SITES, load

import foedus as fd
from foedus.layers import dense, linear, shift, tanh

METRICS = ["auc", "pr_auc", fd.recall_at(alert_rate=0.02)]


def job(lr=1.0, rounds=150, blind=False):
    """Logistic regression on all firms' columns; who knows a payment is found by private set intersection."""
    algorithm = fd.vertical("logistic", label="payer_bank", lr=lr, valid=0.0, test=0.33)
    return fd.Job(algorithm, data=partial(load, blind=blind), rounds=rounds, metrics=METRICS, evaluate=rounds)


def own(lr=1.0, rounds=150):
    """What the payer's bank can do with its own columns: the others' are all 0."""
    return job(lr=lr, rounds=rounds, blind=True)


def network(lr=1.0, rounds=150, hidden=6):
    """A hidden layer on what the three say together, so that a talk and a young account count more than one by one."""
    algorithm = fd.vertical(
        "logistic", [linear(hidden)], [shift(), tanh(), dense(1)], label="payer_bank", lr=lr, valid=0.0, test=0.33
    )
    return job(rounds=rounds).replace(algorithm=algorithm)


sites = dict.fromkeys(SITES, 0)  # a firm's name says what it knows

methods = {"own columns": own, "vertical": job, "vertical network": network}

if __name__ == "__main__":
    study = fd.compare(methods, sites=sites, seeds=range(5), references=[], metric="auc")
    for metric in ("auc", "pr_auc", "recall_at_0.02"):
        print(metric, {name: study.interval(name, metric=metric) for name in methods})
    for method in ("vertical", "vertical network"):
        print(f"{method} less own columns: {study.difference(method)}")
    study.plot("auc", path=Path(__file__).with_name("study.svg"))
