"""Sites that do not come on: lost by the Job's deadline or skipped by people, and the run goes on without them."""

import signal
import time

import numpy as np
import pytest

from federations import foedus, kinds, started, until
from foedus.server import tasks
from server_rig import Rig, Scripted, packed

pytestmark = pytest.mark.processes

JOB = """
import time
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner


def load(site):
    global here
    here = site.name
    return fd.Split(train=(np.ones((3, 1)), np.zeros(3)), valid=(np.ones((3, 1)), np.zeros(3)))


def fit(params, split, ctx):
    if here == "south":
        time.sleep(600)  # at work, reachable, and of no use
    params["w"] += 1


def gradient(p, x, y):
    return x[:, 0], {"w": p["w"]}


def job(stall=600.0, total=0.0, rounds=1):
    learner = NumpyLearner({"w": np.zeros(3, np.float32)}, gradient, lambda p, x: x[:, 0], train=fit)
    rules = {"evaluate": 0, "deadline": fd.Deadline(stall, total or None), "privacy": "none"}
    return fd.Job(fd.fedavg(), learner, load, rounds=rounds, **rules)
"""
ONES = packed(w=np.ones(3, np.float32))


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deadlines")
    job = folder / "code" / "job.py"
    job.parent.mkdir()
    job.write_text(JOB)
    with started(folder, ["north", "south"]) as (made, _):
        yield made, job


def outcomes(run):
    return {site: (status, why) for site, status, why, _ in kinds(run, "close")[0]["outcomes"]}


def asked(made, job, **options):
    """A run whose Task is at work at both sites."""
    run = made.remote().submit(job, {k: str(v) for k, v in options.items()})
    until(lambda: kinds(run, "accepted") and run.status()["waiting"] == {"train 0": ["south"]})
    return run


def test_a_worker_without_progress_is_stopped_tried_again_and_then_given_up(federation):
    run = asked(*federation, stall=0.5)
    result = run.wait()
    status, why = outcomes(run)["south"]
    assert status == "declined" and why == "lost: the worker made no progress for 0.5 s and was stopped"
    assert outcomes(run)["north"][0] == "counted" and result.params["w"].tolist() == [1, 1, 1]


def test_a_site_that_cannot_be_reached_is_lost_after_the_total_deadline(federation):
    made, job = federation
    run = asked(made, job, total=2)
    made.processes["south"].send_signal(signal.SIGSTOP)
    try:
        result = run.wait()
    finally:
        made.processes["south"].send_signal(signal.SIGCONT)
    assert outcomes(run)["south"] == ("lost", "not done within the Task's total deadline of 2 s")
    assert [(row["site"], row["round"], row["attempt"]) for row in kinds(run, "lost")] == [("south", 0, 0)]
    assert result.params["w"].tolist() == [1, 1, 1]


def test_people_skip_a_site_that_they_do_not_want_to_wait_for(federation):
    made, job = federation
    run = asked(made, job)
    code, said = foedus(made.home, "skip", run.id, "west")
    assert code != 0 and "nobody waits for 'west' in run" in said
    assert foedus(made.home, "skip", run.id, "south")[0] == 0
    assert run.wait().params["w"].tolist() == [1, 1, 1]
    assert outcomes(run)["south"] == ("lost", "skipped by owner")
    assert ("skipped", "by owner", "south") in {(e["what"], e["why"], e["site"]) for e in kinds(run, "event")}


def test_a_heartbeat_is_no_progress_and_a_figure_that_rises_is(tmp_path, monkeypatch):
    """By the server alone, for a site whose agent says that it lives and never that it comes on."""
    monkeypatch.setattr(tasks, "SPARE", 0.4)
    rig = Rig(tmp_path)
    try:
        north, south = Scripted(rig, "north"), Scripted(rig, "south")
        run = rig.submit(JOB, options={"stall": "0.3"})
        for site in (north, south):
            site.ready(run)
        assert north.send(north.task(run), ONES)["status"] == "accepted"
        order = south.task(run)
        beat = {k: order[k] for k in ("run", "round", "task", "attempt")}
        figure, until_then = 0, time.monotonic() + 2.0
        while time.monotonic() < until_then:  # twice as long as a site may be without progress
            figure += 1
            assert south.link.call("POST", "/v1/beat", beat | {"progress": figure}) == {"go_on": True}
        began = time.monotonic()
        rig.until(lambda: not south.link.call("POST", "/v1/beat", beat | {"progress": figure})["go_on"])
        assert time.monotonic() - began > 0.9
        (lost,) = rig.rows(run, "lost")
        assert lost["site"] == "south" and lost["why"].startswith("no progress for 1 s: ")
        rig.until(lambda: rig.hub.runs[run].state == "finished")
    finally:
        rig.close()
