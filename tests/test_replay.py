"""Law 1: a run's bits are a function of its Job, seed, rosters and counted sets; replays that follow them agree."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foedus import fedavg, fedprox, int8, launch, mean, runs, top_k
from foedus.errors import FoedusError, JobError, JournalError
from foedus.job import Job
from foedus.params import digest
from foedus.stop import wall_time
from tiny import SITES, job, learner, many, working

broken: set[tuple[str, int]] = set()


def shaky(payload: Any, local: Any, site: Any, usual: Any) -> Any:
    """Fails at some sites in some rounds, for reasons that no journal can bring back; keeps a state of its own."""
    if (site.name, site.key.names[1]) in broken:
        raise OSError("a cable was loose")
    times = (local or {"times": 0})["times"] + 1
    update = usual()[1]
    return {"times": times}, update._replace(params=(1 / times) * update.params)


def discount(age: int) -> float:
    return 1 / (1 + age)


JOBS: dict[str, Callable[[], Job]] = {
    "synchronous": lambda: job(working(shaky), rounds=4, best="loss"),
    "fedprox": lambda: job(working(shaky, fedprox(0.5)), rounds=3, learner=learner(lr=0.3, epochs=3)),
    "cohorts": lambda: job(working(shaky), rounds=5, cohort=0.5, evaluate=3),
    "over-selected": lambda: job(working(shaky), rounds=4, cohort=4, over_select=1.5, quorum=4),
    "compressed": lambda: job(
        working(shaky), rounds=4, cohort=4, over_select=1.5, quorum=4, compress=[top_k(0.34), int8(2)]
    ),
    "asynchronous": lambda: job(
        working(shaky, fedavg(busy=4, aggregator=mean(discount=discount))), rounds=8, quorum=2, late="keep"
    ),
}


@pytest.fixture(autouse=True)
def cables() -> Any:
    broken.clear()
    yield
    broken.clear()


@pytest.mark.parametrize("kind", JOBS)
def test_a_replay_follows_what_the_world_decided(kind: str, home: Path) -> None:
    calm = JOBS[kind]().run(many(7), seed=3)
    broken.update({("s01", 0), ("s04", 1), ("s05", 1), ("s02", 2)})
    first = JOBS[kind]().run(many(7), seed=3)
    assert first.digest != calm.digest  # the world was another one
    broken.clear()  # a day later, all cables are in place
    for replay in (first, first.run, first.folder):
        again = JOBS[kind]().run(many(7), seed=3, replay=replay)
        assert again.digest == first.digest and again.run != first.run
        assert [drop_seconds(line) for line in again.history] == [drop_seconds(line) for line in first.history]
        assert (again.best_round, again.best and digest(again.best)) == (
            first.best_round, first.best and digest(first.best))  # fmt: skip
    assert launch.verify(first.folder, JOBS[kind](), many(7))["same"]


def drop_seconds(line: Any) -> dict[str, Any]:
    return {k: v for k, v in line.items() if k != "seconds"}


def test_a_replay_of_a_replay_is_the_same_run(home: Path) -> None:
    first = JOBS["over-selected"]().run(many(7))
    again = JOBS["over-selected"]().run(many(7), replay=first)
    third = JOBS["over-selected"]().run(many(7), replay=again)
    assert first.digest == again.digest == third.digest


def test_a_replay_ends_where_a_clock_ended_the_original(home: Path) -> None:
    clocked = job(rounds=None, stop=wall_time(0.05), learner=learner(lr=0.01), evaluate=2)
    first = clocked.run(SITES)
    patient = clocked.replace(stop=wall_time(1e6))
    again = patient.run(SITES, replay=first)
    assert again.digest == first.digest and again.rounds == first.rounds and again.reason == first.reason


def test_a_replay_may_be_shorter(home: Path) -> None:
    first = job(rounds=4).run(SITES)
    assert job(rounds=4).run(SITES, replay=first, rounds=2).digest == job(rounds=2).run(SITES).digest


def test_verify_says_where_another_job_differs(home: Path) -> None:
    first = job(rounds=3).run(SITES)
    found = launch.verify(first.folder, job(rounds=3, learner=learner(lr=0.25)), SITES)
    assert found["same"] is False and found["digest"] == first.digest != found["replayed"]
    assert found["why"].startswith("round 0") and "the Job is not the one that was run" in found["why"]


def test_verify_says_where_other_data_differ(home: Path) -> None:
    first = job(rounds=3).run(SITES)
    found = launch.verify(first.folder, job(rounds=3), {**SITES, "north": SITES["south"]})
    assert found["same"] is False and found["why"] == "round 0"


def test_a_site_that_is_gone_for_good_is_named(home: Path) -> None:
    first = job().run(SITES)
    with pytest.raises(JobError, match="asks site 'south', which is not here: give its data"):
        job().run({name: s for name, s in SITES.items() if name != "south"}, replay=first)


def test_a_run_that_is_not_finished_is_not_verified(home: Path) -> None:
    def stop(line: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch.run(job(), SITES, folder=home / "runs" / "cut", told=stop)
    with pytest.raises(FoedusError, match="run cut is not finished: `foedus resume cut` goes on with it"):
        launch.verify(home / "runs" / "cut", job(), SITES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE journal SET body = replace(body, 'south', 'south2') WHERE kind = 'close' AND seq < 6", "was changed"),
        ("DELETE FROM journal WHERE seq = 4", "row 4 is missing"),
        ("UPDATE journal SET at = at + 1 WHERE seq = 2", "row 2 was changed"),
        ("UPDATE journal SET kind = 'event' WHERE seq = 3", "row 3 was changed"),
    ],
)
def test_a_journal_that_was_tampered_with_is_neither_read_nor_gone_on_with(change: str, said: str, home: Path) -> None:
    first = job().run(SITES)
    with sqlite3.connect(first.folder / "run.db") as db:
        db.execute(change)
    db.close()
    for use in (
        lambda: runs.result(first.run),
        lambda: job().run(SITES, replay=first),
        lambda: launch.verify(first.folder, job(), SITES),
        lambda: launch.run(job(), SITES, folder=first.folder),
    ):
        with pytest.raises(JournalError, match=said):
            use()
    assert [line["state"] for line in runs.listed()] == ["damaged"]


def test_what_is_listed_are_runs_with_their_state(home: Path) -> None:
    assert runs.listed() == []
    first = job(rounds=3, evaluate=2, stop=None).run(SITES)
    second = job(name="second", rounds=None, stop=wall_time(1e-9), evaluate=5).run(SITES)
    with pytest.raises(ZeroDivisionError):
        launch.run(job(), SITES, folder=home / "runs" / "zz-cut", told=lambda line: 1 / 0)
    found = runs.listed()
    assert {line["run"] for line in found} == {first.run, second.run, "zz-cut"}
    state = {line["run"]: (line["state"], line["rounds"], line["digest"]) for line in found}
    assert state[first.run] == ("finished", 3, first.digest) and state[second.run] == ("finished", 1, second.digest)
    assert state["zz-cut"][:2] == ("open", 1)
