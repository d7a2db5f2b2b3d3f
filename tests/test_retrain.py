"""Training again without a site gives the bits of a run that it never joined, from the checkpoint before it did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from federations import finished, foedus, in_training, kinds, simulated, started, submit, until
from foedus.loopback import Federation
from foedus.result import Result
from foedus.runs import SOURCE
from toys import JOB, calls, gate, make_sites

pytestmark = pytest.mark.processes

TWO, ROUNDS, JOINS = ["north", "south"], 6, 3  # the late site takes part from round 3 (of 0 to 5) on
Made = tuple[Federation, dict[str, Path], dict[str, Path]]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Two sites with their data, and the data of one that joins each run late."""
    folder = tmp_path_factory.mktemp("federation")
    with started(folder, TWO) as (made, sites):
        late = make_sites(folder / "late", ["late"], first=9)
        made.join("late", {"data": late["late"]})
        made.await_sites(["late"])
        made.site("late", "pause")
        yield made, sites, late


def joined_late(made: Federation, sites: dict[str, Path], late: dict[str, Path], **options: Any) -> Result:
    """A run that the late site joins."""
    for site in (sites | late).values():
        (site / "calls").unlink(missing_ok=True)
    gate(sites["north"], JOINS - 1)
    run = submit(made, rounds=ROUNDS, **options)
    in_training(sites["north"], JOINS)
    made.site("late", "return")
    until(lambda: {s["site"]: s["state"] for s in made.remote().sites()}["late"] == "reachable")
    until(lambda: any((row["what"], row.get("site")) == ("joined", "late") for row in kinds(run, "event")))
    gate(sites["north"], None)
    found = finished(run)
    made.site("late", "pause")
    assert {row["round"] for row in kinds(run, "roster")} == {0, JOINS}
    return found


@pytest.mark.parametrize(
    ("stateful", "again"),
    [(0, ROUNDS - JOINS), (1, ROUNDS)],
    ids=["stateless", "stateful"],
)
@pytest.mark.long
def test_a_federation_trains_only_what_the_site_had_a_part_in(
    federation: Made, tmp_path: Path, stateful: int, again: int
) -> None:
    """Where sites keep states of their own these are gone with the run, and all rounds are trained again."""
    made, sites, late = federation
    old = joined_late(made, sites, late, stateful=stateful)
    assert calls(sites | late)["late"] == ROUNDS - JOINS
    without = simulated(sites, tmp_path / "never", rounds=ROUNDS, stateful=stateful)
    before = calls(sites)["south"]
    made.site("late", "return")  # it is there, and is not asked
    until(lambda: {s["site"]: s["state"] for s in made.remote().sites()}["late"] == "reachable")
    code, told = foedus(made.home, "retrain", old.run, "--without", "late")
    new = finished(made.remote().run(told["run"]))
    made.site("late", "pause")
    assert code == 0 and new.digest == without != old.digest
    assert len(new.history) == ROUNDS and new.history[: ROUNDS - again] == old.history[: ROUNDS - again]
    assert calls(sites)["south"] - before == again
    assert calls(late)["late"] == ROUNDS - JOINS


@pytest.mark.long
def test_a_copy_with_the_sites_data_is_trained_again_by_the_rosters_that_there_were(
    federation: Made, tmp_path: Path
) -> None:
    made, sites, late = federation
    old = joined_late(made, sites, late, stateful=0)
    every = [word for name, path in (sites | late).items() for word in ("--site", f"{name}={path}")]
    home = old.folder.parents[1]
    code, told = foedus(home, "retrain", old.run, "--without", "north", *every)
    assert code == 0 and told["rounds"] == ROUNDS
    rows = {row["round"]: row["sites"] for row in _rows(home, told["run"], "roster")}
    assert rows == {0: ["south"], JOINS: ["late", "south"]}  # as others came and went
    assert (old.folder / SOURCE).exists()


def test_a_simulation_is_trained_again_and_verified(tmp_path: Path) -> None:
    sites = make_sites(tmp_path / "data", [*TWO, "west"])
    given = [word for name, path in sites.items() for word in ("--site", f"{name}={path}")]
    _, old = foedus(tmp_path, "run", JOB, "rounds=2", "cohort=2", *given)
    code, new = foedus(tmp_path, "retrain", old["run"], "--without", "west")
    two = {name: sites[name] for name in TWO}
    assert code == 0 and new["digest"] == simulated(two, tmp_path / "never", rounds=2, cohort=2) != old["digest"]
    assert foedus(tmp_path, "verify", new["run"])[1]["same"] is True
    assert foedus(tmp_path, "resume", new["run"])[1]["digest"] == new["digest"]
    code, said = foedus(tmp_path, "retrain", old["run"], "--without", "moon")
    assert code == 1 and said == f"foedus: run {old['run']} never had moon in a roster: there is nothing to train again"
    everybody = [word for name in sites for word in ("--without", name)]
    assert foedus(tmp_path, "retrain", old["run"], *everybody) == (
        3,
        "foedus: without north, south, west no site is left",
    )


def _rows(home: Path, run: str, kind: str) -> list[Any]:
    return [row[3] for row in json.loads(json.dumps(foedus(home, "logs", run)[1]["rows"])) if row[2] == kind]
