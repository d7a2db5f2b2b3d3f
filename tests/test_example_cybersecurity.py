"""The gallery's intrusions: who can find an attack that one organisation alone has seen, in a short run."""

from pathlib import Path

import numpy as np
import pytest

import foedus as fd
from foedus import jobfile

FOLDER = Path(__file__).parents[1] / "examples" / "cybersecurity" / "intrusion"


@pytest.fixture
def made():
    return jobfile.imported(FOLDER / "job.py")


def test_trees_of_all_find_at_the_hospital_what_its_own_cannot(made):
    job, two = made.trees(rounds=4), {"bank": 0, "hospital": 0}
    alone = job.run({"hospital": 0}, seed=1, backend="local").metrics["test_auc"]
    assert alone < 0.6
    assert job.run(two, seed=1, backend="local").metrics["test_auc"] > 0.9


def test_trees_in_one_place_find_there_what_another_organisation_has_seen(made):
    own, both = (made.trained("hospital", names, 1) for names in (["hospital"], ["bank", "hospital"]))
    alone = made.trees().run({"hospital": 0}, seed=1, backend="local").metrics["test_auc"]
    assert own == alone < 0.6 < 0.99 < both


def test_an_autoencoder_finds_it_without_an_example(made):
    assert made.job(rounds=10).run({"university": 0}, seed=1, backend="local").metrics["test_auc"] > 0.9


def test_known_attacks_leave_the_autoencoder_as_it_is(made):
    random = np.random.default_rng(3)
    p, x, y = made.model(random), random.normal(size=(6, len(made.FEATURES))), np.array([0, 1, 0, 0, 1, 0])
    _, all = made.gradient(p, x, y)
    _, usual = made.gradient(p, x[y == 0], y[y == 0])
    assert all.keys() == usual.keys()
    for name, slope in usual.items():
        assert np.allclose(all[name], slope, atol=1e-12)
        step = np.zeros(slope.shape)
        step.flat[0] = 1e-5
        up, down = (made.gradient({**p, name: p[name] + e * step}, x, y)[0][y == 0].mean() for e in (1, -1))
        assert (up - down) / 2e-5 == pytest.approx(slope.flat[0], abs=1e-7)


def test_only_the_bank_has_seen_the_new_attack_and_all_are_tested_on_it(made):
    flows = __import__("flows")
    assert [name for name, (_, seen) in flows.SITES.items() if flows.NEW in seen] == ["bank"]
    x, y = flows.flows({"web": 1}, (flows.NEW,), 4000, 0.25, np.random.default_rng(1))
    assert y.mean() == pytest.approx(0.25, abs=0.03)  # 4 standard deviations
    sent = np.exp(4 * x[:, 1] + 8)
    assert np.median(sent[y == 1]) == pytest.approx(1.5e6, rel=0.25)  # its median in KINDS
    assert np.median(sent[y == 0]) == pytest.approx(3e3, rel=0.15)


def test_an_organisation_that_is_not_there_is_told_who_is(made):
    with pytest.raises(fd.FoedusError, match="shop is no organisation of this example: take bank, hospital"):
        made.job(rounds=1).run({"shop": 0}, seed=1, backend="local")
