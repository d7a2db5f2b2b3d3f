"""The backend `vectorized`: whole runs near those of `local`, any algorithm's work, and one by one where it must be."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import foedus as fd
from foedus import build, launch, runs
from foedus.algorithms import rounds
from foedus.backends.simulation import Simulation
from foedus.backends.vectorized import Many
from foedus.core import Algorithm
from foedus.errors import JobError
from foedus.job import Job
from foedus.journal import Journal, Memory
from foedus.params import Params
from foedus.run import Checkpoints, Ended, execute
from foedus.torch import TorchLearner
from tiny import SITES, played
from tiny import job as numpy_job


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def digits(sites: int = 10) -> fd.Sites:
    x, y = load_digits(return_X_y=True)
    return fd.partition.dirichlet(x.astype(np.float32) / 16, y, sites=sites, alpha=0.5, seed=0)


def job(algorithm: Algorithm | None = None, model: Any = net, **more: Any) -> Job:
    sgd = partial(torch.optim.SGD, lr=more.pop("lr", 0.1))
    learner = TorchLearner(model, nn.CrossEntropyLoss(), sgd, batch_size=10, metrics=["accuracy"])
    return fd.Job(algorithm or fd.fedavg(), learner, **{"rounds": 2, **more})


def ended(made: Job, sites: Any) -> tuple[Ended, Journal, list[str]]:
    """What the Job ends with, its journal, and why sites trained one after another."""
    notes: list[str] = []
    kept = Journal(Memory())
    with build.exactly():
        runner = Simulation(Many(made, sites, 0, notes.append), sorted(sites), kept, 0, made.min_sites)
        return execute(made.plan(0), runner, kept, Checkpoints(None)), kept, notes


def near(a: Params, b: Params, by: float = 1e-5) -> bool:
    return all(np.abs(a[name] - x).max() <= by for name, x in b.items())


@pytest.mark.parametrize("algorithm", [fd.fedavg(), fd.fedprox(mu=0.1)], ids=["fedavg", "fedprox"])
def test_a_run_comes_near_the_one_of_local(algorithm: Algorithm) -> None:
    sites = digits()
    with build.exactly():
        alone, _ = played(job(algorithm), sites)
    many, journal, notes = ended(job(algorithm), sites)
    assert notes == [] and near(many.params, alone.params)
    assert many.history[-1]["accuracy"] == pytest.approx(alone.history[-1]["accuracy"], abs=0.01)
    assert [len(row["counted"]) for row in journal.all("close")] == [10] * 4  # two rounds of training and evaluation


def twice() -> Algorithm:
    """Each site trains from the global model and from its own, keeps the second and sends the sum of both deltas."""

    def work(payload: Params, local: Any, site: Any) -> Any:
        own = local["own"] if local else payload
        first = site.train(payload, site.split, site.key("train"), None)
        second = site.train(own, site.split, site.key("own"), None)
        return {"own": second.params}, fd.Update((first.params - payload) + (second.params - own), first.examples)

    return rounds(lambda state: state, work, lambda state, total, _: state + 0.5 * total.params)


def test_a_work_may_train_several_times_and_keep_its_own_model() -> None:
    sites = digits(6)
    with build.exactly():
        alone, _ = played(job(twice(), rounds=3, evaluate=0), sites)
    many, _, notes = ended(job(twice(), rounds=3, evaluate=0), sites)
    assert notes == [] and near(many.params, alone.params)


def test_updates_that_come_late_are_near_those_of_local() -> None:
    sites = digits(8)
    made = job(rounds=4, quorum=3, late="keep", evaluate=0)
    with build.exactly():
        alone, journal = played(made, sites)
    many, other, _ = ended(made, sites)
    assert [row["counted"] for row in other.all("close")] == [row["counted"] for row in journal.all("close")]
    assert near(many.params, alone.params)


def test_a_site_with_bad_data_is_named_and_the_others_count() -> None:
    sites = dict(digits(4))
    name = min(sites)
    sites[name] = fd.Split((np.full_like(sites[name].train.x, np.nan), sites[name].train.y))
    _, journal, _ = ended(job(rounds=1, evaluate=0), sites)
    (row,) = journal.all("close")
    outcome = {site: (status, why) for site, status, why, _ in row["outcomes"]}
    assert outcome[name][0] == "refused" and f"site '{name}', training: the loss of step 1" in outcome[name][1]
    assert sorted(site for site, (status, _) in outcome.items() if status == "counted") == sorted(sites)[1:]


def test_a_loader_that_raises_is_that_sites_own_fault() -> None:
    def load(site: Any) -> Any:
        if site.name == "site-1":
            raise OSError("disk asleep")
        return site.data

    sites = {f"site-{i}": split for i, split in enumerate(digits(3).values())}
    _, journal, _ = ended(job(data=load, rounds=1, evaluate=0), sites)
    (row,) = journal.all("close")
    assert [status for _, status, _, _ in row["outcomes"]] == ["counted", "declined", "counted"]


def test_what_cannot_train_together_has_the_bits_of_local_and_says_why(tmp_path: Path) -> None:
    made = job(model=lambda: nn.Sequential(net(), nn.BatchNorm1d(10)), evaluate=0)
    sites = digits(4)
    many = launch.run(made, sites, backend="vectorized", folder=tmp_path / "many")
    assert many.digest == launch.run(made, sites, backend="local", folder=tmp_path / "alone").digest
    (event,) = runs.journal(many.folder).events
    assert event["what"] == "one site after another" and "BatchNorm1d '1'" in event["why"]


def test_a_learner_of_another_library_trains_one_by_one() -> None:
    many, _, notes = ended(numpy_job(), SITES)
    assert many.params == played(numpy_job(), SITES)[0].params
    assert notes == ["NumpyLearner trains one site at a time"]


def test_its_result_is_not_exact_and_exact_forbids_it(tmp_path: Path) -> None:
    result = launch.run(job(evaluate=0), digits(4), backend="vectorized", folder=tmp_path / "run")
    assert (result.backend, result.exact) == ("vectorized", False)
    with pytest.raises(
        JobError, match="'vectorized' only comes close, and --exact forbids that: use local or processes"
    ):
        launch.run(job(), digits(4), backend="vectorized", exact=True)


@pytest.mark.parametrize("before", [False, True])
def test_a_run_leaves_pythons_collector_as_it_was(before: bool, tmp_path: Path) -> None:
    frozen: list[int] = []

    def load(site: Any) -> Any:
        frozen.append(gc.get_freeze_count())
        return site.data

    if before:
        gc.freeze()
    try:
        launch.run(job(data=load, rounds=1, evaluate=0), digits(3), backend="local", folder=tmp_path / "run")
        assert min(frozen) > 0 and (gc.get_freeze_count() > 0) == before
    finally:
        gc.unfreeze()


def images() -> nn.Module:
    first = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(72, 10))


@pytest.mark.parametrize("model", [net, pytest.param(images, marks=pytest.mark.long)])
def test_whole_runs_are_as_accurate_as_those_of_local_within_the_spread_of_five_seeds(
    model: Any, tmp_path: Path
) -> None:
    made, sites = job(model=model, rounds=6, evaluate=6), digits()

    def accuracy(backend: str, seed: int) -> float:
        how: dict[str, Any] = {"backend": backend, "seed": seed, "workers": 1, "folder": tmp_path / f"{backend}{seed}"}
        return float(launch.run(made, sites, **how).metrics["accuracy"])

    local, together = ([accuracy(backend, seed) for seed in range(5)] for backend in ("local", "vectorized"))
    spread = np.ptp(local)
    assert 0 < spread < 0.2 and min(local) > 0.6
    assert max(np.abs(np.subtract(local, together))) <= spread
    assert abs(np.mean(local) - np.mean(together)) <= spread / 5
