"""What a leaver does to a journey and to a ring in a real federation: it is passed by, and training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from federations import finished, in_training, kinds, started, submit, until
from foedus import jobfile, launch
from foedus.loopback import Federation
from foedus.remote import Run
from toys import JOB, gate

pytestmark = pytest.mark.processes

THREE = ["east", "north", "south"]
Made = tuple[Federation, dict[str, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with started(tmp_path_factory.mktemp("federation"), THREE) as found:
        yield found


@pytest.mark.parametrize("topology", ["cyclic", "gossip"])
def test_who_leaves_in_the_middle_of_a_round_is_passed_by(made: Made, topology: str, tmp_path: Path) -> None:
    federation, sites = made
    for site in sites.values():
        (site / "calls").unlink(missing_ok=True)
    gate(sites["north"], 1)
    run = submit(federation, rounds=4, evaluate=0, topology=topology)
    in_training(sites["north"], 2)  # round 1 is under way
    federation.site("north", "leave")
    result = finished(run)
    assert by_round(run, "counted") == [THREE, *[["east", "south"]] * 3]
    assert by_round(run, "lost") == [[], ["north"], [], []]

    gate(sites["north"], None)
    options = {"rounds": "4", "evaluate": "0", "topology": topology}
    again = launch.run(jobfile.load(JOB, options).job, sites, replay=result, folder=tmp_path / "replay")
    assert again.digest == result.digest
    federation.site("north", "return")
    federation.kill("north")  # leaving has stopped it
    federation.start_site("north")
    until(lambda: any(s["site"] == "north" and s["state"] == "reachable" for s in federation.remote().sites()))


def by_round(run: Run, status: str) -> list[list[str]]:
    """The sites of each round whose Tasks ended so for them."""
    found: dict[int, set[str]] = {}
    for row in kinds(run, "close"):
        found.setdefault(row["round"], set()).update(site for site, what, *_ in row["outcomes"] if what == status)
    return [sorted(sites) for _, sites in sorted(found.items())]
