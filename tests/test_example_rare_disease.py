"""The gallery's rare disease: hospitals that have seen 0 to 3 cases, in a short run."""

from pathlib import Path

import numpy as np
import pytest

import foedus as fd
from foedus import jobfile

FOLDER = Path(__file__).parents[1] / "examples" / "healthcare" / "rare_disease"


@pytest.fixture
def made():
    return jobfile.imported(FOLDER / "job.py")


def test_hospitals_without_a_case_are_no_trouble_and_all_together_tell_the_disease(made):
    metrics = made.job(rounds=10).run(made.sites, seed=1, backend="local").metrics
    assert metrics["test_auc"] > 0.9
    assert np.isfinite(metrics["train_loss"])


def test_a_hospital_that_never_saw_a_case_learns_little_alone(made):
    plain = made.job(rounds=60, privacy="none")
    none, all = (plain.run(sites, seed=1, backend="local") for sites in ({"hospital00": 0}, made.sites))
    assert made.CASES["hospital00"] == 0
    assert none.metrics["test_balanced_accuracy"] < 0.75 < 0.85 < all.metrics["test_balanced_accuracy"]


def test_a_hospital_without_a_case_that_trains_on_at_home_gets_to_call_fewer_ill(made):
    federated, tuned = (make(rounds=40, privacy="none") for make in (made.job, made.tuned))
    shared = federated.run(made.sites, seed=1, backend="local")
    result = tuned.run(made.sites, seed=1, backend="local")
    assert result.params == shared.params
    without = {name for name in made.HOSPITALS if made.CASES[name] == 0}
    for name in without:
        own = result.personal(name)
        x, _ = made.load(fd.data.Site(name, 0, fd.key(1, name))).test[:]
        assert (x @ own["w"] + own["b"]).mean() < (x @ shared.params["w"] + shared.params["b"]).mean()


def test_sealed_sums_have_the_model_of_open_ones(made):
    sealed, plain = (
        made.job(rounds=10, privacy=how).run(made.sites, seed=1, backend="local").params for how in ("secagg", "none")
    )
    assert np.allclose(sealed["w"], plain["w"], atol=1e-4)


def test_nobody_is_at_two_hospitals_or_in_the_reference_and_cases_are_as_said(made):
    own, (x, y) = __import__("registry").divided(7)
    assert [int(labels.sum()) for _, labels in own.values()] == [0, 1, 2, 3] * 10
    assert {len(labels) - int(labels.sum()) for _, labels in own.values()} == {6}
    rows = np.concatenate([x, *(part for part, _ in own.values())])
    assert rows.shape == (569, 30)  # the table has so many, of whom 212 are cases
    assert len(np.unique(rows, axis=0)) == 569
    assert y.sum() == 212 - 60


def test_a_seed_divides_them_anew_and_the_same_seed_alike(made):
    registry = __import__("registry")
    first, again, other = (registry.divided.__wrapped__(seed)[0]["hospital03"][0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_hospital_that_is_not_there_is_told_who_is(made):
    with pytest.raises(fd.FoedusError, match="clinic is none of the hospitals: take hospital00 to hospital39"):
        made.job(rounds=1, privacy="none").run({"clinic": 0}, seed=1, backend="local")
