"""The backend `auto`: here, in processes or many sites at once, by a short trial; exact where that is asked."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import foedus as fd
from foedus import launch, runs
from foedus.backends import auto
from foedus.backends.auto import Gain
from foedus.errors import JobError
from test_vectorized import digits, job
from tiny import SITES, many, working
from tiny import job as numpy_job

pytestmark = pytest.mark.processes


def events(folder: Path, what: str) -> list[str]:
    return [event["why"] for event in runs.journal(folder).events if event["what"] == what]


def test_a_short_run_stays_here_and_says_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    result = launch.run(numpy_job(), SITES, folder=tmp_path / "run", say=said.append)
    assert (result.backend, result.exact, said) == ("local", True, [])
    assert result.digest == launch.run(numpy_job(), SITES, backend="local", folder=tmp_path / "local").digest


@pytest.mark.parametrize("workers", [0, -1, 2.5, "two", True])
@pytest.mark.parametrize("backend", ["local", "auto"])
def test_a_number_of_workers_that_is_none_is_refused_before_anything_runs(workers: Any, backend: str) -> None:
    with pytest.raises(JobError, match=f"workers={workers!r}: give a whole number"):
        launch.run(numpy_job(), SITES, backend=backend, workers=workers)


def test_work_that_takes_long_goes_to_processes_with_the_same_bits(tmp_path: Path) -> None:
    def slow(payload: Any, local: Any, site: Any, usual: Any) -> Any:
        time.sleep(0.1)
        return usual()

    said: list[str] = []
    made = numpy_job(working(slow), rounds=4, evaluate=0)
    result = launch.run(made, many(6), workers=2, folder=tmp_path / "run", say=said.append)
    assert said == [f"backend: {why}" for why in events(tmp_path / "run", "backend")] and len(said) == 1
    assert re.match(r"backend: processes, for a site's work takes 0\.\d+ s and 22 are left: the same bits", said[0])
    assert result.digest == launch.run(made, many(6), backend="local", folder=tmp_path / "local").digest


def gains(monkeypatch: pytest.MonkeyPatch, found: Gain) -> None:
    monkeypatch.setattr(auto, "gain", lambda *_: found)


@pytest.mark.parametrize(
    ("gain", "exact", "backend"),
    [
        (Gain(9.0, 60.0), False, "vectorized"),
        (Gain(9.0, 60.0), True, "local"),
        (Gain(9.0, 0.3), False, "vectorized"),  # 0.27 s are saved
        (Gain(2.0, 0.3), False, "local"),  # 0.15 s
        (Gain(9.0, 0.1), False, "local"),
        (Gain(1.2, 60.0), False, "local"),
        (Gain(1.0, 0.0, "its learner trains one site at a time"), False, "local"),
    ],
)
def test_many_sites_at_once_are_chosen_for_a_gain_that_is_worth_it(
    gain: Gain, exact: bool, backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gains(monkeypatch, gain)
    result = launch.run(job(rounds=1, evaluate=0), digits(4), exact=exact, folder=tmp_path / "run")
    assert (result.backend, result.exact) == (backend, backend == "local")
    said = [why for why in events(tmp_path / "run", "backend") if not why.startswith("processes")]  # on a busy machine
    told = ["vectorized, 9 times as fast as"] if backend == "vectorized" else []
    assert [why[:30] for why in said] == (["sites train one after another:"] if gain.why else told)


def test_a_replay_is_exact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gains(monkeypatch, Gain(9.0, 60.0))
    made = job(rounds=1, evaluate=0)
    first = launch.run(made, digits(4), backend="local", folder=tmp_path / "first")
    assert launch.run(made, digits(4), replay=first, folder=tmp_path / "again").digest == first.digest


def test_the_trial_says_why_sites_cannot_train_together() -> None:
    sites = digits(4)
    assert (
        "BatchNorm1d"
        in auto.gain(job(model=lambda: nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10))), sites, 0).why
    )
    assert auto.gain(numpy_job(), SITES, 0).why == "its learner trains one site at a time"
    assert (
        "too large"
        in auto.gain(job(model=lambda: nn.Sequential(nn.Linear(64, 40_000), nn.Linear(40_000, 10))), sites, 0).why
    )


def test_a_first_site_whose_data_cannot_be_read_is_survived_as_in_local(tmp_path: Path) -> None:
    class Gone(np.ndarray):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            raise OSError("disk gone")

    sites = digits(4)
    first = min(sites)
    gone = fd.Split(train=(np.asarray(sites[first].train.x), np.asarray(sites[first].train.y)))
    gone.train.x = gone.train.x.view(Gone)
    result = launch.run(job(rounds=1, evaluate=0), {**sites, first: gone}, folder=tmp_path / "run")
    (row,) = runs.journal(tmp_path / "run").all("close")
    assert [site for site, *_ in row["counted"]] == sorted(set(sites) - {first}) and result.rounds == 1


def test_the_trial_measures_what_can_train_together() -> None:
    sites, made = digits(4), job(rounds=200)
    found = auto.gain(made, sites, 0)
    assert found.why == "" and found.times > 0 and found.seconds > 0  # how many is a benchmark's to say


def test_why_auto_trains_one_site_after_another_is_told_where_its_learner_could_do_better(tmp_path: Path) -> None:
    made = job(model=lambda: nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10)))
    said: list[str] = []
    result = launch.run(made, digits(4), say=said.append, folder=tmp_path / "one")
    (why,) = [text for text in said if text.startswith("backend: sites")]
    assert why.startswith("backend: sites train one after another: BatchNorm1d '1' computes with all")
    assert why[9:] in events(result.folder, "backend")
    assert launch.chosen("auto", False, numpy_job(), SITES, 0) == ("auto", "")  # it trains no sites together


def test_what_a_sites_data_raises_is_no_reason_of_auto() -> None:
    def load(site: Any) -> Any:
        raise ValueError("no such table")

    assert auto.gain(job(data=load), digits(4), 0).why == ""
