"""A cohort out of a million sites beside the same cohort out of a thousand: start, seconds a round, peak memory.

`python benchmarks/pools.py [COHORT [ROUNDS]]` prints JSON; `limit` is what is aimed at. Each run has a process of its
own; `stateful` ones keep a state at each site (SCAFFOLD).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

import numpy as np

import foedus as fd
from foedus import launch
from foedus.numpy import NumpyLearner

SMALL, MIDDLE, LARGE = 1_000, 10_000, 1_000_000  # of the small pool all data stays loaded, of the others hardly any
KINDS = ("stateless", "stateful")
WIDTH = 64


def main(cohort: int, rounds: int) -> None:
    print(json.dumps([compared(kind, cohort, rounds) for kind in KINDS], indent=2))


def compared(kind: str, cohort: int, rounds: int) -> dict[str, Any]:
    """The pools, and what the large one takes more."""
    small, middle, large = (apart(kind, sites, cohort, rounds) for sites in (SMALL, MIDDLE, LARGE))
    return {
        "kind": kind,
        "cohort": cohort,
        str(SMALL): small,
        str(MIDDLE): middle,
        str(LARGE): large,
        "more_mb": round(large["peak_mb"] - small["peak_mb"], 1),
        "more_mb_limit": 100,
        "more_start_seconds": round(large["start_seconds"] - small["start_seconds"], 3),
        "more_start_seconds_limit": 2.0,
        "round_ratio": round(large["round_seconds"] / small["round_seconds"], 3),
        "round_ratio_where_data_is_made": round(large["round_seconds"] / middle["round_seconds"], 3),
    }


def apart(kind: str, sites: int, cohort: int, rounds: int) -> dict[str, float]:
    """What a run in a new process says of itself."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, __file__, kind, str(sites), str(cohort), str(rounds)]
        done = subprocess.run(command, env={**os.environ, "FOEDUS_HOME": home}, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def told(kind: str, sites: int, cohort: int, rounds: int) -> None:
    """Prints the time until a site's data is first asked for, the median of the later rounds, and the peak."""
    asked: list[float] = []
    ends: list[float] = []

    def data(i: int) -> fd.Split:
        if not asked:
            asked.append(time.perf_counter())
        return examples(i)

    began = time.perf_counter()
    pool = fd.Sites.lazy(sites, data)
    launch.run(job(kind, cohort, rounds), pool, backend="local", told=lambda line: ends.append(time.perf_counter()))
    found = {
        "start_seconds": asked[0] - began,
        "round_seconds": median(np.diff(ends)),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps({name: round(float(x), 4) for name, x in found.items()}))


def examples(i: int) -> fd.Split:
    """Twenty examples that only the site's number decides."""
    x = np.random.default_rng(i).normal(size=(20, WIDTH)).astype(np.float32)
    data = x, x[:, 0]
    return fd.Split(train=data, valid=data)


def job(kind: str, cohort: int, rounds: int) -> fd.Job:
    algorithm = fd.scaffold() if kind == "stateful" else fd.fedavg()
    model = {"w": np.zeros(WIDTH, np.float32)}
    learner = NumpyLearner(model, gradient, lr=0.01, epochs=1, batch_size=10)
    return fd.Job(algorithm, learner, rounds=rounds, cohort=cohort, evaluate=0)


def gradient(p: Any, x: Any, y: Any) -> tuple[Any, dict[str, Any]]:
    error = x @ p["w"] - y
    return error**2 / 2, {"w": x.T @ error / len(x)}


if __name__ == "__main__":
    if len(sys.argv) == 5:
        told(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        main(*([int(text) for text in sys.argv[1:]] + [1000, 6][len(sys.argv) - 1 :]))
