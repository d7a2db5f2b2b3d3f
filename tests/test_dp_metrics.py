"""Noise on metrics: what it is for counts, which metrics are left out, what it costs, and that a site counts it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from federations import finished, joined
from foedus.errors import FoedusError, JobError
from foedus.metrics import BUILT
from foedus.numpy import NumpyLearner
from foedus.privacy import accounting
from foedus.privacy.dp_metrics import noise_of, spends

SITES = {
    f"s{i}": fd.Split(
        train=(np.zeros((5, 1)), np.zeros(5)),
        valid=(np.zeros((200, 1)), np.zeros(200)),
        test=(np.ones((100, 1)), np.repeat([0.0, 1.0], 50)),
    )
    for i in range(3)
}


def still(p: Any, x: Any, y: Any) -> Any:
    return x[:, 0] * 0, {"w": np.zeros_like(p["w"])}


def job(how: Any, metrics: Any = ("accuracy", "recall"), **more: Any) -> fd.Job:
    learner = NumpyLearner({"w": np.full(1, -1.0)}, still, lambda p, x: x @ p["w"], metrics=metrics)
    return fd.Job(fd.fedavg(), learner, privacy=how, **{"rounds": 1} | more)


def sums(made: fd.Job, seed: int = 0) -> Any:
    """What one site returns of its evaluation."""
    from foedus.core import EVALUATE, Task
    from foedus.work import ordered

    bench = made.bench(seed)
    task = Task(EVALUATE, made.first(seed), list(SITES), returns=())
    return bench.perform(*ordered(task, ["s0"], 0, 1), None, SITES["s0"])[1]


def test_counts_have_the_noise_of_one_example_and_everything_else_stays() -> None:
    """Hits of 200 and examples, each beside 10 √2 of noise; confusion counts beside 10. The loss is not sent."""
    plain, drawn = sums(job("none")), [sums(job(fd.dp_metrics(10.0)), seed) for seed in range(300)]
    assert set(plain.metrics) >= {"loss", "accuracy", "test_loss", "test_recall"}
    assert all(set(update.metrics) == {"accuracy", "recall", "test_accuracy", "test_recall"} for update in drawn)
    assert {update.weight for update in drawn} == {1.0}
    hits = np.array([update.metrics["accuracy"] for update in drawn])
    assert hits.dtype == np.int64 and plain.metrics["accuracy"].tolist() == [200, 200]
    assert hits.mean(0) == pytest.approx([200, 200], abs=4 * 10 * math.sqrt(2 / 300))
    assert hits.std(0) == pytest.approx(10 * math.sqrt(2), rel=0.2)
    cells = np.array([update.metrics["test_recall"] for update in drawn])
    assert plain.metrics["test_recall"].tolist() == [[50, 0], [50, 0]]
    assert cells[:, :, 0].std(0) == pytest.approx([10, 10], rel=0.2) and cells.min() == 0  # never below nothing


def test_the_same_question_has_the_same_noise_and_a_run_is_the_same_again() -> None:
    made = job(fd.dp_metrics(3.0))
    first, again, other = sums(made), sums(made), sums(made, 1)
    assert (first.metrics["accuracy"] == again.metrics["accuracy"]).all()
    assert (first.metrics["accuracy"] != other.metrics["accuracy"]).any()
    found = made.run(SITES)
    assert found.metrics == made.run(SITES).metrics
    assert found.metrics["accuracy"] == pytest.approx(1.0, abs=0.1) and "loss" not in found.metrics
    assert not found.history[-1].get("intervals")


def test_it_costs_what_all_evaluations_of_all_counts_cost_together() -> None:
    """Four rounds evaluated each, and once more at most; two counts: ten releases of a part."""
    made = job(fd.dp_metrics(epsilon=2.0), rounds=4)
    assert made.releases == (2, 5)
    z = noise_of(fd.dp_metrics(epsilon=2.0), 10)
    assert accounting.epsilon(z, 1.0, 10, 1e-5, "rdp") <= 2.0 < accounting.epsilon(z * 0.999, 1.0, 10, 1e-5, "rdp")
    once = spends(fd.dp_metrics(epsilon=2.0), *made.releases)
    assert accounting.composed([once] * 5, 1e-5, "rdp") == pytest.approx(2.0, abs=0.01)
    assert job("none", best="accuracy").releases == (2, 2)


def test_how_far_one_example_changes_each_metric_is_right() -> None:
    """By taking each of 60 examples away."""
    random = np.random.default_rng(0)
    outputs, targets = random.normal(size=(60, 1)), random.integers(0, 2, 60)
    for m in BUILT.values():
        if m.sensitivity is not None:
            whole = m.sums(outputs, targets)
            moved = [np.linalg.norm(whole - m.sums(np.delete(outputs, i, 0), np.delete(targets, i))) for i in range(60)]
            assert max(moved) == pytest.approx(m.sensitivity)
    assert {m.name for m in BUILT.values() if m.sensitivity} == {
        "accuracy",
        "precision",
        "recall",
        "f1",
        "balanced_accuracy",
    }


def test_sums_that_are_no_counts_of_examples_are_refused() -> None:
    pixels = BUILT["accuracy"]._replace(name="pixels", sums=lambda x, y: np.array([9 * len(y), 9 * len(y)]))
    with pytest.raises(FoedusError, match="'pixels' counts more than one number an example"):
        sums(job(fd.dp_metrics(1.0), [pixels]))
    real = BUILT["accuracy"]._replace(name="real", sums=lambda x, y: np.array([0.5, len(y)]))
    with pytest.raises(FoedusError, match="'real' is float64"):
        sums(job(fd.dp_metrics(1.0), [real]))


def test_noise_in_which_no_metric_is_left_is_refused() -> None:
    with pytest.raises(FoedusError, match=r"each count would get noise of 2e\+04: spend more epsilon"):
        sums(job(fd.dp_metrics(20_000.0)))


@pytest.mark.parametrize("words", [{}, {"noise_multiplier": 1.0, "epsilon": 1.0}, {"epsilon": -1.0}])
def test_a_wrong_word_is_refused(words: Any) -> None:
    with pytest.raises(JobError, match="dp_metrics"):
        fd.dp_metrics(**words)


FILE = """
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner

def load(site):
    x, y = np.arange(40.0)[:, None], np.arange(40) % 2
    return fd.Split(train=(x, y), valid=(x, y), test=(x, y))

def still(p, x, y):
    return x[:, 0] * 0, {"w": np.zeros(1)}

learner = NumpyLearner({"w": np.ones(1)}, still, lambda p, x: x @ p["w"], metrics=["accuracy"])
privacy = [fd.dp_sgd(1.0, 2.0), fd.dp_metrics(2.0)]
job = fd.Job(fd.fedavg(), learner, load, rounds=2, privacy=privacy)
"""


@pytest.mark.long
@pytest.mark.processes
def test_a_real_site_counts_each_evaluation_in_its_ledger(tmp_path: Path) -> None:
    for name in ("data/north", "job"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "job" / "job.py").write_text(FILE)
    with joined(tmp_path / "home", {"north": tmp_path / "data" / "north"}) as made:
        finished(made.remote().submit(tmp_path / "job" / "job.py"))
        rows = made.site("north", "privacy")
    assert "4 rows" in rows, rows  # two trainings, two evaluations
