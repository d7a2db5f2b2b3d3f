"""Simulated time: three ways of training compared by hand, devices that leave or fail, and replays of all of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foedus as fd
from foedus import launch
from foedus.algorithms import fedavg
from foedus.clock import Clock, Trace, Trip, Watch, clock, lognormal, trace
from foedus.core import Deadline
from foedus.errors import FoedusError, JobError, Paused
from foedus.job import Job
from foedus.keys import key
from tiny import SITES, job, many

SPEEDS = {"north": 10.0, "south": 2.5, "west": 1.0}  # a training takes 1 s, 4 s and 10 s
THREE = clock(work=10.0, speed=SPEEDS)
PATIENT = Deadline(stall=100.0)


def ran(made: Job, clock: Clock = THREE, sites: Any = SITES, **more: Any) -> fd.Result:
    return made.run(sites, backend="local", clock=clock, **more)


def clocks(result: fd.Result) -> list[float]:
    return [line["clock"] for line in result.history]


def counted(result: fd.Result) -> list[list[str]]:
    """Of each training Task, whose update was counted, and from which round it was."""
    rows = launch.runs.journal(result.folder).all("close")
    return [[f"{site}{round}" for site, round, _ in row["counted"]] for row in rows]


# Three sites that take 1 s, 4 s and 10 s.


def test_a_synchronous_round_takes_as_long_as_its_slowest_site(home: Path) -> None:
    found = ran(job(rounds=3, evaluate=0))
    assert clocks(found) == [10.0, 20.0, 30.0]
    assert counted(found) == [[f"north{r}", f"south{r}", f"west{r}"] for r in range(3)]


def test_an_over_selected_round_takes_as_long_as_the_last_site_that_it_needs(home: Path) -> None:
    found = ran(job(rounds=3, cohort=2, over_select=1.5, quorum=2, evaluate=0))
    assert clocks(found) == [4.0, 8.0, 12.0]
    assert counted(found) == [[f"north{r}", f"south{r}"] for r in range(3)]


def test_a_buffered_round_takes_until_the_next_updates_arrive(home: Path) -> None:
    """All set out at 0. Two arrive at 1 and 4. Then north and south set out at 4, and arrive at 5 and 8; they set out
    at 8 and north arrives at 9, west, from the first round, at 10; they set out at 10: north arrives at 11, south,
    which set out at 8, at 12.
    """
    found = ran(job(rounds=4, quorum=2, late="keep", evaluate=0))
    assert clocks(found) == [4.0, 8.0, 10.0, 12.0]
    assert counted(found) == [["north0", "south0"], ["north1", "south1"], ["north2", "west0"], ["north3", "south2"]]


def test_at_most_so_many_are_busy_at_a_time(home: Path) -> None:
    """With two at work: north and south set out at 0; north arrives at 1 and west sets out; south arrives at 4. Then
    north sets out at 4, beside west, and arrives at 5; south sets out and arrives at 9.
    """
    found = ran(job(fedavg(busy=2), rounds=2, quorum=2, late="keep", evaluate=0))
    assert clocks(found) == [4.0, 9.0]
    assert counted(found) == [["north0", "south0"], ["north1", "south1"]]


def test_evaluation_takes_no_time_and_the_clock_is_no_metric(home: Path) -> None:
    found = ran(job(rounds=2))
    assert clocks(found) == [10.0, 20.0] and "loss" in found.metrics and "clock" not in found.metrics
    assert all("clock" not in line for line in job(rounds=1).run(SITES).history)


def test_bytes_travel_both_ways(home: Path) -> None:
    """The model has 12 bytes (three float32), and so has the update: 24 bytes at 6 bytes a second are 4 s."""
    assert clocks(ran(job(rounds=2, evaluate=0), clock(work=1.0, bandwidth=6.0))) == [5.0, 10.0]


def test_several_tasks_that_are_asked_together_begin_together(home: Path) -> None:
    """Two Tasks of one round, for north (1 s) and for west (10 s): the round takes 10 s."""
    usual = fedavg()

    def round(state: Any, context: Any) -> Any:
        one, _ = yield [fd.Task("train", state, ["north"]), fd.Task("train", state, ["west"])]
        return state + one.params

    assert clocks(ran(job(usual._replace(round=round), rounds=2, evaluate=0))) == [10.0, 20.0]


# Who fails, leaves, or is not there.


def fails(site: str, at: float, clock: Clock, deadline: Deadline = PATIENT, now: float = 0.0) -> Trip:
    watch = Watch(clock)
    watch.now = now
    return watch.trip(site, 0, 0, 0, (0, 0), deadline)


def test_who_drops_out_is_waited_for_until_it_stalls(home: Path) -> None:
    """South fails for sure, at a moment of its 4 s that its key draws; 100 s later it is given up."""
    unlucky = clock(work=10.0, speed=SPEEDS, dropout={"north": 0, "south": 1, "west": 0})
    found = ran(job(rounds=1, evaluate=0, deadline=PATIENT), unlucky)
    moment = 4.0 * key(0, 0, 0, "south", "dropout", 0).numpy().random(2)[1]
    assert clocks(found) == [moment + 100.0]
    row = launch.runs.journal(found.folder).all("close")[0]
    assert [o[:3] for o in row["outcomes"]] == [
        ["north", "counted", ""], ["south", "lost", "dropped out"], ["west", "counted", ""]]  # fmt: skip


def test_a_share_of_sites_drops_out() -> None:
    watch = Watch(clock(dropout=0.25), seed=3)
    trips = [watch.trip(f"s{i}", 0, 0, 0, (0, 0), PATIENT) for i in range(4000)]
    assert 900 < sum(trip.why == "dropped out" for trip in trips) < 1100  # 1000 and 3.6 deviations
    assert all(100 <= trip.at < 101 for trip in trips if trip.why)


def test_a_deadline_ends_what_takes_too_long(home: Path) -> None:
    found = ran(job(rounds=1, evaluate=0, deadline=Deadline(stall=100.0, total=6.0)))
    assert clocks(found) == [6.0] and counted(found) == [["north0", "south0"]]


def test_a_site_that_leaves_is_lost_and_one_that_comes_soon_is_waited_for() -> None:
    windows = Trace({"a": [(0, 3), (3, 8)], "b": [(5, 50)], "c": [(500, 600)]})
    tens = clock(work=7.0, available=windows)
    assert fails("a", 0, tens) == (7.0, "a", "")  # windows that touch are one
    assert fails("a", 0, tens, now=2.0) == (108.0, "a", "not available any more")
    assert fails("b", 0, tens) == (12.0, "b", "")
    assert fails("c", 0, tens) == (100.0, "c", "not there")


def test_who_would_be_waited_for_for_ever_is_an_error() -> None:
    with pytest.raises(JobError, match="and would be waited for for ever"):
        fails("a", 0, clock(dropout=1), Deadline(stall=float("inf")))


def test_only_those_who_are_there_are_asked_and_a_round_waits_for_enough(home: Path) -> None:
    """North is there until 25, west from 20 on, south never. At 0 only north can be asked, two only from 20 on."""
    windows = Trace({"north": [(0, 25)], "south": [(1e6, 2e6)], "west": [(20, 100)]})
    alone = ran(job(rounds=2, evaluate=0), THREE._replace(available=windows))
    assert clocks(alone) == [1.0, 2.0] and counted(alone) == [["north0"], ["north1"]]
    both = ran(job(rounds=1, evaluate=0, min_sites=2), THREE._replace(available=windows))
    assert clocks(both) == [30.0] and counted(both) == [["north0", "west0"]]
    with pytest.raises(Paused, match="2 of the 3 sites needed are available, and none will be any more"):
        ran(job(rounds=1, min_sites=3), THREE._replace(available=Trace({**windows.windows, "south": [(0, 1)]})))


def test_a_cohort_is_drawn_from_those_who_are_there(home: Path) -> None:
    half = Trace({f"s{i:02}": [(0, 1e9)] if i % 2 else [(1e9, 2e9)] for i in range(20)})
    found = ran(job(rounds=5, cohort=4, evaluate=0), clock(available=half), many(20))
    rows = launch.runs.journal(found.folder).all("round")
    assert all(len(row["cohort"]) == 4 and all(int(site[1:]) % 2 for site in row["cohort"]) for row in rows)
    assert len({tuple(row["cohort"]) for row in rows}) > 1


def test_a_probability_is_drawn_for_each_site_and_hour() -> None:
    watch = Watch(clock(available=0.25), seed=1)
    there = [watch.there(f"s{i}") for i in range(4000)]
    watch.now = 3599.0
    assert there == [watch.there(f"s{i}") for i in range(4000)] and 900 < sum(there) < 1100
    watch.now = 3600.0
    assert there != [watch.there(f"s{i}") for i in range(4000)]


# Traces and models.


def test_a_trace_is_read_from_a_file_and_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("site,from,until\na,10,20\nb,0,5\na,30,40\n")
    once, again = trace(path), trace(path, period=100)
    assert once("a", 0) == (10, 20) and once("a", 19.5) == (10, 20) and once("a", 20) == (30, 40)
    assert once("a", 40) == (np.inf, np.inf)
    assert again("a", 40) == (110, 120) and again("b", 204) == (200, 205)
    assert once("stranger", 0) in (once("a", 0), once("b", 0))
    assert clock(available=path).available.describe() == once.describe() != again.describe()


def test_a_file_that_is_no_trace_is_told_by_its_name(tmp_path: Path) -> None:
    binary = tmp_path / "trace.csv"
    binary.write_bytes(b"site,from,until\n\xff\xfe,0,1\n")
    for path in (binary, tmp_path, tmp_path / "nowhere.csv"):
        with pytest.raises(FoedusError, match=re.escape(f"{path}: no trace can be read from it")):
            trace(path)


def test_a_trace_that_a_spreadsheet_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("\ufeffsite,from,until\na,0,1\n", encoding="utf-8")
    assert trace(tmp_path / "trace.csv").windows == {"a": [(0.0, 1.0)]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,from,until\na,0,1\n", "the columns of a trace are site, from, until"),
        ("site,from,until\n", "there is no window in it"),
        ("site,from,until\na,0,1\na,x,2\n", "line 3: could not convert"),
        ("site,from,until\na,2,1\n", "line 2: a window is from 0 or later until a later time"),
        ("site,from,until\na,0,5\na,4,8\n", "two windows of site 'a' overlap"),
    ],
)
def test_a_trace_that_cannot_be_read_says_where(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(FoedusError, match=said):
        trace(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "wrong",
    [{"speed": 0}, {"speed": -1}, {"dropout": 1.5}, {"available": 0}, {"bandwidth": "fast"}, {"work": {"a": -1}}],
)
def test_what_is_no_clock_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(JobError, match=f"clock\\({next(iter(wrong))}="):
        clock(**wrong)


def test_a_mapping_that_lacks_a_site_says_so(home: Path) -> None:
    with pytest.raises(JobError, match="clock\\(speed=…\\) does not name site 'north'"):
        ran(job(), clock(speed={"south": 1.0}))


def test_a_device_stays_what_it_is() -> None:
    """Half of log-normal numbers lie below their median, and logarithms have the spread that was asked for."""
    watch = Watch(fd.clock(work=lognormal(8.0, 0.5)), seed=2)
    took = [watch.seconds(f"s{i}", (0, 0)) for i in range(2000)]
    assert took == [watch.seconds(f"s{i}", (0, 0)) for i in range(2000)]
    assert 7.6 < float(np.median(took)) < 8.4 and 0.47 < float(np.std(np.log(took))) < 0.53


def test_a_clock_is_of_simulations() -> None:
    with pytest.raises(JobError, match="on backend 'network' time is real"):
        job().run(SITES, backend="network", clock=THREE)


# Replays and resumed runs.

BUSY = clock(work=lognormal(10.0, 1.0), bandwidth=1e3, dropout=0.2, available=0.6)
KINDS: dict[str, Callable[[], Job]] = {
    "synchronous": lambda: job(rounds=4, cohort=4, deadline=PATIENT),
    "over-selected": lambda: job(rounds=4, cohort=4, over_select=1.5, quorum=3, deadline=PATIENT),
    "buffered": lambda: job(fedavg(busy=4), rounds=6, quorum=2, late="keep", deadline=PATIENT),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_needs_no_clock_and_tells_the_same_times(kind: str, home: Path) -> None:
    first = ran(KINDS[kind](), BUSY, many(9), seed=4)
    again = KINDS[kind]().run(many(9), seed=4, replay=first)
    third = KINDS[kind]().run(many(9), seed=4, replay=again)
    assert first.digest == again.digest == third.digest and clocks(first) == clocks(again) == clocks(third)
    assert clocks(first) == sorted(clocks(first)) and clocks(first)[0] > 0
    assert launch.verify(first.folder, KINDS[kind](), many(9))["same"]
    assert ran(KINDS[kind](), BUSY, many(9), seed=4, workers=2).digest == first.digest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [1, 3])
def test_a_run_that_was_cut_goes_on_at_its_time(kind: str, after: int, home: Path) -> None:
    calm = ran(KINDS[kind](), BUSY, many(9), seed=4)

    def stop(line: Any) -> None:
        if line["round"] == after:
            raise KeyboardInterrupt

    folder = home / "runs" / "cut"
    with pytest.raises(KeyboardInterrupt):
        launch.run(KINDS[kind](), many(9), seed=4, backend="local", folder=folder, told=stop, clock=BUSY)
    found = launch.run(KINDS[kind](), many(9), seed=4, backend="local", folder=folder, clock=BUSY)
    assert found.digest == calm.digest and clocks(found) == clocks(calm)
    with pytest.raises(FoedusError, match="'open' row"):
        launch.run(KINDS[kind](), many(9), seed=4, backend="local", folder=folder, clock=THREE)


@pytest.mark.parametrize("rare", [0, 1e-9, -1, 1.5])
def test_a_device_that_is_hardly_ever_there_is_refused(rare: float) -> None:
    with pytest.raises(JobError, match=r"available=.*: give a probability from 0.001 to 1"):
        clock(available=rare)


def test_devices_that_are_never_there_at_once_pause_the_run() -> None:
    def turns(site: str, seconds: float) -> tuple[float, float]:
        """One hour north, one hour south."""
        hour, mine = seconds // 3600, int(site == "south")
        at = hour if hour % 2 == mine else hour + 1
        return 3600 * at, 3600 * (at + 1)

    sites = {name: SITES["north"] for name in ("north", "south")}
    with pytest.raises(Paused, match="1 of the 2 sites needed are available, and never 2 at once; mend available"):
        launch.run(job(min_sites=2), sites, backend="local", clock=clock(available=turns))


def test_windows_without_end_are_told() -> None:
    tiny = clock(work=10.0, available=lambda site, seconds: (seconds, seconds + 1e-5))
    with pytest.raises(JobError, match="site 'north' more than 100,000 windows: give it fewer and longer ones"):
        Watch(tiny).trip("north", 0, 0, 0, (0, 0), Deadline())


@pytest.mark.parametrize("said", [None, 3.0, (1.0,), (5.0, 2.0), (0.0, 0.5), ("a", "b"), (float("nan"), 9.0)], ids=str)
def test_a_function_that_returns_no_window_is_told(said: Any) -> None:
    with pytest.raises(JobError, match=r"of site 'north' at 1 s: return \(from, until\)"):
        Watch(clock(available=lambda site, seconds: said), 0)._window("north", 1.0)


@pytest.mark.parametrize("given", ["x", 3, {"work": 1}], ids=str)
def test_a_clock_that_is_none_is_refused_before_anything_runs(given: Any) -> None:
    with pytest.raises(JobError, match=r"clock=.*: give fd.clock\(…\)"):
        launch.run(job(), SITES, backend="local", clock=given)
