"""A small federated linear regression. Its loop counts its calls in a file beside the data, each with a number that
only this site and round draw; it may be slow, and wait for a test at a gate."""

import time

import numpy as np

import foedus as fd
from foedus.numpy import NumpyLearner


class Table:
    """A site's rows, which know the folder they came from."""

    def __init__(self, folder, rows):
        self.folder, self.rows = folder, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i, :-1], self.rows[i, -1]

    @property
    def x(self):
        return self.rows[:, :-1]

    @property
    def y(self):
        return self.rows[:, -1]


def load(site):
    rows = np.loadtxt(site.data / "rows.csv", delimiter=",")
    return fd.Split(
        train=Table(site.data, rows[:40]), valid=Table(site.data, rows[40:50]), test=Table(site.data, rows[50:])
    )


def fit(params, split, ctx):
    folder, draw = split.train.folder, float(ctx.generator.random())
    with open(folder / "calls", "a") as calls:
        calls.write(f"begin {draw!r}\n")
    (slow,) = [float(line) for line in (folder / "slow").read_text().split()] or [0.0]
    time.sleep(slow * draw)
    while closed(folder):
        time.sleep(0.005)
    for i in ctx.generator.permutation(len(split.train)):
        x, y = split.train[i]
        error = x @ params["w"] + params["b"] - y
        grads = ctx.correct({"w": 2 * error * x, "b": 2 * error}, params, lr=0.01)
        params["w"] -= 0.01 * grads["w"]
        params["b"] -= 0.01 * grads["b"]
    if "ballast" in params:
        params["ballast"] += 1 + int(draw * 100)
    with open(folder / "calls", "a") as calls:
        calls.write("end\n")
    return {"loss": float(error**2)}


def closed(folder):
    """Whether this call has to wait: `gate` holds how many calls of this site may go on."""
    try:
        most = int((folder / "gate").read_text() or 0)
    except FileNotFoundError:  # it is open, perhaps since this moment
        return False
    return (folder / "calls").read_text().count("begin") > most


def momentum(work):
    """The same work with a velocity that stays at the site: bits that depend on which of its updates counted."""

    def stateful(payload, local, site):
        _, update = work(payload, None, site)
        velocity = update.params if local is None else update.params + 0.5 * local["velocity"]
        return {"velocity": velocity}, update._replace(params=velocity)

    return stateful


def gradient(p, x, y):
    error = x @ p["w"] + p["b"] - y
    return error**2, {"w": 2 * x.T @ error / len(x), "b": 2 * error.mean()}


def job(
    rounds=3,
    min_sites=1,
    quorum=0,
    late="drop",
    cohort=0,
    over=1.0,
    busy=0,
    best="",
    evaluate=1,
    stateful=0,
    ballast=0,
    buffer=0,
    alpha=0.0,
    rule=0,
    topology="",
    privacy="",
    masks=1,
    wmax=0,
):
    model = {"w": np.zeros(4, np.float32), "b": np.zeros((), np.float32)}
    if ballast:  # an integer array of so many numbers, for updates that take time on their way
        model["ballast"] = np.zeros(ballast, np.int32)
    learner = NumpyLearner(model, gradient, lambda p, x: x @ p["w"] + p["b"], train=fit, metrics=["rmse"])
    algorithm = fd.fedprox(0.01, **({"busy": busy} if busy else {}))
    if buffer:
        algorithm = fd.fedbuff(buffer, fd.fedprox(0.01), busy=busy or None)
    if alpha:
        algorithm = fd.fedasync(alpha, busy=busy or None)
    if topology:
        algorithm = {"cyclic": fd.cyclic, "gossip": fd.gossip}[topology](algorithm)
    if stateful:
        algorithm = algorithm._replace(works={name: momentum(work) for name, work in algorithm.works.items()})
    return fd.Job(
        algorithm,
        learner,
        load,
        rounds=rounds,
        min_sites=min_sites,
        quorum=quorum or None,
        late=late,
        cohort=fd.participation.weighted(cohort, {"east": 1, "north": 5, "south": 2}) if rule else cohort or None,
        over_select=over,
        best=best or None,
        evaluate=evaluate,
        privacy=fd.secagg(wmax=wmax or None, masks=bool(masks)) if privacy else "none",
    )
