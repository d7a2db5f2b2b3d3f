"""Boosted trees over columns of different sites: those of the joined table, from sums that nobody who adds can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from federations import finished, joined
from foedus import jobfile, launch
from foedus.errors import FoedusError, JobError, Paused
from foedus.trees import histogram_boosting, paillier, predict, vertical_boosting

RNG = np.random.default_rng(0)
N = 100
X = RNG.normal(size=(N, 5)).round(1)
X[RNG.random((N, 5)) < 0.05] = np.nan
_Z = np.nan_to_num(X)
Y = (_Z[:, 0] + _Z[:, 2] * (_Z[:, 3] > 0) + RNG.normal(size=N) / 3 > 0).astype(int)
PARAMS = {"objective": "binary:logistic", "max_depth": 3, "eta": 0.5}
IDS = [f"p{i:03}" for i in range(N)]


def held(order: bool = False) -> dict[str, fd.Split]:
    """A bank with the targets and two columns, a shop with two, a phone company with one."""
    parts = {"bank": (X[:, :2], Y), "shop": (X[:, 2:4], None), "phone": (X[:, 4:], None)}
    mixed = {name: RNG.permutation(N) if not order else np.arange(N) for name in parts}
    return {
        name: fd.Split(fd.Records([IDS[i] for i in mixed[name]], x[mixed[name]], None if y is None else y[mixed[name]]))
        for name, (x, y) in parts.items()
    }


def test_sums_of_encrypted_pairs_are_exact_and_say_nothing_without_the_key() -> None:
    key = paillier.new_key()
    g, h = np.array([-(2**40), 7, -1, 2**45]), np.array([0, 2**50, 3, 1])
    rows = paillier.encrypted(key, g, h)
    assert rows.shape == (4, paillier.CIPHER)
    sums = paillier.added(key.modulus, rows, np.array([1, 0, 1, -1]), 3)
    assert paillier.decrypted(key, sums).tolist() == [[7, 2**50], [-(2**40) - 1, 3], [0, 0]]
    assert not (paillier.encrypted(key, g, h) == rows).all(axis=1).any()  # never the same again
    with pytest.raises(FoedusError, match="no sum of what was encrypted here"):
        paillier.decrypted(paillier.new_key(), rows)


@pytest.mark.parametrize("link", [True, False], ids=["linked by id", "in one order"])
def test_the_trees_are_those_of_the_joined_table(link: bool) -> None:
    """The same people train and are measured: what is measured of either is equal to the last bit of a float."""
    algorithm = vertical_boosting(PARAMS, bins=16, valid=0.2, link=link)
    rounds = 2 if link else 1
    job = fd.Job(algorithm, rounds=rounds, metrics=["auc", "accuracy"])
    found = job.run(sites=held(order=not link), seed=3)
    order = fd.keys.key(3, "vertical", 0, "parts").numpy().permutation(N)  # as sites draw it, in the ids' order
    valid = np.sort(order[-round(0.2 * N) :])
    train = np.setdiff1d(np.arange(N), valid)
    split = fd.Split((X[train], Y[train]), (X[valid], Y[valid]))
    table = fd.Job(histogram_boosting(PARAMS, bins=16), rounds=rounds, metrics=["auc", "accuracy"])
    whole = table.run(sites={"one": split})
    assert found.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-12)
    assert found.metrics["auc"] == whole.metrics["auc"] and found.metrics["accuracy"] == whole.metrics["accuracy"]
    assert predict(whole, X[valid]).std() > 0.1


def test_each_site_keeps_its_own_thresholds_and_the_server_has_no_model() -> None:
    result = fd.Job(vertical_boosting(PARAMS, bins=16), rounds=1, metrics=["auc"]).run(sites=held(), seed=3)
    assert not result.params
    bank, shop = (result.personal(name) for name in ("bank", "shop"))
    assert {name.split("/")[0] for name in bank} >= {"edges", "leaves"} and "leaves/0" not in shop
    splits = np.concatenate([x for name, x in shop.items() if name.startswith("splits/")])
    edges = shop["edges"]
    assert len(splits) and all(threshold in edges[int(column)] for _, column, threshold, _ in splits)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(JobError, match="leave num_class and those out"):
        vertical_boosting({**PARAMS, "monotone_constraints": {"f0": 1}})
    with pytest.raises(JobError, match="leave somebody to train on"):
        vertical_boosting(PARAMS, valid=1.0)
    two = held() | {"shop": fd.Split(fd.Records(IDS, X[:, 2:4], Y))}
    with pytest.raises(JobError, match="2 sites have targets: say whose with label"):
        fd.Job(vertical_boosting(PARAMS), rounds=1).run(sites=two)
    odd = held() | {"bank": fd.Split(fd.Records(IDS, X[:, :2], Y * 3))}
    with pytest.raises(Paused, match="bank: y holds more than the classes 0 to 1 of binary:logistic: numbers above 1"):
        fd.Job(vertical_boosting(PARAMS), rounds=1).run(sites=odd)


FILE = """
import numpy as np
import foedus as fd
from foedus.trees import vertical_boosting


def load(site):
    table = np.genfromtxt(site.data, delimiter=",", dtype=float)
    ids = [f"p{int(i):03}" for i in table[:, 0]]
    return fd.Split(fd.Records(ids, table[:, 2:], table[:, 1] if site.name == "bank" else None))


job = fd.Job(vertical_boosting({"objective": "binary:logistic", "max_depth": 2}, bins=8), data=load, rounds=2,
             metrics=["auc"], privacy="none")
"""


@pytest.mark.long
@pytest.mark.processes
def test_real_sites_grow_the_trees_of_a_simulation(tmp_path: Path) -> None:
    places: dict[str, Any] = {}
    for name, columns in {"bank": [0, 1], "shop": [2, 3], "phone": [4]}.items():
        places[name] = tmp_path / "data" / f"{name}.csv"
        places[name].parent.mkdir(exist_ok=True)
        order = RNG.permutation(N)
        np.savetxt(places[name], np.column_stack([order, Y[order], X[order][:, columns]]), delimiter=",")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.py").write_text(FILE)
    with joined(tmp_path / "home", places) as made:
        real = finished(made.remote().submit(tmp_path / "job" / "job.py"))
    simulated = launch.run(jobfile.load(tmp_path / "job" / "job.py").job, dict(places), folder=tmp_path / "simulated")
    assert real.metrics["auc"] == simulated.metrics["auc"] and real.metrics["loss"] == simulated.metrics["loss"]
