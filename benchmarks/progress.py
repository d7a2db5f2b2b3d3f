"""What live progress costs, in CPU time of this process and as a share of that of the run.
Prints JSON: python benchmarks/progress.py [ROUNDS].

`rounds` is measured in one run, whose rounds take turns with and without it: what a shown one costs more than its
silent neighbour, in the median; on a busy machine that is good to half a hundredth. `alone` is exact: what a run's rows
and sites cost when they are heard and drawn once more, by the same clock and with nothing else to do.

`training` has the size of the peers' scenario B: 100 sites train a small network. `empty` is the worst case: 1,000
sites that return at once, in rounds that follow one another as fast as they can.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from statistics import median
from typing import Any

import numpy as np
from overhead import empty

import foedus as fd
from foedus import launch, progress
from foedus.numpy import NumpyLearner
from foedus.report import live
from foedus.report.standing import Standing

LIMIT = 0.01
Shown = live.Live
Sites = dict[str, fd.Split]
Screen = Callable[[], AbstractContextManager[None]]


def gradient(p: Any, x: Any, y: Any) -> tuple[Any, dict[str, Any]]:
    """A network of one hidden layer, 64-64-10, and squared error."""
    hidden = np.maximum(x @ p["a"], 0)
    error = hidden @ p["b"] - y
    back = (error @ p["b"].T) * (hidden > 0)
    return np.square(error).sum(1), {"a": 2 * x.T @ back / len(x), "b": 2 * hidden.T @ error / len(x)}


def training(rounds: int) -> tuple[fd.Job, Sites]:
    rng = np.random.default_rng(0)
    model = {"a": rng.normal(0, 0.1, (64, 64)).astype("f4"), "b": rng.normal(0, 0.1, (64, 10)).astype("f4")}
    learner = NumpyLearner(model, gradient, lambda p, x: np.maximum(x @ p["a"], 0) @ p["b"], lr=0.01, batch_size=10)
    labels = np.eye(10, dtype="f4")[np.arange(18) % 10]
    held = {f"s{i}": (rng.normal(size=(18, 64)).astype("f4"), labels) for i in range(100)}
    return fd.Job(fd.fedavg(), learner, rounds=rounds), {name: fd.Split(data, data) for name, data in held.items()}


def nothing(rounds: int) -> tuple[fd.Job, Sites]:
    learner = NumpyLearner({"a": np.zeros(5000, "f4")}, lambda p, x, y: (y, {}))
    held = fd.Split((np.zeros((2, 1)), np.zeros(2)))
    return fd.Job(empty(True), learner, rounds=rounds, evaluate=0), {f"s{i}": held for i in range(1000)}


@contextmanager
def terminal() -> Iterator[None]:
    """Standard error is a terminal, read by another process."""
    ours, theirs = pty.openpty()
    reader = subprocess.Popen(["cat"], stdin=ours, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(ours)
    with os.fdopen(theirs, "w") as stream, redirect_stderr(stream):
        yield
    reader.wait()


@contextmanager
def file() -> Iterator[None]:
    with open(os.devnull, "w") as stream, redirect_stderr(stream):
        yield


class Switched(live.Live):
    """A Live that can be switched off, as if there were none."""

    made: Switched

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.on, Switched.made = True, self
        self.took: dict[bool, list[float]] = {False: [], True: []}
        self.began = time.process_time()

    def hear(self, kind: str, body: Mapping[str, Any]) -> None:
        if self.on:
            super().hear(kind, body)

    def turn(self) -> None:
        """The round is over; the next one is shown if this one was not."""
        self.took[self.on].append(time.process_time() - self.began)
        self.on = not self.on
        progress.heard = self.site if self.on else None
        self.began = time.process_time()


class Recorded(live.Live):
    """A Live that keeps what it hears, and when."""

    made: Recorded

    def __init__(self, screen: live.Screen, of: Standing) -> None:
        super().__init__(screen, of)
        self.heard: list[tuple[float, str, Any]] = []
        Recorded.made = self

    def hear(self, kind: str, body: Mapping[str, Any]) -> None:
        self.heard.append((self.clock(), kind, body))

    def site(self, name: str) -> None:
        self.heard.append((self.clock(), "", name))


def in_rounds(job: fd.Job, sites: Sites, screen: Screen) -> float:
    live.Live = Switched
    with screen():
        launch.run(job, sites, backend="local", show=True, told=lambda row: Switched.made.turn())
    took = Switched.made.took
    return median(a - b for a, b in zip(took[True][2:], took[False][2:], strict=False)) / median(took[False])


def alone(job: fd.Job, sites: Sites, screen: Screen) -> float:
    live.Live = Recorded
    began = time.process_time()
    with screen():
        launch.run(job, sites, backend="local", show=True)
    whole, now = time.process_time() - began, [0.0]
    live.Live = Shown
    with screen(), live.shown(True) as again:
        assert again
        again.clock, again.next = lambda: now[0], Recorded.made.heard[0][0] + live.PATIENCE
        began = time.process_time()
        for now[0], kind, what in Recorded.made.heard:
            again.hear(kind, what) if kind else again.site(what)
        took = time.process_time() - began
    return took / (whole - took)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    screens, found = {"terminal": terminal, "lines": file}, dict[str, dict[str, dict[str, float]]]()
    with tempfile.TemporaryDirectory() as home:
        os.environ["FOEDUS_HOME"] = home
        for name, (job, sites) in {"training": training(rounds), "empty": nothing(rounds // 2)}.items():
            for kind, screen in screens.items():
                shares = {"rounds": in_rounds(job, sites, screen), "alone": alone(job, sites, screen)}
                found.setdefault(name, {})[kind] = {how: float(f"{x:.4f}") for how, x in shares.items()}
    print(json.dumps({"rounds": rounds, "share_of_cpu_time": found, "limit": LIMIT}, indent=2))


if __name__ == "__main__":
    main()
