"""What a simulation shows of local state, cohorts, refills and the best model, over real agents and a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from federations import accepted, counted, finished, in_training, kinds, simulated, started, submit, until
from foedus import frames, jobfile, launch
from foedus.loopback import Federation
from foedus.params import digest
from foedus.result import Result
from toys import JOB, gate

pytestmark = pytest.mark.processes

SITES = ["east", "north", "south"]
Made = tuple[Federation, dict[str, Path]]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with started(tmp_path_factory.mktemp("federation"), SITES, slow=0.1) as found:
        yield found


@pytest.fixture
def made(federation: Made) -> Made:
    """The federation, whose sites have not trained in this test."""
    for site in federation[1].values():
        (site / "calls").unlink(missing_ok=True)
        gate(site, None)
    return federation


def calm(sites: dict[str, Path], folder: Path, replay: Result | None = None, **options: Any) -> Result:
    """The same run in `local`."""
    job = jobfile.load(JOB, {k: str(v) for k, v in options.items()}).job
    return launch.run(job, sites, replay=replay, folder=folder)


@pytest.mark.parametrize("cohort, rule", [(0, 0), (2, 0), (2, 1)], ids=["everybody", "cohorts", "by a rule"])
def test_local_state_and_the_best_model_are_those_of_a_simulation(
    made: Made, tmp_path: Path, cohort: int, rule: int
) -> None:
    federation, sites = made
    options = {"rounds": 5, "cohort": cohort, "rule": rule, "best": "loss"}
    run = submit(federation, stateful=1, **options)
    result, local = finished(run), calm(sites, tmp_path / "local", stateful=1, **options)
    assert (result.digest, result.best_round) == (local.digest, local.best_round)
    assert result.best is not None and local.best is not None and digest(result.best) == digest(local.best)
    assert [len(found) for found in counted(run)] == [cohort or 3] * 5
    assert result.digest != simulated(sites, tmp_path / "stateless", **options)  # the state is felt

    for site in SITES:
        kept = federation.site_home(site) / "sites" / site / "models" / run.id
        models = {name: kept / f"{name}.safetensors" for name in ("final", "best")}
        until(lambda models=models: all(path.exists() for path in models.values()))
        found = {name: digest(frames.read_model(path)) for name, path in models.items()}
        assert found == {"final": local.digest, "best": digest(local.best)}


def test_an_over_selected_cohort_that_drops_the_last_keeps_no_state_of_it(made: Made, tmp_path: Path) -> None:
    federation, sites = made
    options = {"rounds": 6, "stateful": 1, "cohort": 2, "over": 1.5, "quorum": 2}
    run = submit(federation, **options)
    result = finished(run)
    assert all(len(found) == 2 for found in counted(run))
    asked = [sorted(row["asked"]) for row in kinds(run, "task") if row["task"] == 0]
    assert len(asked) == 6 and asked[0] == SITES  # half as many again as it needs
    dropped = [site for row in kinds(run, "close") for site, status, *_ in row["outcomes"] if status == "dropped"]
    assert dropped
    assert result.digest == calm(sites, tmp_path / "replay", result, **options).digest


@pytest.mark.parametrize(
    "quorum, stateful, refilled", [(2, 0, True), (1, 1, False)], ids=["refilled at each arrival", "with local state"]
)
def test_buffered_asynchronous_training_counts_late_updates_and_has_no_more_at_work_than_it_says(
    made: Made, tmp_path: Path, quorum: int, stateful: int, refilled: bool
) -> None:
    federation, sites = made
    options = {"rounds": 6, "late": "keep", "busy": 2, "quorum": quorum, "stateful": stateful}
    gate(sites["east"], 0)  # of the two that begin; it comes three rounds late
    gate(sites["north"], 3)
    run = submit(federation, **options)
    until(lambda: len(kinds(run, "step")) == 3)
    gate(sites["east"], None)
    until(lambda: accepted(run, "east", 0))
    gate(sites["north"], None)
    result = finished(run)
    assert bool(kinds(run, "asked")) == refilled
    assert most_at_work(run.rows()[0]) == 2
    closed = {row["round"]: row["counted"] for row in kinds(run, "close") if row["task"] == 0}
    assert [len(closed[round]) for round in range(6)] == [quorum] * 6
    assert ["east", 0, 0] in closed[3]
    assert result.digest == calm(sites, tmp_path / "replay", result, **options).digest


def most_at_work(rows: list[list[Any]]) -> int:
    """How many sites had a training Task at one time, by the order of the journal's rows."""
    work: set[tuple[str, int]] = set()
    most = 0
    for _, _, kind, body, *_ in rows:
        if kind in ("task", "asked") and body["task"] == 0:
            work |= {(site, body["round"]) for site in body.get("asked", body.get("sites", ()))}
        elif kind in ("accepted", "declined", "refused", "lost") and body["task"] == 0:
            work.discard((body["site"], body["round"]))
        most = max(most, len(work))
    return most


def test_a_site_that_lost_its_local_state_declines_by_that_name_and_the_others_go_on(
    made: Made, tmp_path: Path
) -> None:
    federation, sites = made
    options = {"rounds": 5, "stateful": 1}
    gate(sites["north"], 2)
    run = submit(federation, **options)
    in_training(sites["north"], 3)  # round 2
    until(lambda: accepted(run, "south", 2))
    kept = federation.site_home("south") / "sites" / "south" / "work" / run.id / "kept"
    lost = list(kept.glob("*.local"))
    for path in lost:
        path.unlink()
    gate(sites["north"], None)
    result = finished(run)
    assert sorted(path.name for path in lost) == ["1-0-0.local", "2-0-0.local"]  # what counted, and what was pending
    told = [(row["round"], row["site"], row["why"]) for row in kinds(run, "declined")]
    assert told == [(round, "south", "local state lost") for round in (3, 4)]
    assert counted(run) == [SITES] * 3 + [["east", "north"]] * 2
    assert result.digest == calm(sites, tmp_path / "replay", result, **options).digest
