"""Runs at a real server that starts again, finds damage, is told to stop, or waits for sites that do not come."""

import hashlib
import sqlite3
import threading
import time

import numpy as np
import pytest

from foedus.errors import FoedusError
from foedus.params import Params, digest
from foedus.server import conductor
from foedus.store.blobs import Blobs
from foedus.wire.link import Stopped
from server_rig import Rig, Scripted, packed, sums, task_id

pytestmark = pytest.mark.processes

JOB = """
import glob
import os
import shutil
import numpy as np
import foedus as fd
from foedus.algorithms.rounds import delta, rounds
from foedus.numpy import NumpyLearner


def gradient(p, x, y):
    return x[:, 0], {"w": p["w"]}


def harm():
    pass


def step(state, total, context):
    if not os.path.exists("harmed"):
        open("harmed", "w").close()
        harm()
    return state + total.params


learner = NumpyLearner({"w": np.zeros(3, np.float32)}, gradient, lambda p, x: x[:, 0], lr=0.1)
algorithm = rounds(lambda state: state, delta(), step)
job = fd.Job(algorithm, learner, rounds=2, evaluate=0)
"""
TWICE = JOB.replace(
    "algorithm = rounds(lambda state: state, delta(), step)",
    """
def round(state, context):
    first = yield fd.Task("train", state, context.cohort)
    second = yield fd.Task("train", state, context.cohort)
    return step(state, first, context) + second.params


algorithm = fd.Algorithm(lambda params: params, round, {"train": delta()})""",
)
ONES = packed(w=np.ones(3, np.float32))
CHANGED = (
    "with open(glob.glob('total-0-0.*')[0], 'r+b') as file:\n        file.seek(-4, 2)\n        file.write(bytes(4))"
)
REMOVED = "os.unlink(glob.glob('total-0-0.*')[0])"
LOST = "shutil.rmtree('../../updates')"


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    made.close()


def harming(*lines):
    """A job of two Tasks a round. Its first step does this to the first one's Total, which is journaled by then, and
    ends with kill -9."""
    return TWICE.replace("    pass\n", "".join(f"    {line}\n" for line in (*lines, "os.kill(os.getpid(), 9)")))


def played(rig, site, run, tasks=2):
    """Does the run's Tasks; each adds 1."""
    for _ in range(tasks):
        assert site.send(site.task(run), ONES)["status"] == "accepted"
    rig.until(lambda: rig.hub.runs[run].over)


def test_equal_updates_of_one_site_in_two_runs_are_deleted_when_both_are_settled(rig):
    """They are one file: the first run's end takes nothing from the second."""
    north, south = Scripted(rig, "north"), Scripted(rig, "south")
    first, second = rig.submit(JOB), rig.submit(JOB)
    for site, run, yes in ((north, first, True), (south, first, False), (north, second, True), (south, second, True)):
        site.ready(run, yes)
    assert north.send(north.task(second), ONES)["status"] == "accepted"
    played(rig, north, first)
    assert south.send(south.task(second), ONES)["status"] == "accepted"
    for site in (north, south):
        assert site.send(site.task(second), ONES)["status"] == "accepted"
    rig.until(lambda: rig.hub.runs[second].over)
    assert {rig.hub.runs[run].state for run in (first, second)} == {"finished"}
    rig.until(lambda: not [path for path in (rig.place.folder / "updates").rglob("*") if path.is_file()])


def cut(site, order):
    """Sends the first bytes of an update, and hangs up."""
    data, file = packed(w=np.zeros(10**6, np.float32)), site.rig.home / "cut.update"
    file.write_bytes(data)

    def told(_):
        raise Stopped("the owner's machine went to sleep")

    with pytest.raises(Stopped):
        site.link.upload(upload_of(order), file, 0, sha256(data), told)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def upload_of(order):
    return f"/v1/uploads/{task_id(order)}"


def sent(rig, site="south"):
    """The names of the files that hold what the site sent."""
    return [path.name for path in (rig.place.folder / "updates" / site).rglob("*") if path.is_file()]


