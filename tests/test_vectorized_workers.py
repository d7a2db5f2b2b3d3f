"""The backend `vectorized` in several processes: near `local` whatever a Task asks for, and only where it pays."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import foedus as fd
from foedus import build, launch, runs
from foedus.algorithms import rounds as rounds_of
from foedus.backends import together
from foedus.job import Job
from foedus.result import Result
from test_processes import children, once
from test_vectorized import digits, job, near, net, twice
from tiny import played

pytestmark = pytest.mark.processes


def run(made: Job, sites: Any, folder: Path, **more: Any) -> Result:
    return launch.run(made, sites, backend="vectorized", folder=folder, **{"workers": 2, **more})


def told(result: Result, what: str) -> list[str]:
    return [event["why"] for event in runs.journal(result.folder).events if event["what"] == what]


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [
        (fd.fedavg(), {"rounds": 3}),
        (twice(), {"rounds": 3}),  # sites keep models of their own
        pytest.param(fd.fedavg(aggregator=fd.median()), {}, marks=pytest.mark.long),  # updates come back one by one
        pytest.param(fd.fedavg(), {"rounds": 4, "quorum": 3, "late": "keep"}, marks=pytest.mark.long),
    ],
    ids=["fedavg", "twice", "median", "late"],
)
def test_a_run_in_two_processes_comes_near_the_one_of_local(algorithm: Any, more: Any, tmp_path: Path) -> None:
    sites, made = digits(6), job(algorithm, **more)
    with build.exactly():
        alone, journal = played(made, sites)
    many = run(made, sites, tmp_path / "run")
    assert near(many.params, alone.params)
    rows = [row["counted"] for row in runs.journal(many.folder).all("close")]
    assert rows == [row["counted"] for row in journal.all("close")]
    assert many.history[-1]["accuracy"] == pytest.approx(alone.history[-1]["accuracy"], abs=0.02)
    assert runs.journal(many.folder).events == []


def test_why_sites_train_one_after_another_is_told_once_and_they_have_the_bits_of_local(tmp_path: Path) -> None:
    made = job(model=lambda: nn.Sequential(net(), nn.BatchNorm1d(10)), evaluate=0)
    many = run(made, digits(4), tmp_path / "many")
    assert many.digest == launch.run(made, digits(4), backend="local", folder=tmp_path / "alone").digest
    (why,) = told(many, "one site after another")
    assert "BatchNorm1d '1'" in why


@pytest.mark.kills
def test_a_worker_killed_at_work_costs_no_update(tmp_path: Path) -> None:
    parent = os.getpid()

    def load(site: Any) -> Any:
        if site.name == min(sites) and os.getpid() != parent and once(tmp_path / "killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return site.data

    sites = digits(6)
    made = job(data=load, evaluate=0)
    with build.exactly():
        alone, _ = played(made, sites)
    many = run(made, sites, tmp_path / "run")
    assert near(many.params, alone.params)
    (why,) = told(many, "worker died")
    assert "died (signal 9)" in why and min(sites) in why


def test_a_site_whose_loading_takes_long_stays_where_its_data_is(tmp_path: Path) -> None:
    def load(site: Any) -> Any:
        with (tmp_path / "book").open("a") as file:
            file.write(f"{site.name}\n")
        time.sleep(0.05)
        return site.data

    sites = digits(6)
    run(job(data=load, rounds=4), sites, tmp_path / "run")
    assert sorted((tmp_path / "book").read_text().split()) == sorted(sites)


def delayed(here: float, there: float, rounds: int) -> Job:
    """A Job whose sites take so many seconds in this process, or in others, each time a work begins."""
    parent = os.getpid()

    def work(payload: Any, local: Any, site: Any) -> Any:
        assert str(site.name)  # who looks at its site is worked by itself
        time.sleep(here if os.getpid() == parent else there)
        fit = site.train(payload, site.split, site.key("train"), None)
        return None, fd.Update(fit.params - payload, fit.examples)

    own = rounds_of(lambda state: state, work, lambda state, total, _: state + total.params)
    return job(own, rounds=rounds, evaluate=0)


def test_a_short_run_stays_in_one_process_and_says_nothing(tmp_path: Path) -> None:
    result = run(job(rounds=2), digits(4), tmp_path / "run", workers=None)
    assert runs.journal(result.folder).events == []


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (0.0, [r"2 processes, many at once in each, for 8 sites took 0\.\d+ s in one"]),
        pytest.param(0.1, ["2 processes, many", "one process again: several took as long"], marks=pytest.mark.long),
    ],
)
def test_a_long_run_goes_on_in_processes_unless_these_take_as_long(
    there: float, said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(together, "cores", lambda: 2)
    made = delayed(here=0.01, there=there, rounds=4)
    monkeypatch.setattr(together, "SAVES", 0.01)
    result = run(made, digits(8), tmp_path / "run", workers=None)
    found = told(result, "backend")
    assert len(found) == len(said) and all(map(re.match, said, found))
    assert not children()
