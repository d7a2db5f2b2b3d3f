"""The gallery's payments: three firms that hold other columns, linked by private set intersection, in a short run."""

from pathlib import Path

import numpy as np
import pytest

import foedus as fd
from foedus import jobfile

FOLDER = Path(__file__).parents[1] / "examples" / "finance" / "fraud"


@pytest.fixture
def made(monkeypatch):
    job = jobfile.imported(FOLDER / "job.py")
    payments = __import__("payments")
    monkeypatch.setattr(payments, "PAYMENTS", 1500)  # a quarter of what the example has
    monkeypatch.setattr(payments, "HELD", {"payer_bank": (0, 1350), "payee_bank": (75, 1425), "telecom": (150, 1500)})
    payments.payments.cache_clear()
    yield job
    payments.payments.cache_clear()


def test_firms_find_the_payments_that_all_know(made):
    result = fd.Job(fd.link(), data=made.load, rounds=1).run(made.sites, seed=1, backend="local")
    assert int(result.params["common"]) == 1200  # numbers 150 to 1349
    assert int(result.params["union"]) == 1500


def test_columns_of_all_tell_more_than_the_payers_banks(made):
    own = made.own(rounds=40).run(made.sites, seed=1, backend="local")
    together = made.job(rounds=40).run(made.sites, seed=1, backend="local")
    assert together.metrics["test_auc"] > own.metrics["test_auc"] + 0.05


def test_only_the_payers_bank_says_what_was_fraud(made):
    class Site:
        def __init__(self, name):
            self.name, self.key = name, fd.key(3)

    held = {name: made.load(Site(name)).train for name in made.sites}
    assert [name for name, records in held.items() if records.y is not None] == ["payer_bank"]
    blind = made.load(Site("telecom"), blind=True).train
    assert blind.ids == held["telecom"].ids
    assert not np.any(blind.x)


def test_a_firm_that_is_not_there_is_told_who_is(made):
    with pytest.raises(fd.FoedusError, match="shop is no firm of this example: take payer_bank, payee_bank, telecom"):
        made.job(rounds=1).run({"shop": 0}, seed=1, backend="local")