@pytest.mark.parametrize("came", ["a part of it", "all of it, unannounced"])
def test_what_came_of_an_update_goes_when_its_round_is_settled_without_it(rig, came):
    north, south = Scripted(rig, "north"), Scripted(rig, "south")
    run = rig.submit(JOB.replace("evaluate=0", "evaluate=0, quorum=1"))
    north.ready(run)
    south.ready(run)
    order = south.task(run)
    if came == "a part of it":
        cut(south, order)
    else:
        south.upload(order, ONES)
    rig.until(lambda: sent(rig))
    assert north.send(north.task(run), ONES)["status"] == "accepted"
    north.task(run)  # of the second round
    rig.until(lambda: not sent(rig))
    assert not rig.hub.runs[run].over


def test_a_part_of_an_update_outlives_the_server_while_somebody_waits_for_it(rig):
    south, run = Scripted(rig, "south"), rig.submit(JOB)
    south.ready(run)
    order = south.task(run)
    cut(south, order)
    rig.until(lambda: sent(rig))
    with rig.hub.updates("south").part(f"{run}/7/0/0") as part:  # a Task that is none
        part.append(b"an update")
    assert len(sent(rig)) == 2
    rig.restart()
    assert len(sent(rig)) == 1
    again = Scripted.again(south)
    offset = again.link.call("GET", upload_of(order))["offset"]
    assert offset > 0
    file = rig.home / "cut.update"
    assert again.link.upload(upload_of(order), file, offset, sha256(file.read_bytes())).status == 200
    assert sent(rig) == [sha256(file.read_bytes())]


@pytest.mark.parametrize("harm", [CHANGED, REMOVED], ids=["changed", "removed"])
def test_a_damaged_total_is_folded_again_from_the_updates_to_the_same_digest(rig, harm):
    run, site = rig.submit(harming(harm)), Scripted(rig, "north")
    site.ready(run)
    played(rig, site, run, tasks=4)
    assert rig.hub.runs[run].state == "finished"
    assert rig.rows(run, "end")[0]["digest"] == digest(Params({"w": np.full(3, 4, np.float32)}))
    (one,) = {row["digest"] for row in rig.rows(run, "total")}  # the same updates each time
    assert len(one) == 64
    assert [row["what"] for row in rig.rows(run, "event")].count("run worker restarted") == 1


def test_a_damaged_total_without_its_updates_is_a_clear_error(rig):
    run, site = rig.submit(harming(CHANGED, LOST)), Scripted(rig, "north")
    site.ready(run)
    for _ in range(2):
        site.send(site.task(run), ONES)
    live = rig.hub.runs[run]
    rig.until(lambda: live.over)
    assert live.state == "failed"
    assert live.why.startswith("round 0: the update of 'north' is gone, and the Total of it is damaged; restore the")


def test_a_finished_run_cannot_be_stopped(rig):
    run, site = rig.submit(JOB), Scripted(rig, "north")
    site.ready(run)
    played(rig, site, run)
    with pytest.raises(FoedusError, match=f"run {run} is finished already: there is nothing to stop"):
        rig.owner_link().call("POST", f"/v1/runs/{run}/stop", {})
    assert rig.hub.runs[run].state == "finished"
    rig.restart()
    assert rig.hub.runs[run].state == "finished"


def test_a_run_that_is_stopped_twice_is_stopped(rig):
    run, link = rig.submit(JOB), rig.owner_link()
    for _ in range(2):  # the first answer may have been lost
        assert link.call("POST", f"/v1/runs/{run}/stop", {}) == {"run": run}
    assert rig.hub.runs[run].state == "stopped"


