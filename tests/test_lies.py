"""A site that signs correctly and lies: its update is refused by name and told so, and the run goes on without it."""

from itertools import product

import numpy as np
import pytest

from foedus.aggregators.folding import MOST_WHOLE
from foedus.errors import FoedusError
from server_rig import Rig, Scripted, packed, sums

pytestmark = pytest.mark.processes

JOB = """
import numpy as np
import foedus as fd
from foedus.numpy import NumpyLearner


def gradient(p, x, y):
    return x[:, 0], {"w": p["w"], "z": p["z"]}


model = {"w": np.zeros(3, np.float32), "z": np.zeros(2)}
learner = NumpyLearner(model, gradient, lambda p, x: x[:, 0], lr=0.1)
job = fd.Job(fd.fedavg(), learner, rounds=%d, evaluate=0, metrics=["accuracy", "loss"])
"""
HONEST = packed(w=np.ones(3, np.float32), z=np.ones(2))
FEW, MANY = (1 / 3).hex(), (2.0**65).hex()
CHECKING = "site 'south', checking its update: "


def arrays(w=None, z=None, **more):
    return packed(w=np.ones(3, np.float32) if w is None else w, z=np.ones(2) if z is None else z, **more)


def metrics(**sent):
    return {"metrics": sent}


LIES = {  # what south sends, what it says besides, and why it is refused
    "weight below nothing": (HONEST, {"weight": (-1.0).hex()}, "weight -1.0 cannot be used; return a positive"),
    "weight of nothing": (HONEST, {"weight": (0.0).hex()}, "weight 0.0 cannot be used"),
    "weight nan": (HONEST, {"weight": "nan"}, "weight nan cannot be used"),
    "weight inf": (HONEST, {"weight": "inf"}, "weight inf cannot be used"),
    "weight of 53 bits": (HONEST, {"weight": FEW}, "of at most 29 significant bits"),
    "weight too large": (HONEST, {"weight": MANY}, "cannot be used"),
    "weight in words": (HONEST, {"weight": "many"}, "weight 'many' is no number"),
    "weight beyond floats": (HONEST, {"weight": "0x1p99999"}, "weight '0x1p99999' is no number"),
    "weight a number": (HONEST, {"weight": 1}, "weight 1 is no number in the form of float.hex"),
    "no weight": (HONEST, {"weight": None}, "weight None is no number"),
    "metrics a list": (HONEST, {"metrics": [1]}, "its metrics are list, not named sums"),
    "metrics empty text": (HONEST, {"metrics": ""}, "its metrics are str, not named sums"),
    "metrics none": (HONEST, {"metrics": None}, "its metrics are NoneType, not named sums"),
    "metric a number": (HONEST, metrics(loss=3), "metric 'loss' cannot be read"),
    "metric of other length": (HONEST, metrics(loss=sums("float64", 1, 2, shape=[3])), "metric 'loss' cannot be read"),
    "metric of other shape": (HONEST, metrics(accuracy=sums("int64", 1, 2, 3)), "'accuracy' have shape (3,), not (2,)"),
    "metric of axes below 0": (HONEST, metrics(loss=sums("float64", 1, 2, shape=[-1])), "shape [-1]"),
    "metric of other dtype": (HONEST, metrics(loss={"dtype": "object", "shape": [1], "data": "AAAA"}), "'loss'"),
    "metric unsigned": (HONEST, metrics(loss=sums("uint64", 1, 2)), "metric 'loss' is no sum"),
    "metric not base64": (HONEST, metrics(loss={"dtype": "int8", "shape": [1], "data": "=?"}), "'loss' cannot be read"),
    "metric without data": (HONEST, metrics(loss={"dtype": "int8", "shape": [1]}), "'loss' cannot be read"),
    "metric too large": (HONEST, metrics(mine=sums("int64", MOST_WHOLE)), "metric 'mine' is no sum"),
    "stateful a word": (HONEST, {"stateful": "no"}, "stateful is 'no', not true or false"),
    "build a list": (HONEST, {"build": [1]}, "build is [1], no hash"),
    "build too long": (HONEST, {"build": "x" * 65}, "no hash"),
    "another size": (HONEST, {"size": 7}, f"it has {len(HONEST)} bytes, not the 7 that were signed"),
    "size a word": (HONEST, {"size": "7"}, "not the '7' that were signed"),
    "NaN": (arrays(w=np.float32([1, np.nan, 1])), {}, "array 'w' holds NaN or Inf; lower the learning rate"),
    "infinity": (arrays(z=np.array([1, -np.inf])), {}, "array 'z' holds NaN or Inf"),
    "no room": (arrays(z=np.array([1, -1e300])), {"weight": (2.0**20).hex()}, "array 'z': element 1 is -1e+300"),
    "another shape": (arrays(w=np.ones(4, np.float32)), {}, "array 'w' is trainable float32[4], the Task announced"),
    "another dtype": (arrays(w=np.ones(3)), {}, "array 'w' is trainable float64[3], the Task announced"),
    "one array less": (packed(w=np.ones(3, np.float32)), {}, "array 'z' is missing, the Task announced"),
    "one array more": (arrays(more=np.ones(1)), {}, "the Task announced missing"),
    "another order": (packed(z=np.ones(2), w=np.ones(3, np.float32)), {}, "in another order than announced"),
    "no arrays": (packed(), {}, "array 'w' is missing"),
    "no file of ours": (b"x" * 100, {}, "truncated or not a safetensors file"),
    "a cut file": (HONEST[:-8], {}, "do not fit float32(3,)): the file is damaged"),
}  # fmt: skip


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    made = Rig(tmp_path_factory.mktemp("lies"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def play(rig):
    """Honest north, lying south, and a run of more rounds than there are lies."""
    run = rig.submit(JOB % 1000)
    sites = Scripted(rig, "north"), Scripted(rig, "south")
    for site in sites:
        site.ready(run)
    return run, *sites


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_by_name_told_to_its_site_and_the_run_goes_on(rig, play, lie):
    (run, north, south), (data, said, why) = play, LIES[lie]
    ours, theirs = north.task(run), south.task(run)
    body = south.upload(theirs, data) | said
    receipt = south.tell(body)
    assert receipt["status"] == "refused"
    assert receipt["why"].startswith(CHECKING) and why in receipt["why"] and "; " in receipt["why"]
    assert south.tell(body) == receipt  # what was journaled is told again
    assert north.send(ours, HONEST)["status"] == "accepted"
    close = rig.until(lambda: [row for row in rig.rows(run, "close") if row["round"] == ours["round"]])[0]
    assert close["counted"] == [["north", ours["round"], 0]]
    assert close["outcomes"] == [["north", "counted", "", 1.0], ["south", "refused", receipt["why"], 0.0]]
    refused = [row for row in rig.rows(run, "refused") if row["round"] == ours["round"]]
    assert [(row["site"], row["why"]) for row in refused] == [("south", receipt["why"])]
    assert rig.hub.runs[run].state == "running"


def test_what_was_refused_is_deleted(rig, play):
    run, north, south = play
    ours, theirs = north.task(run), south.task(run)
    assert south.send(theirs, arrays(w=np.float32([np.inf] * 3)))["status"] == "refused"
    assert north.send(ours, HONEST)["status"] == "accepted"
    updates = rig.place.folder / "updates"
    rig.until(lambda: not [path for path in updates.rglob("*") if path.is_file()])


WRONG = (None, True, -1, 1.5, "", "x", [], [[1]], {}, {"a": 1}, 10**400)
NAMES = ("run", "round", "task", "attempt", "digest")


@pytest.mark.parametrize("field", [*NAMES, "site"])
def test_an_envelope_that_names_no_task_is_answered_in_one_line(rig, play, caplog, field):
    run, north, south = play
    ours, theirs = north.task(run), south.task(run)
    honest = south.upload(theirs, HONEST)
    bodies = [honest | {field: wrong} for wrong in WRONG] + [{k: v for k, v in honest.items() if k != field}]
    for body in bodies:
        with pytest.raises(FoedusError) as caught:  # which a Link raises for 4xx alone
            south.tell(body)
        assert len(str(caught.value).splitlines()) == 1 and "Traceback" not in str(caught.value)
    assert not caplog.records
    assert south.tell(honest)["status"] == "accepted"
    assert north.send(ours, HONEST)["status"] == "accepted"


@pytest.mark.parametrize("path", ["/v1/declines", "/v1/beat"])
def test_a_decline_or_a_heartbeat_that_names_no_task_is_answered_in_one_line(rig, play, caplog, path):
    run, _, south = play
    honest = {"run": run, "round": 0, "task": 0, "attempt": 0, "site": "south", "progress": 1, "reason": "x"}
    for field, wrong in product(NAMES[:4], WRONG):
        body = honest | {field: wrong}
        sent = body if path == "/v1/beat" else {"envelope": south.signed(body, "decline")}
        if path == "/v1/beat" and field == "run" and isinstance(wrong, str):
            assert south.link.call("POST", path, sent) == {"go_on": False}
            continue
        with pytest.raises(FoedusError) as caught:
            south.link.call("POST", path, sent)
        assert len(str(caught.value).splitlines()) == 1
    assert not caplog.records and rig.hub.runs[run].state == "running"


def test_a_report_that_is_no_report_is_answered_in_one_line(rig, play):
    run, _, south = play
    for report in ([1], "ready", 3, {"rows": "x" * (64 << 10)}):
        with pytest.raises(FoedusError, match="report is a JSON object"):
            south.link.call("POST", "/v1/ready", {"run": run, "ready": True, "why": "", "report": report})


def test_a_fold_that_fails_says_its_true_cause(rig, play):
    """Not the KeyError of a server that waited for a Total."""
    code = JOB % 2 + "\ndef broken(acc, weight):\n    raise OSError('no such disk')\n"
    code += "job = job.replace(algorithm=fd.fedavg(aggregator=fd.mean()._replace(finish=broken)))\n"
    run, site = rig.submit(code), play[1]
    play[2].ready(run, yes=False)
    site.ready(run)
    site.send(site.task(run), HONEST)
    live = rig.hub.runs[run]
    rig.until(lambda: live.state == "failed")
    assert live.why.startswith("OSError: no such disk (job.py, line ")
