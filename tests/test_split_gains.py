"""What split and vertical learning give on real data, beside each site alone and FedAvg, over seeds with intervals.

`python tests/test_split_gains.py` prints the figures of docs/algorithms.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

import foedus as fd
from foedus.layers import LayeredLearner, dense, tanh
from tiny import played

FORM = ("funded_amnt", "annual_inc", "term", "emp_length", "verification_status")
BUREAU = (
    "delinq_2yrs", "inq_last_6mths", "revol_util", "open_il_6m", "open_il_12m", "open_il_24m", "total_bal_il",
    "all_util", "inq_fi", "inq_last_12m", "num_il_tl", "total_il_high_credit_limit",
)  # fmt: skip
SEEDS = range(5)
STUDENT = 2.776  # the 97.5 % quantile with 4 degrees of freedom


@cache
def loans() -> tuple[Any, Any, Any]:
    """What the lender asks on its form, what the credit bureau knows of the same people, and who did not pay back."""
    table = pd.read_csv(Path(os.environ["FOEDUS_DATA"], "lending_club", "lending_club.csv"))
    return _numbers(table[list(FORM)]), _numbers(table[list(BUREAU)]), (table["Class"] == "bad").to_numpy(float)


def _numbers(table: pd.DataFrame) -> Any:
    """Categories as dummies, numbers by logarithm, all with mean 0 and deviation 1: each site by itself."""
    x = pd.get_dummies(table, dtype=float).to_numpy(float)
    x = np.sign(x) * np.log1p(np.abs(x))
    return (x - x.mean(0)) / x.std(0)


def auc(sites: Mapping[str, Any], seed: int, rounds: int = 100, link: bool = False) -> float:
    """Of a third of the people, after so many steps of logistic regression."""
    algorithm = fd.vertical("logistic", label="lender", lr=1.0, valid=0.0, test=0.33, link=link)
    ended, _ = played(fd.Job(algorithm, rounds=rounds, metrics=["auc"], evaluate=rounds), sites, seed)
    return float(ended.history[-1]["test_auc"])


def lender(ids: Any = None, of: Any = slice(None)) -> fd.Split:
    return fd.Split(train=fd.Records(ids, loans()[0][of], loans()[2][of]))


def bureau(ids: Any = None, of: Any = slice(None)) -> fd.Split:
    return fd.Split(train=fd.Records(ids, loans()[1][of]))


def gained(seeds: Any) -> list[tuple[float, float]]:
    """The lender alone, and with the bureau."""
    return [(auc({"lender": lender()}, s), auc({"lender": lender(), "bureau": bureau()}, s)) for s in seeds]


@pytest.mark.data
def test_a_bureaus_columns_tell_a_lender_who_will_not_pay_back() -> None:
    alone, both = gained([0])[0]
    assert both - alone > 0.02


@pytest.mark.data
def test_linked_by_ids_in_any_order_it_is_as_good_as_in_one_table() -> None:
    """400 people, whom the two know in other orders, and some whom only one of them knows."""
    known, rng = {"lender": range(0, 440), "bureau": range(40, 480)}, np.random.default_rng(0)
    rows = {site: rng.permutation(list(who)) for site, who in known.items()}
    sites = {
        "lender": lender(rows["lender"].tolist(), rows["lender"]),
        "bureau": bureau(rows["bureau"].tolist(), rows["bureau"]),
    }
    table = np.array(sorted(range(40, 440), key=str))  # who is known to both, sorted as text
    apart = auc(sites, 0, rounds=20, link=True)
    assert apart == pytest.approx(auc({"lender": lender(of=table), "bureau": bureau(of=table)}, 0, rounds=20), abs=1e-9)


@pytest.mark.data
@pytest.mark.long
def test_the_lenders_gain_is_there_with_every_seed() -> None:
    assert low(gained(SEEDS)) > 0


NET = LayeredLearner([dense(32), tanh(), dense(16), tanh(), dense(10)], 64, "softmax", lr=0.3, metrics=["accuracy"])
METHODS: dict[str, Any] = {
    "FedAvg": fd.fedavg,
    "in turns": lambda: fd.split_learning(NET, 2),
    "at once": lambda: fd.split_learning(NET, 2, turns=False),
}


def accuracy(method: str, sites: Mapping[str, Any], seed: int, rounds: int = 15) -> float:
    ended, _ = played(fd.Job(METHODS[method](), NET, rounds=rounds, evaluate=rounds), sites, seed)
    return float(ended.history[-1]["accuracy"])


def alone(sites: Mapping[str, Any], seed: int) -> float:
    """The mean over sites of a model of their own, on everybody's valid part."""
    everybody = fd.Split(train=(np.zeros((1, 64)), [0]), valid=_pooled(sites))
    found = [accuracy("FedAvg", {"a": fd.Split(split.train, everybody.valid)}, seed) for split in sites.values()]
    return float(np.mean(found))


def _pooled(sites: Mapping[str, Any]) -> tuple[Any, Any]:
    valid = [split.valid for split in sites.values()]
    return np.concatenate([v.x for v in valid]), np.concatenate([v.y for v in valid])


def digits(how: str, seed: int) -> dict[str, Any]:
    """Ten sites: their pictures drawn alike, or two labels each."""
    x, y = load_digits(return_X_y=True)
    part = fd.partition.iid if how == "alike" else lambda *a, **k: fd.partition.pathological(*a, classes=2, **k)
    found = part(x / 16, y, sites=10, seed=seed)
    return {name: split.with_valid(fd.key(seed, name)) for name, split in found.items()}


def test_ten_sites_with_a_network_cut_in_two_learn_more_than_each_alone() -> None:
    sites = digits("alike", 0)
    assert accuracy("at once", sites, 0) > alone(dict(list(sites.items())[:2]), 0) + 0.02


def low(pairs: Any) -> float:
    """The lower end of the 95 % interval of the difference in pairs."""
    d = np.array([b - a for a, b in pairs])
    return float(d.mean() - STUDENT * d.std(ddof=1) / len(d) ** 0.5)


if __name__ == "__main__":
    pairs = gained(SEEDS)
    print(
        "loans",
        np.mean(pairs, 0).round(3),
        "+",
        round(low(pairs), 3),
        "to",
        round(2 * np.diff(np.mean(pairs, 0))[0] - low(pairs), 3),
    )
    for how in ("alike", "two labels"):
        rows = {name: [accuracy(name, digits(how, s), s) for s in SEEDS] for name in METHODS}
        rows["alone"] = [alone(digits(how, s), s) for s in SEEDS]
        for name, found in rows.items():
            half = STUDENT * np.std(found, ddof=1) / len(found) ** 0.5
            print(how, name, round(float(np.mean(found)), 3), "±", round(float(half), 3))