def test_a_server_starts_although_it_cannot_read_one_runs_journal(rig):
    """One whose rows make no sense, one that was changed in the file; the third goes on."""
    senseless, changed, sound = (rig.submit(JOB, name=name) for name in ("senseless", "changed", "sound"))
    site = Scripted(rig, "north")
    for run in (senseless, changed, sound):
        site.ready(run)
        site.task(run)
    row = {"round": 0, "task": 0, "site": "north", "attempt": 0, "digest": "a" * 64, "size": 1, "weight": "many"}
    rig.hub.runs[senseless].journal.add("accepted", **row, metrics="", stateful=False, build="")
    with sqlite3.connect(rig.place.folder / "state.db") as db:
        db.execute("update journal set body = '{}' where kind = 'task' and run = ?", [changed])
    db.close()
    rig.restart()
    states = {run: (live.state, live.why) for run, live in rig.hub.runs.items()}
    assert states[senseless][0] == states[changed][0] == "failed"
    assert "its journal cannot be read: its rows make no sense (ValueError: invalid hexadecimal" in states[senseless][1]
    assert "was changed after it was written; restore" in states[changed][1]
    north = Scripted.again(site)
    played(rig, north, sound)
    assert rig.hub.runs[sound].state == "finished"
    told = {row["run"]: row for row in rig.owner_link().call("GET", "/v1/runs")["runs"]}
    assert told[senseless]["state"] == "failed" and told[senseless]["why"] == states[senseless][1]
    with pytest.raises(FoedusError, match="make no sense"):
        rig.owner_link().call("POST", f"/v1/runs/{senseless}/resume", {})


def test_a_dead_site_holds_no_start(rig, monkeypatch):
    monkeypatch.setattr(conductor, "AWAY", 0.2)
    north, _ = Scripted(rig, "north"), rig.site("south")  # which is enrolled, said hello, and is never heard of again
    run, began = rig.submit(JOB), time.monotonic()
    north.ready(run)
    assert north.send(north.task(run), ONES)["status"] == "accepted"
    assert time.monotonic() - began < 10
    assert rig.rows(run, "roster")[0]["sites"] == ["north"]


def test_a_site_that_is_there_is_waited_for_until_it_has_answered(rig, monkeypatch):
    monkeypatch.setattr(conductor, "AWAY", 0.2)
    north, south = Scripted(rig, "north"), Scripted(rig, "south")
    run, other = rig.submit(JOB), Scripted.again(south)
    polled = threading.Thread(target=other.link.call, args=("POST", "/v1/poll", {"prepared": [run], "wait": 20}))
    polled.start()
    north.ready(run)
    rig.until(lambda: time.monotonic() - rig.hub.members.seen["south"] > 1.0)  # its poll is still open
    assert rig.rows(run, "roster") == []
    south.ready(run)
    polled.join()  # there is a Task
    assert rig.rows(run, "roster")[0]["sites"] == ["north", "south"]


def test_metrics_that_another_rounds_end_has_just_deleted_are_stored_again(rig, monkeypatch):
    """Equal metrics are one file, and the last round's may go while this round's come."""
    north, put, first = Scripted(rig, "north"), Blobs.put, []
    run = rig.submit(JOB.replace("rounds=2, evaluate=0", "rounds=1, evaluate=1"))
    north.ready(run)

    def raced(self, data):
        found = put(self, data)
        if not first:
            self.delete(found)
        first.append(found)
        return found

    monkeypatch.setattr(Blobs, "put", raced)
    assert north.send(north.task(run), ONES)["status"] == "accepted"
    loss = {"loss": sums("float64", 1.0, 1.0, 1.0)}
    assert north.send(north.task(run), packed(), metrics=loss)["status"] == "accepted"
    rig.until(lambda: rig.hub.runs[run].over)
    assert rig.hub.runs[run].state == "finished" and len(first) == 2


def test_an_update_that_waits_when_the_run_ends_is_dropped_and_nothing_of_it_is_left(rig):
    """With late="keep" it is wanted until the very end, which nobody looks at it before."""
    north, south = Scripted(rig, "north"), Scripted(rig, "south")
    job = JOB.replace("rounds=2, evaluate=0", "rounds=1, evaluate=0, quorum=1, late='keep'")
    run = rig.submit(job.replace("    pass\n", "    import time\n    time.sleep(3)\n"))
    north.ready(run)
    south.ready(run)
    order = south.task(run)
    assert north.send(north.task(run), ONES)["status"] == "accepted"
    rig.until(lambda: rig.rows(run, "total"))
    loss = {"train_loss": sums("float64", 1.0, 1.0, 1.0)}
    receipt = south.send(order, packed(w=np.full(3, 7, np.float32)), metrics=loss)
    assert receipt == {"status": "dropped", "why": "nobody waits for it any more"}
    assert rig.hub.runs[run].over and rig.rows(run, "end")
    rig.until(lambda: not sent(rig))
