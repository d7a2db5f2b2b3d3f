"""A federation is a site: two levels, simulated and as real servers and agents, with the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federations import finished, joined, until
from foedus import edge, fedavg, fedprox, hierarchical, jobfile, launch
from foedus.errors import JobError, Paused
from foedus.loopback import Federation
from tiny import job as small
from tiny import played
from toys import make_sites

JOB = Path(__file__).parent / "jobs" / "edges" / "job.py"
BELOW = JOB.with_name("below.py")
GROUPS = {"land": ["ebro", "elbe"], "sea": ["faro", "fano", "fehmarn"]}


def folders(place: Path) -> dict[str, Path]:
    """edge -> the folder of its sites' folders."""
    for i, (name, members) in enumerate(GROUPS.items()):
        make_sites(place / name, members, first=10 * i)
    return {name: place / name for name in GROUPS}


def simulated(data: Any, folder: Path, rounds: int = 2) -> Any:
    return launch.run(jobfile.load(JOB).job.replace(rounds=rounds), data, backend="local", folder=folder)


def test_two_levels_are_rounds_in_groups_weighed_by_their_examples(tmp_path: Path) -> None:
    """With whole batches, so that nothing is drawn."""
    learner: Any = jobfile.load(BELOW).job.learner
    made = edge(BELOW, rounds=3)
    whole = type(learner)(learner.model, learner.gradient, learner.predict, lr=0.05, batch_size=None, metrics=["rmse"])
    made.job, made.learner = made.job.replace(learner=whole), whole
    data = folders(tmp_path / "data")
    above = small(fedavg(), learner=made, data=made.load, rounds=2)
    flat = {p.name: p for place in data.values() for p in place.iterdir()}
    below = made.job.replace(algorithm=hierarchical(GROUPS, 3, fedprox(0.01)), rounds=2)
    two, one = played(above, data)[0], played(below, flat)[0]
    for name in one.params:
        np.testing.assert_allclose(two.params[name], one.params[name], rtol=1e-5)
    np.testing.assert_allclose(two.history[-1]["rmse"], one.history[-1]["rmse"], rtol=1e-5)
    np.testing.assert_allclose(two.history[-1]["test_rmse"], one.history[-1]["test_rmse"], rtol=1e-5)


def test_an_edge_takes_a_mapping_and_says_what_it_cannot_do(tmp_path: Path) -> None:
    data = folders(tmp_path / "data")
    named = {name: {p.name: p for p in place.iterdir()} for name, place in data.items()}
    assert simulated(named, tmp_path / "a").digest == simulated(data, tmp_path / "b").digest
    made = edge(BELOW)
    with pytest.raises(Paused, match="an edge takes no steps of its own to correct"):
        played(small(fedprox(0.1), learner=made, data=made.load, rounds=1), data)
    with pytest.raises(JobError, match="rounds=0"):
        edge(BELOW, rounds=0)


def allow_network(upper: Federation, name: str) -> None:
    policy = upper.site_home(name) / "sites" / name / "policy.toml"
    policy.write_text(policy.read_text().replace("# network = true", "network = true"))


@pytest.mark.processes
@pytest.mark.long
def test_an_edge_server_is_a_site_of_a_federation_of_real_processes(tmp_path: Path) -> None:
    data = {"land": folders(tmp_path / "data")["land"]}
    members = {p.name: p for p in sorted(data["land"].iterdir())}
    wanted = simulated(data, tmp_path / "run", rounds=1)
    with joined(tmp_path / "land", members) as land, joined(tmp_path / "home", {"land": land.home}) as upper:
        allow_network(upper, "land")
        result = upper.remote().submit(JOB, rounds=1).wait()
        below = land.remote().runs()
    assert result.digest == wanted.digest and result.metrics == wanted.metrics
    assert [run["state"] for run in below] == ["finished"] * 2  # it trained, and it measured


@pytest.mark.processes
@pytest.mark.long
def test_an_edge_that_is_killed_at_work_finds_its_run_again(tmp_path: Path) -> None:
    data = folders(tmp_path / "data")
    members = {name: {p.name: p for p in sorted(place.iterdir())} for name, place in data.items()}
    wanted = simulated(data, tmp_path / "run")
    with (
        joined(tmp_path / "land", members["land"]) as land,
        joined(tmp_path / "sea", members["sea"]) as sea,
        joined(tmp_path / "home", {"land": land.home, "sea": sea.home}) as upper,
    ):
        for name in GROUPS:
            allow_network(upper, name)
        run = upper.remote().submit(JOB)
        until(lambda: sea.remote().runs(), 60)
        upper.kill("sea")
        upper.start_site("sea")
        result, below = finished(run, 180), sea.remote().runs()
    assert result.digest == wanted.digest and result.metrics == wanted.metrics
    assert [each["state"] for each in below] == ["finished"] * 4
