"""Sites that join, leave, crash and return while a run goes on, and runs that wait for them, as the journal tells it.
A gate at a site holds the run in a round for as long as a test needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from federations import accepted, counted, finished, in_training, kinds, simulated, started, submit, until
from foedus import jobfile, launch
from foedus.loopback import Federation
from foedus.remote import Run
from toys import JOB, calls, gate, make_sites

pytestmark = pytest.mark.processes

THREE = ["east", "north", "south"]
Made = tuple[Federation, dict[str, Path]]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with started(tmp_path_factory.mktemp("federation"), THREE) as found:
        yield found


@pytest.fixture
def made(federation: Made) -> Made:
    """The federation, whose sites have not trained in this test."""
    for site in federation[1].values():
        (site / "calls").unlink(missing_ok=True)
        gate(site, None)
    return federation


def test_joining_leaving_and_crashing_show_in_roster_and_close_rows_round_by_round(made: Made, tmp_path: Path) -> None:
    federation, sites = made
    gate(sites["north"], 2)
    gate(sites["south"], 6)
    run = submit(federation, rounds=9)
    in_training(sites["north"], 3)  # round 2 is under way
    late = make_sites(tmp_path, ["late"], first=9)
    federation.join("late", {"data": late["late"]})
    until(lambda: event(run, "joined", "late"))  # takes part from round 3 on
    gate(sites["north"], 4)
    in_training(sites["north"], 5)  # round 4
    until(lambda: accepted(run, "east", 4))
    federation.site("east", "leave")  # takes part until round 4
    gate(sites["north"], 6)
    in_training(sites["south"], 7)  # round 6
    federation.kill("south")
    for site in ("north", "south"):
        gate(sites[site], None)
    until(lambda: accepted(run, "north", 6) and accepted(run, "late", 6))  # all but the one that crashed
    federation.start_site("south")
    result = finished(run)

    with_late, without_east = ["east", "late", "north", "south"], ["late", "north", "south"]
    assert rosters(run) == {0: THREE, 3: with_late, 5: without_east}
    by_round = [THREE] * 3 + [with_late] * 2 + [without_east] * 4
    assert counted(run) == by_round  # the site that crashed counts in its own round, and in those that follow
    assert {("joined", "late"), ("left", "east")} <= events(run)
    sites |= late
    assert calls(sites, "begin") == {"east": 5, "north": 9, "south": 10, "late": 6}
    again = launch.run(jobfile.load(JOB, {"rounds": "9"}).job, sites, replay=result, folder=tmp_path / "replay")
    assert again.digest == result.digest

    federation.site("east", "return")
    federation.kill("east")  # leaving has stopped it
    federation.start_site("east")


def test_below_min_sites_a_run_pauses_and_goes_on_when_they_return_also_after_a_restart(
    made: Made, tmp_path: Path
) -> None:
    federation, sites = made
    options: dict[str, Any] = {"rounds": 4, "min_sites": len(sites), "evaluate": 0}
    gate(sites["north"], 1)
    run = submit(federation, **options)
    in_training(sites["north"], 2)  # round 1
    until(lambda: accepted(run, "south", 1))
    federation.site("south", "pause")
    until(lambda: event(run, "left", "south"))
    gate(sites["north"], None)
    why = f"{len(sites) - 1} of the {len(sites)} sites needed take part"
    restarted_while_paused(federation, run, why)
    assert len(kinds(run, "step")) == 2  # rounds 0 and 1
    federation.site("south", "return")
    result = finished(run)
    assert rosters(run) == {0: sorted(sites)} and counted(run) == [sorted(sites)] * 4
    assert result.digest == simulated(sites, tmp_path / "sim", **options)


def test_a_run_that_lost_a_site_in_a_round_asks_again_however_often_and_counts_it_when_it_returns(
    made: Made, tmp_path: Path
) -> None:
    """Each hello of a site has a paused run ask again: over days, that is often."""
    federation, sites = made
    options: dict[str, Any] = {"rounds": 3, "min_sites": len(sites), "evaluate": 0}
    gate(sites["south"], 1)
    run = submit(federation, **options)
    in_training(sites["south"], 2)  # round 1
    until(lambda: accepted(run, "north", 1))
    federation.site("south", "pause")
    restarted_while_paused(federation, run, "too few updates; south: lost (it left)")
    while (attempts := len(kinds(run, "lost"))) < 20:
        run.steer("resume")
        until(lambda: len(kinds(run, "lost")) > attempts)
    assert len(kinds(run, "step")) == 1
    gate(sites["south"], None)
    federation.site("south", "return")
    result = finished(run)
    assert max(row["attempt"] for row in kinds(run, "accepted")) >= 20
    assert rosters(run) == {0: sorted(sites)} and counted(run) == [sorted(sites)] * 3
    assert result.digest == simulated(sites, tmp_path / "sim", **options)


def restarted_while_paused(federation: Federation, run: Run, why: str) -> None:
    until(lambda: paused(run, why))
    federation.kill("server")
    federation.start_server()
    until(lambda: paused(run, why))


def paused(run: Run, why: str) -> bool:
    told = run.status()
    return told["state"] == "paused" and why in told["why"]


def events(run: Run) -> set[tuple[str, str]]:
    return {(row["what"], row["site"]) for row in kinds(run, "event")}


def event(run: Run, what: str, site: str) -> bool:
    return (what, site) in events(run)


def rosters(run: Run) -> dict[int, list[str]]:
    """The roster from each round on in which it changed."""
    return {row["round"]: row["sites"] for row in kinds(run, "roster")}
