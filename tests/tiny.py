"""A model of two arrays whose training is worked out by hand, its sites, and runs of it without files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foedus import Job, Split, Update, fedavg
from foedus.algorithms import delta
from foedus.backends.local import Here
from foedus.backends.locals import Locals
from foedus.backends.simulation import Simulation
from foedus.core import Algorithm, Decline, Work
from foedus.journal import Journal, Memory
from foedus.numpy import NumpyLearner
from foedus.params import Params
from foedus.run import Checkpoints, Ended, execute

ZERO = {"w": np.zeros(2, np.float32), "b": np.zeros((), np.float32)}


def gradient(p: Mapping[str, Any], x: Any, y: Any) -> tuple[Any, dict[str, Any]]:
    """Half the squared distance of w to the x and of b to the y: one full step of size 1 lands on their means."""
    dw, db = p["w"] - x, p["b"] - y
    return (np.square(dw).sum(1) + np.square(db)) / 2, {"w": dw.mean(0), "b": db.mean(0)}


def predict(p: Mapping[str, Any], x: Any) -> Any:
    return np.full(len(x), p["b"])


def learner(lr: float = 0.5, epochs: int = 1, model: Any = ZERO, **more: Any) -> NumpyLearner:
    """Full-batch gradient descent."""
    return NumpyLearner(model, gradient, predict, lr=lr, epochs=epochs, batch_size=None, **more)


def points(rows: Sequence[Sequence[float]], test: Sequence[Sequence[float]] = ()) -> Split:
    """A site with rows [w0, w1, b], for training and validation."""
    found = np.array(rows, np.float32)
    data = (found[:, :2], found[:, 2])
    if not len(test):
        return Split(train=data, valid=data)
    other = np.array(test, np.float32)
    return Split(train=data, valid=data, test=(other[:, :2], other[:, 2]))


NORTH, SOUTH, WEST = points([[2, 0, 4]] * 2), points([[8, 0, -8]]), points([[0, 4, 0]] * 5)
SITES = {"north": NORTH, "south": SOUTH, "west": WEST}


def many(count: int) -> dict[str, Split]:
    """Sites of one to five examples, all different."""
    rows = [points([[i, -i, (i * i) % 7]] * (1 + i % 5)) for i in range(count)]
    return {f"s{i:02}": split for i, split in enumerate(rows)}


def job(algorithm: Algorithm | None = None, rounds: int | None = 2, **more: Any) -> Job:
    return Job(algorithm or fedavg(), more.pop("learner", learner()), rounds=rounds, **more)


def played(
    made: Job,
    sites: Mapping[str, Any],
    seed: int = 0,
    journal: Journal | None = None,
    script: Journal | None = None,
    told: Callable[[Mapping[str, Any]], None] = lambda row: None,
    folder: Path | None = None,
) -> tuple[Ended, Journal]:
    """What the Job ends with in `local`, and its journal in memory; checkpoints are in `folder`, one a round."""
    kept = journal or Journal(Memory())
    crew, states = Here(made.bench(seed), sites), Locals(folder)
    runner = Simulation(crew, sorted(sites), kept, seed, made.least, script, locals=states)
    return execute(made.plan(seed), runner, kept, Checkpoints(folder, lazy=False), script, told), kept


def final(ended: Ended) -> dict[str, Any]:
    return {name: x.tolist() for name, x in ended.params.items()}


def working(work: Callable[..., Any], algorithm: Algorithm | None = None) -> Algorithm:
    """An algorithm whose sites do `work(payload, local, site, usual)`; `usual()` is what they would have done."""
    base = algorithm or fedavg()
    usual: Work = base.works["train"]

    def instead(payload: Params, local: Any, site: Any) -> tuple[Any, Update | Decline]:
        found: tuple[Any, Update | Decline] = work(payload, local, site, lambda: usual(payload, local, site))
        return found

    return base._replace(works={"train": instead})


__all__ = ["SITES", "delta", "final", "job", "learner", "many", "played", "points", "working"]
